"""One bit of a reply is flipped: in its "magic", which the client must notice, or in a READ's "data", where it cannot
notice it.
"""

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from testbed.nbd.faults.fault import Fault, header_size
from testbed.nbd.faults.requests import REQUESTS
from testbed.nbd.server_protocol import Read, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbledReply(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS

    part: str = "magic"

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        self.check(self.part in ("magic", "data"), 'part is "magic" or "data"')

    def touches(self, request: Request) -> bool:
        return Fault.touches(self, request) and (self.part == "magic" or isinstance(request, Read))

    def replies(self, reply: bytes, chance: Random) -> list[bytes]:
        begin, end = (0, 4) if self.part == "magic" else (header_size(reply), len(reply))
        if begin >= end:
            return [reply]
        garbled = bytearray(reply)
        garbled[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
        return [bytes(garbled)]
