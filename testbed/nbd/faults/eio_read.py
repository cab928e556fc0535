"""READs fail with EIO: a medium error."""

import errno
from dataclasses import dataclass
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.server_protocol import Read


@dataclass(frozen=True, slots=True, kw_only=True)
class EioRead(Fault):
    concerns: ClassVar[tuple[type, ...]] = (Read,)

    def error(self) -> int:
        return errno.EIO
