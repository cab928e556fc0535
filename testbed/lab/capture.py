"""A capture of one link: frames of packet rings go into a pcapng file, as many bytes of each as were asked for.

A full disk must not end an experiment: from then on frames are lost, and counted as such. `sniffer_main` captures a
link from outside, in a process of its own; it looks at its ring a hundred times a second, since a wake-up for every
frame would take the processor from those that are measured.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from multiprocess.connection import Connection

from testbed.hosts.messages import Finished, Ready, Shutdown
from testbed.lab import pcapng
from testbed.lab.errors import LabError
from testbed.lab.packet_ring import FrameBlock, PacketRing
from testbed.lab.pcapng import INBOUND, OUTBOUND, Statistics

LOOK_EVERY_S = 0.01
RING_BYTES = 32 << 20
BUDGET = 1024
MACS = 12
"""Bytes of a frame in front of a VLAN tag."""

KeptFrame = tuple[int, bytes | memoryview, int]
"""When it came (nanoseconds from the epoch), what was kept of it, and its length in bytes."""


class Capture:
    """An open capture file. `interface` is the name that readers are shown. Raises LabError if it cannot be made."""

    def __init__(self, path: str, snaplen: int, interface: str) -> None:
        self.snaplen = snaplen
        self.written = 0
        self.lost = 0
        try:
            self._file = Path(path).open("wb", buffering=1 << 20)  # noqa: SIM115
        except OSError as error:
            raise LabError(f"cannot write the capture {path}: {error.strerror}") from error
        self._full = False
        self._write(pcapng.section_header("testbed"), pcapng.interface_description(interface, snaplen))

    def frames(self, block: FrameBlock, directions: Iterable[int], comments: Iterable[str | None]) -> None:
        """The frames of a block, with a direction and a comment for each; no comment (None) leaves a frame out."""
        each = zip(kept_frames(block, self.snaplen), directions, comments, strict=True)
        for (time_ns, data, length), direction, comment in each:
            if comment is not None:
                self.frame(time_ns, data, length, direction, comment)

    def frame(self, time_ns: int, data: bytes | memoryview, length: int, direction: int, comment: str) -> None:
        """One frame of `length` bytes, of which `data` is the beginning."""
        if self._write(pcapng.enhanced_packet(time_ns, data, length, direction, comment)):
            self.written += 1
        else:
            self.lost += 1

    def _write(self, *blocks: bytes) -> bool:
        if not self._full:
            try:
                self._file.writelines(blocks)
            except OSError:
                self._full = True
        return not self._full

    def close(self, lost: int) -> None:
        """End the file; `lost` frames never came this far."""
        self._write(pcapng.interface_statistics(time.time_ns(), Statistics(self.written, self.lost + lost)))
        try:
            self._file.close()
        except OSError:
            self._full = True


def kept_frames(block: FrameBlock, snaplen: int) -> Iterator[KeptFrame]:
    """The beginnings of a block's frames, with the VLAN tags that the kernel took out of them."""
    tci, tagged = block.vlan
    numbers = np.flatnonzero(tagged).tolist()
    tags = {number: struct.pack(">HH", block.vlan_protocols[number], tci[number]) for number in numbers}
    for number, (time_ns, length) in enumerate(zip(block.times_ns.tolist(), block.lengths.tolist(), strict=True)):
        data: bytes | memoryview = block.frame(number)[:snaplen]
        if number in tags:
            data = b"".join((data[:MACS], tags[number], data[MACS:]))[:snaplen]
            length += len(tags[number])
        yield time_ns, data, length


@dataclass(frozen=True, slots=True)
class SnifferSpec:
    """Whose link to capture, on which interface of the namespace, into which file, and how much of each frame."""

    host: str
    ifname: str
    path: str
    snaplen: int


def sniffer_main(channel: Connection, spec: SnifferSpec) -> None:
    """Capture both directions until Shutdown. Raises LabError."""
    with PacketRing(spec.ifname, slots=RING_BYTES // max(spec.snaplen, 2048), room=spec.snaplen, outgoing=True) as ring:
        capture = Capture(spec.path, spec.snaplen, spec.host)
        channel.send(Ready(spec.host))
        try:
            while not (channel.poll(LOOK_EVERY_S) and isinstance(channel.recv(), Shutdown)):
                _take_all(ring, capture)
            _take_all(ring, capture)
        finally:
            capture.close(ring.statistics()[1])
    channel.send(Finished(spec.host))


def _take_all(ring: PacketRing, capture: Capture) -> None:
    while (block := ring.ready(BUDGET)) is not None:
        capture.frames(block, np.where(block.outgoing, OUTBOUND, INBOUND).tolist(), [""] * block.count)
        ring.release(block)
