"""The smallest set of patches that still survives, found by trying.

Only sets that contain the bases of their patches are tried: a patch without its base does nothing, or half of what it
is for. From all patches on, one patch after the other is taken away with what builds on it, as long as the rest
survives, until none can be taken away. Then every part of what is left is tried, since taking away one patch alone may
harm where taking away two does not; and, if asked, every smaller set there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from testbed.experiment.ablation.trials import Trials
from testbed.patches import PATCHES, with_bases, with_dependents

PARTS_LIMIT = 64
"""Parts of a set that are tried without being asked."""

Established = Literal["smallest", "no part", "minimal", "open"]
MEANING: dict[Established, str] = {
    "smallest": "the smallest: every smaller set was tried and does not survive",
    "no part": "no part of it survives; smaller sets with other patches were not all tried",
    "minimal": "minimal: without any one of its patches, and what builds on it, it does not survive",
    "open": "it survives; whether less would do is open, since runs that would show it broke down",
}


@dataclass(frozen=True, slots=True)
class MinimalSet:
    """The set that was found, how much is known about it, and how many sets were tried on the way."""

    patches: frozenset[int]
    established: Established
    tried: int


def find(
    trials: Trials,
    everything: frozenset[int],
    candidates: frozenset[int],
    needed: frozenset[int] = frozenset(),
    exhaustive: bool = False,
) -> MinimalSet | None:
    """The smallest surviving set of `everything` when only `candidates`, and what builds on them, may be taken away.

    `needed` are patches to begin with, a guess that saves runs if it is right and does no harm if it is wrong. None
    if not even `everything` survives.
    """
    search = _Search(trials, everything, everything - with_dependents(candidates))
    if not search.survives(everything):
        return None
    start = with_bases(needed | search.fixed)
    current = search.eliminate(start if search.survives(start) else everything)
    parts = search.closed_sets(current, len(current) - 1)
    if exhaustive or len(parts) <= PARTS_LIMIT:
        current = search.first(parts) or current
    if exhaustive:
        current = search.first(search.closed_sets(everything, len(current) - 1)) or current
    return MinimalSet(current, search.established(current), len(search.tried))


class _Search:
    def __init__(self, trials: Trials, everything: frozenset[int], fixed: frozenset[int]) -> None:
        self.trials = trials
        self.everything = everything
        self.fixed = fixed
        self.tried: set[frozenset[int]] = set()

    def survives(self, patches: frozenset[int]) -> bool:
        return self.first([patches]) is not None

    def first(self, sets: Iterable[frozenset[int]]) -> frozenset[int] | None:
        """One of the smallest sets that survive, of sets in the order of their size."""
        for _, same_size in groupby(sets, len):
            together = list(same_size)
            self.tried.update(together)
            if alive := self.trials.survivors(together):
                return alive[0]
        return None

    def eliminate(self, current: frozenset[int]) -> frozenset[int]:
        """Take patches away, the last of the series first, until none can be taken away alone."""
        shrinking = True
        while shrinking:
            shrinking = False
            for number in sorted(current - self.fixed, reverse=True):
                smaller = current - with_dependents([number])
                if number in current and self.survives(smaller):
                    current, shrinking = smaller, True
        return current

    def closed_sets(self, whole: frozenset[int], largest: int) -> list[frozenset[int]]:
        """The sets within `whole` that have their bases, up to `largest` patches, the smallest first."""
        sets = [self.fixed]
        for number in sorted(whole - self.fixed):
            bases = PATCHES[number].depends_on
            sets += [patches | {number} for patches in sets if bases <= patches and len(patches) < largest]
        return sorted((patches for patches in sets if len(patches) <= largest), key=len)

    def established(self, current: frozenset[int]) -> Established:
        """What the sets that were tried say about the one that was found."""
        dies = self.trials.dies
        if all(map(dies, self.closed_sets(self.everything, len(current) - 1))):
            return "smallest"
        if all(map(dies, self.closed_sets(current, len(current) - 1))):
            return "no part"
        steps = (current - with_dependents([number]) for number in current - self.fixed)
        return "minimal" if all(map(dies, steps)) else "open"
