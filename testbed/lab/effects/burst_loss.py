"""Bursty loss by the model of Gilbert and Elliott: a link that is good or bad, and changes with each frame.

As in netem's `loss gemodel p r 1-h 1-k` a frame's fate is that of the state it finds; the change is for the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import Effect, Frame, check_probability


@dataclass(frozen=True, slots=True)
class BurstLoss:
    """`p` is the probability to turn bad, `r` that to turn good again; in either state some share of frames is lost.

    In the long run p / (p + r) of all frames find the link bad, and a bad spell lasts 1 / r frames.
    """

    p: float
    r: float
    loss_in_bad: float = 1.0
    loss_in_good: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            check_probability(getattr(self, name), name)


class BurstLossEffect(Effect[BurstLoss]):
    _bad = False

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        numbers, bad, random = self.numbers, self._bad, self.random.random
        if random() < (numbers.r if bad else numbers.p):
            self._bad = not bad
        if random() < (numbers.loss_in_bad if bad else numbers.loss_in_good):
            return self.lose("burst_loss")
        return ((now, frame),)
