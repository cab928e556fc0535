"""Simulated datagrams (and other frames without a connection), and the UDP socket that gives them to who reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from testbed.net.dev import Kind
from testbed.simulation.link import Port
from testbed.simulation.virtual_time import SimulatedFile, VirtualTimeLoop


@dataclass(frozen=True, slots=True)
class Datagrams:
    """Frames of `frame_size` bytes each; the i-th is of the kind `kinds[codes[i]]`. No kinds: for another host."""

    source: Port
    destination: Port
    frame_size: int
    codes: npt.NDArray[np.intp]
    kinds: tuple[Kind, ...]

    @property
    def frames(self) -> int:
        """Frames on the wire."""
        return len(self.codes)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return self.frame_size * len(self.codes)

    def first(self, frames: int) -> Datagrams:
        """The first `frames` of them."""
        return replace(self, codes=self.codes[:frames])

    def one(self, number: int) -> Datagrams:
        """The frame of that number by itself."""
        return replace(self, codes=self.codes[number : number + 1])


class DatagramSocket(SimulatedFile):
    """A UDP socket that never blocks; what the model delivers is put into it."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__(loop)
        self.arrived = 0
        self.waiting = 0

    def put(self, count: int) -> None:
        """`count` datagrams arrive."""
        self.arrived += count
        self.waiting += count
        self.notify()

    def ready_to_read(self) -> bool:
        """Is a datagram waiting?"""
        return self.waiting > 0

    def discard(self, most: int) -> int:
        """Read up to `most` datagrams; how many there were."""
        count = min(most, self.waiting)
        self.waiting -= count
        if self.waiting:
            self.notify()
        return count
