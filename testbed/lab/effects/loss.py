"""Random loss: each frame by itself, whatever became of the one before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import Effect, Frame, check_probability


@dataclass(frozen=True, slots=True)
class Loss:
    """Each frame is lost with this probability."""

    probability: float

    def __post_init__(self) -> None:
        check_probability(self.probability, "probability")


class LossEffect(Effect[Loss]):
    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        if self.random.random() < self.numbers.probability:
            return self.lose("loss")
        return ((now, frame),)
