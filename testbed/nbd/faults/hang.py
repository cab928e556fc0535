"""Requests are not answered until the fault is cleared."""

import math
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.faults.requests import REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS

    def delay(self, chance: Random, elapsed: float) -> float:
        return math.inf
