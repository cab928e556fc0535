"""The server hangs up at a named point of the protocol: before_negotiation says nothing at all, the others break off in
the midst of an option_reply, of a reply_header or of the reply_data of a READ.
"""

from dataclasses import dataclass
from typing import ClassVar

from testbed.nbd.faults.fault import Fault, header_size
from testbed.nbd.faults.requests import REQUESTS
from testbed.nbd.server_protocol import Read, Request

IN_TRANSMISSION = ("reply_header", "reply_data")
POINTS = ("before_negotiation", "option_reply", *IN_TRANSMISSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS

    point: str = "reply_header"

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        self.check(self.point in POINTS, f"point is one of {', '.join(POINTS)}")

    def touches(self, request: Request) -> bool:
        kinds = {"reply_header": REQUESTS, "reply_data": (Read,)}.get(self.point, ())
        return isinstance(request, kinds) and Fault.touches(self, request)

    def cut(self, reply: bytes) -> int | None:
        header = header_size(reply)
        return header // 2 if self.point == "reply_header" else (header + len(reply)) // 2
