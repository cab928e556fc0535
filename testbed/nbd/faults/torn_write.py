"""Only a prefix of a WRITE reaches the export, as when power fails: `fraction` of it, in whole sectors of 512 bytes.

The client is told EIO, or with `told` "success" that all went well.
"""

import errno
from dataclasses import dataclass
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.server_protocol import Write

SECTOR = 512  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TornWrite(Fault):
    concerns: ClassVar[tuple[type, ...]] = (Write,)

    fraction: float = 0.5
    told: str = "error"

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        self.check(self.fraction < 1, "fraction is below 1")
        self.check(self.told in ("error", "success"), 'told is "error" or "success"')

    def kept(self, length: int) -> int:
        return int(length * self.fraction) // SECTOR * SECTOR

    def error(self) -> int:
        return errno.EIO if self.told == "error" else 0
