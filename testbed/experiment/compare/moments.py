"""How few moments a count comes from, and so how far two counts may differ by chance.

Counters of trouble do not rise evenly: a few moments in which memory is short bring all of it, some more than others.
Of a total of rises x that come at random (a compound Poisson process) the relative variance is sum(x²) / sum(x)², as if
it came from sum(x)² / sum(x²) rises that are all alike. That number is what is called moments here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from math import log, sqrt
from pathlib import Path

import msgspec

from testbed.experiment.compare.samples import lines_of

COUNTERS = ("PFMemallocDrop", "pgscan_direct_throttle", "allocstall")
DEVIATIONS = 2.0
"""So many standard deviations apart the logarithms of two counts may be by chance."""
NONE_OF = 3.0
"""Where so many moments are to be expected, none at all comes once in twenty runs."""


def moments(rises: Iterable[int]) -> float:
    """How many rises of one size have the same relative variance as these; 0 if there are none."""
    total = squares = 0
    for rise in rises:
        total += rise
        squares += rise * rise
    return total * total / squares if squares else 0.0


def moments_of_run(directory: Path) -> dict[str, float]:
    """The moments of each counter in a run's samples, of all hosts that have it; {} if they cannot be read."""
    series: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    try:
        for line in lines_of(directory / "counters.jsonl"):
            for name in COUNTERS:
                if name in line.counters:
                    series[name, line.host].append(line.counters[name])
    except (OSError, msgspec.MsgspecError):
        return {}
    rises: defaultdict[str, list[int]] = defaultdict(list)
    for (name, _), values in series.items():
        rises[name] += [later - earlier for earlier, later in pairwise(values) if later > earlier]
    return {name: moments(each) for name, each in rises.items()}


def by_chance(ratio: float | None, ours: float, theirs: float) -> bool:
    """May two counts that come from so many moments differ by this ratio by chance? None, 0: one counted nothing."""
    if not ratio:
        return max(ours, theirs) < NONE_OF
    return bool(ours and theirs) and abs(log(ratio)) <= DEVIATIONS * sqrt(1 / ours + 1 / theirs)
