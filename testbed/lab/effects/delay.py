"""Delay with jitter, as netem has it: each frame leaves at its own time, so that one with less delay overtakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from testbed.lab.effects.effect import Effect, Frame, check_not_negative

Distribution = Literal["uniform", "normal"]


@dataclass(frozen=True, slots=True)
class Delay:
    """Frames take `seconds` longer, give or take `jitter` seconds.

    Uniform: anything from seconds - jitter to seconds + jitter. Normal: `jitter` is the standard deviation. No frame
    leaves before it came. With `keep_order` none overtakes another either.
    """

    seconds: float
    jitter: float = 0.0
    distribution: Distribution = "uniform"
    keep_order: bool = False

    def __post_init__(self) -> None:
        check_not_negative(self.seconds, "seconds")
        check_not_negative(self.jitter, "jitter")
        if self.distribution not in ("uniform", "normal"):
            raise ValueError(f'distribution must be "uniform" or "normal", not {self.distribution!r}')


class DelayEffect(Effect[Delay]):
    _last = 0.0

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        due = now + max(0.0, self._seconds())
        if self.numbers.keep_order:
            due = self._last = max(due, self._last)
        return ((due, frame),)

    def _seconds(self) -> float:
        numbers = self.numbers
        if not numbers.jitter:
            return numbers.seconds
        if numbers.distribution == "normal":
            return self.random.gauss(numbers.seconds, numbers.jitter)
        return self.random.uniform(numbers.seconds - numbers.jitter, numbers.seconds + numbers.jitter)
