"""Reordering as netem's: all frames are delayed, save some that go at once and so overtake those before them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import Effect, Frame, check_positive, check_probability


@dataclass(frozen=True, slots=True)
class Reorder:
    """Frames take `seconds` longer, but every `gap`-th goes at once with this probability.

    A frame in line that is not let go at once leaves the turn to the next (netem's `reorder` with `gap`).
    """

    seconds: float
    probability: float
    gap: int = 1

    def __post_init__(self) -> None:
        check_positive(self.seconds, "seconds")
        check_probability(self.probability, "probability")
        if self.gap < 1:
            raise ValueError(f"gap must be at least 1, not {self.gap}")


class ReorderEffect(Effect[Reorder]):
    _delayed = 0

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        numbers = self.numbers
        if self._delayed >= numbers.gap - 1 and self.random.random() < numbers.probability:
            self._delayed = 0
            return ((now, frame),)
        self._delayed += 1
        return ((now + numbers.seconds, frame),)
