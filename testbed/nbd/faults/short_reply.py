"""A reply lacks its last `missing` bytes, and what follows takes their place."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.faults.requests import REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortReply(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS

    missing: int = 1

    def replies(self, reply: bytes, chance: Random) -> list[bytes]:
        return [reply[: max(0, len(reply) - self.missing)]]
