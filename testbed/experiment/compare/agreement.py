"""When two hosts agree. Pure: from what was counted in runs of the same conditions to a judgement.

Outcomes agree if the commonest ones are the same. A counter is compared by its median over the runs, and only where
both hosts came to the end of their work: how much of it was done when a host hung is chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import permutations
from math import comb, inf
from statistics import mean, median
from typing import Final

import msgspec

from testbed.experiment.result import Outcome

BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "pswpin": (0.85, 1.15),
    "pswpout": (0.85, 1.15),
    "PFMemallocDrop": (0.5, 2.0),
    "pgscan_direct_throttle": (0.5, 2.0),
    "allocstall": (0.5, 2.0),
}
"""Between which ratios to the reference the median of a counter agrees."""


class Measured(msgspec.Struct, frozen=True, omit_defaults=True):
    """A counter on one host: its median, and its lowest and highest value. On a host that is held against a reference
    also the `ratio` of the medians (None: the reference counted nothing), and whether the median lies `within` what
    the runs of the reference have shown."""

    median: float
    spread: tuple[float, float]
    ratio: float | None = None
    within: bool | None = None

    def against(self, reference: Measured) -> Measured:
        """This counter held against the reference's."""
        lowest, highest = reference.spread
        within = lowest <= self.median <= highest
        return Measured(self.median, self.spread, ratio(self.median, reference.median), within)


class CounterAgreement(msgspec.Struct, frozen=True):
    """A counter over all cells in which both hosts came to the end of their work: how many these are, in how many the
    `host` is within the bounds, the median of its ratios to the reference (None: the reference mostly counted nothing),
    and how often a run of the reference is within the bounds of another one in the same cell (None: nothing was run
    twice), which is what a perfect model would reach."""

    counter: str
    host: str
    cells: int
    in_bounds: int
    ratio: float | None
    reference_in_bounds: float | None


def over_cells(
    counter: str, host: str, ratios: Sequence[float | None], reference: Iterable[Sequence[int]]
) -> CounterAgreement:
    """What the ratios of a counter's medians in cells, at least one, and the reference's own values there say."""
    middle = median(inf if each is None else each for each in ratios)
    return CounterAgreement(
        counter=counter,
        host=host,
        cells=len(ratios),
        in_bounds=sum(in_bounds(counter, each) for each in ratios),
        ratio=None if middle == inf else middle,
        reference_in_bounds=self_agreement(counter, reference),
    )


def measure(values: Sequence[int]) -> Measured:
    """A counter's values, at least one, as what is told of them."""
    return Measured(median(values), (min(values), max(values)))


def ratio(value: float, reference: float) -> float | None:
    """How many times the reference a value is; None if there is no such number."""
    if value == reference:
        return 1.0
    return value / reference if reference else None


def in_bounds(counter: str, found: float | None) -> bool:
    """Whether the ratio of a counter's medians is one that agrees; counters without bounds always do."""
    if counter not in BOUNDS:
        return True
    lowest, highest = BOUNDS[counter]
    return found is not None and lowest <= found <= highest


def commonest(outcomes: dict[Outcome, int]) -> frozenset[Outcome]:
    """The outcomes that occurred most often, of runs that could be judged."""
    judged = {outcome: count for outcome, count in outcomes.items() if outcome != "error"}
    most = max(judged.values(), default=0)
    return frozenset(outcome for outcome, count in judged.items() if count == most)


def outcomes_agree(one: dict[Outcome, int], other: dict[Outcome, int]) -> bool | None:
    """Whether the commonest outcomes are the same; None if a host has no run that could be judged."""
    ours, theirs = commonest(one), commonest(other)
    return ours == theirs if ours and theirs else None


def repeatability(cells: Iterable[dict[Outcome, int]]) -> float | None:
    """How often two runs of a host under the same conditions have the same outcome; None if nothing was run twice.

    Each cell weighs the same. Runs of a perfect model agree with a reference's as often as the reference's own do.
    """
    shares = [share for share in map(_same_of_two, cells) if share is not None]
    return mean(shares) if shares else None


def _same_of_two(outcomes: dict[Outcome, int]) -> float | None:
    judged = [count for outcome, count in outcomes.items() if outcome != "error"]
    pairs = comb(sum(judged), 2)
    return sum(comb(count, 2) for count in judged) / pairs if pairs else None


def self_agreement(counter: str, cells: Iterable[Sequence[int]]) -> float | None:
    """How often one run of a host agrees with another one under the same conditions in a counter's value; None if
    nothing was run twice. Each cell weighs the same."""
    return share(
        mean(in_bounds(counter, ratio(one, other)) for one, other in permutations(values, 2))
        for values in cells
        if len(values) > 1
    )


def share(judged: Iterable[float | None]) -> float | None:
    """The part of what could be judged that holds (a bool, or itself a part); None if nothing could be."""
    holds = [each for each in judged if each is not None]
    return mean(holds) if holds else None


def majority(true: int, of: int) -> bool | None:
    """What was true more often than not; None if neither was."""
    return None if 2 * true == of else 2 * true > of


def count_outcomes(outcomes: Sequence[Outcome]) -> dict[Outcome, int]:
    """How often each outcome occurred, the commonest first."""
    return dict(Counter(outcomes).most_common())
