"""Runs with a known answer: a function says what a run on a host with a seed comes to."""

from __future__ import annotations

from collections.abc import Callable

from testbed.experiment.arguments import RunOptions
from testbed.experiment.compare.runs import Cell, Host, Key, Run, run
from testbed.experiment.plan import Overrides
from testbed.experiment.result import Check, Memory, Outcome, Result, Workload
from testbed.experiment.topology import Topology
from testbed.patches import PATCHES
from tests.experiment.small import build

Fate = Callable[[str, RunOptions], Result]
COUNTERS = {"pswpin": 1000, "pswpout": 1000, "PFMemallocDrop": 50, "allocstall": 7, "nr_writeback": 3}


def result(outcome: Outcome = "pass", seed: int = 1, **counters: int) -> Result:
    """A result as it looks with this outcome."""
    return Result(
        outcome=outcome,
        checks=[Check("progress", outcome == "pass", "progress seen")],
        seed=seed,
        counters=COUNTERS | counters,
        memory=Memory(min=256, low=320, high=384, reserve_min_free=90),
        workload=Workload(seconds=0.0 if outcome == "deadlock" else 10.0),
        error="the rig broke" if outcome == "error" else None,
    )


def cell(name: str = "cell", topology: Topology | None = None) -> Cell:
    """Conditions whose only argument is their name."""
    options = RunOptions(frozenset(PATCHES), Overrides(preset="6.1"), 1)
    return Cell(name, topology or build(), options, {"name": name})


def runs(host: Host, outcomes: str, name: str = "cell", **counters: list[int]) -> list[Run]:
    """Runs on a host, one for each letter (p, f, d, e), with the counters of that place in the lists."""
    words: dict[str, Outcome] = {"p": "pass", "f": "fail", "d": "deadlock", "e": "error"}
    made = []
    for number, letter in enumerate(outcomes):
        counted = {key: values[number] for key, values in counters.items()}
        made.append(run(Key(name, host, number), 1 + number, result(words[letter], **counted)))
    return made
