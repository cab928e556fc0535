"""Segments of a simulated TCP connection, in trains: data that follows on, cut into segments, or acknowledgements.

A train is to its segments what a GSO frame is. It may lose some on its way, and what is left is then several runs of
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from testbed.simulation.link import Port

HEADERS = 14 + 20 + 32
"""Ethernet, IPv4, and TCP with timestamps, bytes."""


Connection = int | tuple[str, int, int]
"""What both ends know a connection by: its number at the server, or who connects (address and port) to which port."""


@dataclass(frozen=True, slots=True)
class Segments:
    """`data` from stream offset `seq` on, `mss` bytes to a segment; without data, `copies` acknowledgements.

    Each carries the receiver's state: all before `ack` has come, offsets below `window_edge` may be sent, and `sacks`
    are ranges that came out of order.
    """

    destination: Port
    connection: Connection
    seq: int
    data: bytes
    mss: int
    ack: int
    window_edge: int
    sacks: tuple[tuple[int, int], ...] = ()
    copies: int = 1

    @property
    def frames(self) -> int:
        """Frames on the wire."""
        return -(-len(self.data) // self.mss) if self.data else self.copies

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return len(self.data) + self.frames * HEADERS

    def first(self, frames: int) -> Segments:
        """The first `frames` of them."""
        if self.data:
            return replace(self, data=self.data[: frames * self.mss])
        return replace(self, copies=frames)

    def one(self, number: int) -> Segments:
        """The segment of that number by itself."""
        if not self.data:
            return replace(self, copies=1)
        start = number * self.mss
        return replace(self, seq=self.seq + start, data=self.data[start : start + self.mss])

    def runs(self, kept: Sequence[bool]) -> list[tuple[int, bytes]]:
        """What is left if only the segments that `kept` says get through: (offset, data) of each run of bytes."""
        found: list[tuple[int, bytes]] = []
        for number, wanted in enumerate(kept):
            if wanted:
                piece = self.data[number * self.mss : (number + 1) * self.mss]
                if number and kept[number - 1]:
                    found[-1] = (found[-1][0], found[-1][1] + piece)
                else:
                    found.append((self.seq + number * self.mss, piece))
        return found
