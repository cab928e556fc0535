"""FLUSH fails with EIO: what was written may never reach stable storage."""

import errno
from dataclasses import dataclass
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.server_protocol import Flush


@dataclass(frozen=True, slots=True, kw_only=True)
class EioFlush(Fault):
    concerns: ClassVar[tuple[type, ...]] = (Flush,)

    def error(self) -> int:
        return errno.EIO
