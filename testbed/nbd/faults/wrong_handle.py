"""A reply carries a handle that the client did not send."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.faults.requests import REQUESTS

HANDLE = slice(8, 16)  # in a simple reply and in a structured one


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongHandle(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS

    def replies(self, reply: bytes, chance: Random) -> list[bytes]:
        handle = int.from_bytes(reply[HANDLE], "big") ^ (1 << 63 | chance.getrandbits(63))
        return [reply[: HANDLE.start] + handle.to_bytes(8, "big") + reply[HANDLE.stop :]]
