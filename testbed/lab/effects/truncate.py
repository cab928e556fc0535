"""Frames whose end is missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from testbed.lab.effects.effect import ETHERNET_HEADER, Effect, Frame, check_probability


@dataclass(frozen=True, slots=True)
class Truncate:
    """With this probability only a frame's first bytes arrive: at least `smallest` of them, and not all."""

    probability: float
    smallest: int = ETHERNET_HEADER

    def __post_init__(self) -> None:
        check_probability(self.probability, "probability")
        if self.smallest < ETHERNET_HEADER:
            raise ValueError(f"smallest must be at least {ETHERNET_HEADER}, an Ethernet header, not {self.smallest}")


class TruncateEffect(Effect[Truncate]):
    needs_bytes = True

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        whole = cast(bytes, frame)
        if len(whole) > self.numbers.smallest and self.random.random() < self.numbers.probability:
            self.altered += 1
            frame = cast(Frame, whole[: self.random.randrange(self.numbers.smallest, len(whole))])
        return ((now, frame),)
