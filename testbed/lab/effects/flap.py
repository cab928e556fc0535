"""A link that goes down and comes back, over and over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import Effect, Frame, check_positive, check_probability


@dataclass(frozen=True, slots=True)
class Flap:
    """Every `period` seconds all frames are lost for the first `down` of it, a share from 0 to 1."""

    period: float
    down: float = 0.5

    def __post_init__(self) -> None:
        check_positive(self.period, "period")
        check_probability(self.down, "down")


class FlapEffect(Effect[Flap]):
    _began = 0.0

    def begin(self, now: float) -> None:
        self._began = now

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        period = self.numbers.period
        if (now - self._began) % period < self.numbers.down * period:
            return self.lose("flap")
        return ((now, frame),)
