"""Frames that arrive twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import Effect, Frame, check_probability


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Each frame is followed by a copy of itself with this probability."""

    probability: float

    def __post_init__(self) -> None:
        check_probability(self.probability, "probability")


class DuplicateEffect(Effect[Duplicate]):
    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        if self.random.random() < self.numbers.probability:
            return ((now, frame), (now, frame))
        return ((now, frame),)
