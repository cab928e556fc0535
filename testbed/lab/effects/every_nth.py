"""Loss without chance: the n-th frame, the 2n-th, and so on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import Effect, Frame


@dataclass(frozen=True, slots=True)
class EveryNth:
    """One frame in `n` is lost, always the last of them; 1 loses all."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, not {self.n}")


class EveryNthEffect(Effect[EveryNth]):
    _count = 0

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        self._count = (self._count + 1) % self.numbers.n
        if self._count == 0:
            return self.lose("every_nth")
        return ((now, frame),)
