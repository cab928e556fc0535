"""Runs with a known answer: a function says what becomes of a set of patches and a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from testbed.experiment.ablation.trials import Key, Trials
from testbed.experiment.arguments import RunOptions
from testbed.experiment.result import Check, Memory, Outcome, Result, Witness, Workload
from testbed.experiment.topology import Topology
from testbed.patches import PATCHES, without_base

ALL = frozenset(PATCHES)
Fate = Callable[[frozenset[int], int], Outcome]
CHECKS = ("canary before", "drops happen", "progress", "integrity", "conservation", "canary after")


def result(patches: frozenset[int] = ALL, seed: int = 1, outcome: Outcome = "pass", **counters: int) -> Result:
    """A result as it looks with this outcome; `fail` is that of a host that came through, but dropped nothing."""
    broken = {"pass": [], "fail": ["drops happen"], "deadlock": ["progress", "integrity"], "error": CHECKS}[outcome]
    stuck = outcome == "deadlock"
    return Result(
        outcome=outcome,
        checks=[Check(name, name not in broken, f"{name} seen") for name in CHECKS],
        patches=sorted(patches),
        seed=seed,
        elapsed_s=20.0,
        counters={"pswpout": 100 if stuck else 1000} | counters,
        memory=Memory(min=256, reserve_min_free=90 - seed),
        workload=Workload(tasks=16, finished_tasks=0 if stuck else 16, seconds=0.0 if stuck else 10.0 + seed),
        stalled_after_s=3.0 if stuck else None,
        witnesses={str(number): Witness(5, 5 * (number in patches), "what it does") for number in PATCHES},
        warnings=without_base(patches),
        error="the rig broke" if outcome == "error" else None,
    )


def trials(fate: Fate, seeds: Sequence[int] = (1, 2, 3), at_once: int = 1) -> tuple[Trials, list[Key]]:
    """Trials whose runs come out as `fate` says, and the list of the runs that are really made."""
    made: list[Key] = []

    def run_many(keys: Sequence[Key]) -> Iterator[tuple[Key, Result]]:
        for patches, seed in keys:
            made.append((patches, seed))
            yield (patches, seed), result(patches, seed, fate(patches, seed))

    return Trials(run_many, seeds, lambda trial: None, at_once), made


def needing(needed: frozenset[int]) -> Fate:
    """A host that survives if and only if these patches are on."""
    return lambda patches, seed: "pass" if needed <= patches else "deadlock"


def simulated(topology: Topology, options: RunOptions) -> Result:
    """One run, as a worker process makes it: 4 and 15 are needed, 15 only with some seeds."""
    needed = {4, 15} if options.seed % 2 else {4}
    return result(options.patches, options.seed, "fail" if needed <= options.patches else "deadlock")
