"""A slower wire with a finite queue in front of it: drop-tail, as a device with a pfifo of so many bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import Effect, Frame, check_positive


@dataclass(frozen=True, slots=True)
class Rate:
    """`bytes_per_second` get through, and `queue` bytes may wait or be under way; a frame without room is lost.

    A frame's bytes are those from its Ethernet header on.
    """

    bytes_per_second: float
    queue: int = 1 << 20

    def __post_init__(self) -> None:
        check_positive(self.bytes_per_second, "bytes_per_second")
        check_positive(self.queue, "queue")


class RateEffect(Effect[Rate]):
    _free_at = 0.0

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        rate = self.numbers.bytes_per_second
        start = max(now, self._free_at)
        if (start - now) * rate + len(frame) > self.numbers.queue:
            return self.lose("overlimit")
        self._free_at = start + len(frame) / rate
        return ((self._free_at, frame),)
