"""The rows of an ablation: what the runs with one set of patches have in common, beside the runs with all of them.

Numbers are medians over the runs. A counter has moved if its median lies outside everything that the runs with all
patches on have shown: that range is the noise which a patch has to stand out from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log2
from statistics import median
from typing import Any

import msgspec

from testbed.experiment.ablation.trials import Trial
from testbed.experiment.result import Outcome
from testbed.mm import vmstat
from testbed.patches import PATCHES

GAUGES = frozenset(vmstat.GAUGES) | {
    "bystander_rmem_alloc",
    "nr_file_pages",
    "nr_free_pages",
    "rx_ring_filled",
    "sk_rmem_alloc",
    "sk_wmem_queued",
    "swap_used",
    "tasks_waiting",
}
"""Not totals of a run but what happened to be there at its end."""


class Moved(msgspec.Struct, frozen=True):
    """A counter that moved: its median, and median, lowest and highest with all patches on."""

    median: float
    all_on: float
    lowest: float
    highest: float

    @property
    def factor(self) -> float:
        """By how many doublings (down: halvings, below 0) it changed."""
        return log2((self.median + 1) / (self.all_on + 1))


class Row(msgspec.Struct, kw_only=True):
    """Runs with the patches in `off` turned off. Times are medians in seconds from the start of the workload, over
    the runs that have one; `slowdown` compares `finished_after_s` with that of all patches on.

    `witness`: whether the runs showed that what is off was off: False if a patch that is off was seen at work, None
    if nothing had an occasion to show. `survived` counts runs.
    """

    off: list[int]
    runs: int
    survived: int
    outcomes: dict[Outcome, int]
    witness: bool | None
    finished_after_s: float | None
    stalled_after_s: float | None
    slowdown: float | None
    reserve_min_free: float | None
    counters: dict[str, float]
    moved: dict[str, Moved]
    evidence: str
    warnings: list[str]


def row(trials: Sequence[Trial], all_on: Sequence[Trial]) -> Row:
    """The row of runs with the same patches, at least one."""
    sound = [each for each in trials if each.survived is not None]
    reference = [each for each in all_on if each.survived is not None]
    finished, base = _median(sound, "finished_after_s"), _median(reference, "finished_after_s")
    counters = medians(sound)
    return Row(
        off=trials[0].off,
        runs=len(trials),
        survived=sum(each.survived is True for each in trials),
        outcomes=dict(Counter(each.outcome for each in trials)),
        witness=witness(sound),
        finished_after_s=finished,
        stalled_after_s=_median(sound, "stalled_after_s"),
        slowdown=finished / base if finished and base else None,
        reserve_min_free=counters.get("reserve_min_free"),
        counters=counters,
        moved=moved(counters, reference),
        evidence=next((each.evidence for each in trials if not each.survived), ""),
        warnings=sorted({line for each in trials for line in each.warnings}),
    )


def medians(trials: Sequence[Trial]) -> dict[str, float]:
    """The median of each counter."""
    return {name: median(_values(trials, name)) for name in sorted({name for each in trials for name in each.counters})}


def moved(counters: dict[str, float], reference: Sequence[Trial]) -> dict[str, Moved]:
    """The counters outside what the reference runs have shown, those that changed by the largest factor first."""
    changes = {}
    for name, value in counters.items():
        known = _values(reference, name)
        if known and name not in GAUGES and not min(known) <= value <= max(known):
            changes[name] = Moved(value, median(known), min(known), max(known))
    return dict(sorted(changes.items(), key=lambda item: -abs(item[1].factor)))


def witness(trials: Iterable[Trial]) -> bool | None:
    """Whether the patches that are off were seen to be off."""
    shown = None
    for each in trials:
        for number in each.off:
            seen = each.witnesses.get(str(number))
            if seen is not None and seen.witness:
                return False
            if seen is not None and seen.opportunity:
                shown = True
    return shown


def name(off: Sequence[int]) -> str:
    """A set of patches for people, by what is off."""
    if not off:
        return "all on"
    if len(off) == len(PATCHES):
        return "all off"
    if len(off) <= len(PATCHES) // 2:
        return f"without {', '.join(map(str, off))}"
    return f"only {', '.join(str(number) for number in PATCHES if number not in off)}"


def number(value: float) -> str:
    """A count, or a median of counts, for people."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _values(trials: Sequence[Trial], counter: str) -> list[int]:
    return [each.counters.get(counter, 0) for each in trials]


def _median(trials: Sequence[Trial], field: str) -> float | None:
    values: list[Any] = [value for each in trials if (value := getattr(each, field)) is not None]
    return round(median(values), 3) if values else None
