"""Each request takes `seconds` longer, and up to `jitter` seconds more at random."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.faults.requests import REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS

    seconds: float = 0.01
    jitter: float = 0.0

    def delay(self, chance: Random, elapsed: float) -> float:
        return self.seconds + chance.uniform(0.0, self.jitter)
