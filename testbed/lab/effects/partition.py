"""A cut: nothing gets through until the effect is taken away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.lab.effects.effect import Effect, Frame


@dataclass(frozen=True, slots=True)
class Partition:
    """All frames are lost."""


class PartitionEffect(Effect[Partition]):
    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        return self.lose("partition")
