"""WRITEs fail with ENOSPC: a thin volume without room."""

import errno
from dataclasses import dataclass
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.server_protocol import Write, WriteZeroes


@dataclass(frozen=True, slots=True, kw_only=True)
class Enospc(Fault):
    concerns: ClassVar[tuple[type, ...]] = (Write, WriteZeroes)

    def error(self) -> int:
        return errno.ENOSPC

    def kept(self, length: int) -> int:
        return 0
