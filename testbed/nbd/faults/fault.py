"""What every storage fault has: which requests it picks, and the few methods with which it can interfere.

A fault is numbers and pure decisions. It neither sleeps nor sends: `ActiveFaults` does the waiting and
`FaultyTransmission` the answering.
"""

from dataclasses import dataclass, fields
from random import Random
from typing import ClassVar

from testbed.nbd.server_protocol import Request

CHUNK_HEADER = 28  # bytes before the data of a structured READ reply
SIMPLE_HEADER = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Of the requests that it `concerns` and that touch the bytes from `offset_from` up to `offset_to`, the first
    `after` pass; of the others every `every_nth` is picked, with `probability`, at most `times` in all.

    Raises ValueError, in one clear line, for numbers that make no sense.
    """

    concerns: ClassVar[tuple[type, ...]] = ()
    late: ClassVar[bool] = False  # the reply goes out after the next one

    probability: float = 1.0
    every_nth: int = 1
    after: int = 0
    times: int | None = None
    offset_from: int = 0
    offset_to: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, str):
                self.check(isinstance(value, str), f"{field.name} is a word")
            elif value is not None or field.default is not None:
                kind = int | float if isinstance(field.default, float) else int
                self.check(isinstance(value, kind) and value >= 0, f"{field.name} is a number and not negative")
        self.check(0 < self.probability <= 1, "probability is above 0 and at most 1")
        self.check(self.every_nth >= 1, "every_nth is at least 1")
        self.check(self.times is None or self.times >= 1, "times is at least 1")
        self.check(self.offset_to is None or self.offset_from < self.offset_to, "offset_from is below offset_to")

    def check(self, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"fault {type(self).__name__}: {rule}")

    def touches(self, request: Request) -> bool:
        """The request is of a kind, and in a place, that the fault is about."""
        if not isinstance(request, self.concerns):
            return False
        offset = getattr(request, "offset", None)
        if offset is None:
            return True
        length = len(request.data) if hasattr(request, "data") else request.length  # type: ignore[union-attr]
        return offset + length > self.offset_from and (self.offset_to is None or offset < self.offset_to)

    def delay(self, chance: Random, elapsed: float) -> float:
        """Seconds to wait before the request is carried out; `elapsed` since the fault first acted."""
        return 0.0

    def error(self) -> int:
        """The errno with which the request fails, or 0."""
        return 0

    def kept(self, length: int) -> int:
        """How many bytes of a WRITE reach the export."""
        return length

    def replies(self, reply: bytes, chance: Random) -> list[bytes]:
        """What is sent instead of a reply."""
        return [reply]

    def cut(self, reply: bytes) -> int | None:
        """After how many bytes of the reply the server hangs up, if it does."""
        return None


def header_size(reply: bytes) -> int:
    """Bytes before the data of a READ's reply."""
    return SIMPLE_HEADER if reply.startswith(b"\x67\x44\x66\x98") else CHUNK_HEADER
