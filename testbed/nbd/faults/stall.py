"""Nothing is answered for `seconds` from the first request on; then all goes on, as after a failover."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.faults.requests import REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS

    seconds: float = 1.0

    def delay(self, chance: Random, elapsed: float) -> float:
        return max(0.0, self.seconds - elapsed)
