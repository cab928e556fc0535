"""Simulated Ethernet: links with a bandwidth, a delay and a queue, and the switch that joins them.

What travels are groups of frames that were sent together. A group takes its place in the queue as a whole, less the
frames at its end for which the queue has no room: those are lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

FRAME_OVERHEAD = 24
"""Preamble, checksum and gap, bytes: a frame occupies the wire for that much more."""
LARGEST_FRAME = 1514


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """Bytes a second, seconds, and frames of full size that wait at most."""

    bandwidth: float = 125e6
    delay: float = 50e-6
    queue: int = 1000


class Frames(Protocol):
    """A group of frames: how many, how many bytes they have in all, and where they go."""

    @property
    def frames(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def destination(self) -> Port: ...

    def first(self, frames: int) -> Self:
        """The group without those that come after so many."""
        ...

    def one(self, number: int) -> Self:
        """The frame of that number by itself."""
        ...


class Link:
    """One direction of a cable. `delivered` and `lost` count frames."""

    def __init__(self, speed: LinkSpeed, deliver: Callable[[Frames], None]) -> None:
        self.delivered = 0
        self.lost = 0
        self._bandwidth = speed.bandwidth
        self._delay = speed.delay
        self._limit = speed.queue * (LARGEST_FRAME + FRAME_OVERHEAD)
        self.deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._free_at = 0.0

    @property
    def waiting_bytes(self) -> float:
        """What is queued or being sent."""
        return max(0.0, self._free_at - self._loop.time()) * self._bandwidth

    def send(self, group: Frames) -> None:
        """Queue a group of frames."""
        size = group.size + group.frames * FRAME_OVERHEAD
        room = self._limit - self.waiting_bytes
        if size > room:
            fitting = int(room * group.frames / size)
            self.lost += group.frames - fitting
            if fitting <= 0:
                return
            group = group.first(fitting)
            size = group.size + group.frames * FRAME_OVERHEAD
        self._free_at = max(self._loop.time(), self._free_at) + size / self._bandwidth
        self._loop.call_at(self._free_at + self._delay, self._arrive, group)

    def _arrive(self, group: Frames) -> None:
        self.delivered += group.frames
        self.deliver(group)


class Port:
    """A host's place on the switch: what it sends goes `up`, what is for it comes down to `receive`."""

    def __init__(self, speed: LinkSpeed, receive: Callable[[Frames], None]) -> None:
        self.up = Link(speed, _forward)
        self.down = Link(speed, receive)


def _forward(group: Frames) -> None:
    group.destination.down.send(group)
