"""A request is answered twice."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.faults.requests import REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Twice(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS

    def replies(self, reply: bytes, chance: Random) -> list[bytes]:
        return [reply, reply]
