"""WRITEs, and whatever else changes the data, fail with EIO; nothing of them reaches the export."""

import errno
from dataclasses import dataclass
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.server_protocol import Trim, Write, WriteZeroes


@dataclass(frozen=True, slots=True, kw_only=True)
class EioWrite(Fault):
    concerns: ClassVar[tuple[type, ...]] = (Write, WriteZeroes, Trim)

    def error(self) -> int:
        return errno.EIO

    def kept(self, length: int) -> int:
        return 0
