"""The emulated NIC of a host whose link is captured: each dropped frame has a comment that says why and where.

The comment is the model's own decision: reason and place, the socket, the free pages that the ledger entered with it,
and the watermark. A frame that waits in a socket's backlog is written once it has been decided, with the time at
which it came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from testbed.hosts.control_packets import NAMES
from testbed.hosts.nic import Nic
from testbed.lab.capture import Capture, KeptFrame, kept_frames
from testbed.lab.packet_ring import FrameBlock
from testbed.lab.pcapng import INBOUND, OUTBOUND
from testbed.mm.watermarks import Watermarks
from testbed.net.dev import DELIVERED, FORWARDED, HELD, HeldFrame, RxBatch
from testbed.net.drop_reason import SITES, DropReason


@dataclass(frozen=True, slots=True)
class Held:
    """A frame for a socket with an owner: what is to be written, whose it is, and its segments' verdicts at first."""

    frame: KeptFrame
    name: str
    verdicts: list[int]

    def ends(self, held: HeldFrame) -> list[int]:
        """Each segment's verdict: HELD for what waits still."""
        return [late if early == HELD else early for early, late in zip(self.verdicts, held.verdicts, strict=True)]


class CapturingNic(Nic):
    """A Nic that writes `capture`. Its watermarks are told in the comments."""

    def __init__(self, wire: str, inner: str, *, gso: bool, capture: Capture, watermarks: Watermarks) -> None:
        super().__init__(wire, inner, gso=gso)
        self._capture = capture
        self._watermarks = watermarks
        self._waiting: dict[HeldFrame, Held] = {}

    def _receive(self, block: FrameBlock, batch: RxBatch, indices: npt.NDArray[np.intp] | None) -> None:
        super()._receive(block, batch, indices)
        other = None if indices is None else self.comment("other host", {int(DropReason.OTHERHOST): 1})
        comments: list[str | None] = [other] * block.count
        numbers = range(block.count) if indices is None else indices.tolist()
        for number, comment in zip(numbers, self._comments(batch), strict=True):
            comments[number] = comment
        self._capture.frames(block, [INBOUND] * block.count, comments)
        if batch.held:
            self._hold(batch, list(kept_frames(block, self._capture.snaplen)), numbers)

    def _comments(self, batch: RxBatch) -> Iterator[str | None]:
        """What is said of each frame of a batch: nothing of one that was delivered, None for one that waits."""
        said: dict[tuple[int, int, int], str] = {}
        segments = [1] * len(batch) if batch.segments is None else batch.segments
        for index, key in enumerate(zip(batch.codes.tolist(), batch.verdicts, segments, strict=True)):
            code, verdict, count = key
            if index in batch.held:
                yield None
            elif index in batch.mixed:
                yield self.comment(batch.kinds[code].name, Counter(batch.mixed[index]))
            else:
                if key not in said:
                    said[key] = self.comment(batch.kinds[code].name, {verdict: count})
                yield said[key]

    def _hold(self, batch: RxBatch, frames: list[KeptFrame], numbers: Iterable[int]) -> None:
        number_of = list(numbers)
        for index, held in batch.held.items():
            time_ns, data, length = frames[number_of[index]]
            name = batch.kinds[batch.codes[index]].name
            verdicts = batch.mixed.get(index) or [batch.verdicts[index]] * len(held.verdicts)
            waited = Held((time_ns, bytes(data), length), name, verdicts)
            if held.waiting:
                self._waiting[held] = waited
            else:
                self._decided(waited, held)

    def _pass_on(self, held: HeldFrame) -> None:
        super()._pass_on(held)
        if (waited := self._waiting.pop(held, None)) is not None:
            self._decided(waited, held)

    def _decided(self, waited: Held, held: HeldFrame) -> None:
        self._capture.frame(*waited.frame, INBOUND, self.comment(waited.name, Counter(waited.ends(held))))

    def _transmit(self, block: FrameBlock, kinds: list[int], refused: set[int]) -> None:
        super()._transmit(block, kinds, refused)
        lost = {kind: self.comment(NAMES[kind], {int(DropReason.TX_NOMEM): 1}) for kind in refused}
        self._capture.frames(block, [OUTBOUND] * block.count, [lost.get(kind, "") for kind in kinds])

    def comment(self, name: str, verdicts: dict[int, int]) -> str:
        """What a reader is told of a frame whose segments, so many of them, met these ends; "" if all arrived."""
        total = sum(verdicts.values())
        ends = [
            f"{DropReason(verdict).name} in {SITES[DropReason(verdict)]}{_share(count, total)}"
            for verdict, count in verdicts.items()
            if verdict not in {DELIVERED, FORWARDED}
        ]
        if not ends:
            return ""
        free, marks = self.ledger.nr_free_pages, self._watermarks
        return f"dropped: {', '.join(ends)}; socket {name}; {free} pages free; min {marks.min}, low {marks.low}"

    def close(self) -> None:
        """Write what still waits, end the capture, let go of the rings."""
        for held, waited in self._waiting.items():
            ends = Counter(waited.ends(held))
            pending = f"pending: {ends.pop(HELD)} in the backlog of socket {waited.name}"
            comments = filter(None, (pending, self.comment(waited.name, ends)))
            self._capture.frame(*waited.frame, INBOUND, "; ".join(comments))
        self._capture.close(self.wire_ring.statistics()[1] + self.inner_ring.statistics()[1])
        super().close()


def _share(count: int, total: int) -> str:
    return "" if total == 1 else f" ({count} of {total} segments)"
