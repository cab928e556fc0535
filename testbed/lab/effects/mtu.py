"""An interface on the way whose MTU is smaller: it takes no frame that is longer, and tells nobody (a black hole)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import ETHERNET_HEADER, Effect, Frame

SMALLEST_MTU = 68
"""Of IPv4 (RFC 791)."""


@dataclass(frozen=True, slots=True)
class Mtu:
    """Frames with more than `mtu` bytes after their Ethernet header are lost."""

    mtu: int

    def __post_init__(self) -> None:
        if self.mtu < SMALLEST_MTU:
            raise ValueError(f"mtu must be at least {SMALLEST_MTU}, not {self.mtu}")


class MtuEffect(Effect[Mtu]):
    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        if len(frame) > self.numbers.mtu + ETHERNET_HEADER:
            return self.lose("mtu")
        return ((now, frame),)
