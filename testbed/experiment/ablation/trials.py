"""Runs of one topology with different patches, each made once: what an ablation keeps of them, and who survived.

A host survived if its workload finished without a longer stall and every page was read back as written: the checks
`progress` and `integrity`. The verdict itself may still be `fail`, since without patch 9, say, nothing is dropped.
Whether a run survived cannot be said (None) if the rig broke down, or if its accounts do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from testbed.experiment.result import Outcome, Result, Witness
from testbed.patches import PATCHES

Key = tuple[frozenset[int], int]
"""The patches that are on, and the seed."""
RunMany = Callable[[Sequence[Key]], Iterator[tuple[Key, Result]]]
"""Makes runs, and yields each as it ends, in any order."""

SURVIVAL = ("progress", "integrity")
ACCOUNTS = ("canary before", "conservation")


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One run, and what an ablation needs of it. `off` are the patches that were off; times are in seconds from the
    start of the workload, and None where it did not stall, or did not finish before a stall; `evidence` is what the
    check of progress saw."""

    off: list[int]
    seed: int
    outcome: Outcome
    survived: bool | None
    finished_after_s: float | None
    stalled_after_s: float | None
    elapsed_s: float
    failed_checks: list[str]
    evidence: str
    counters: dict[str, int]
    witnesses: dict[str, Witness]
    warnings: list[str]
    directory: str


def trial(on: frozenset[int], result: Result) -> Trial:
    """What is kept of a result."""
    checks = {check.name: check for check in result.checks}
    failed = [check.name for check in result.checks if check.ok is False]
    progress = checks.get("progress")
    return Trial(
        off=sorted(frozenset(PATCHES) - on),
        seed=result.seed,
        outcome=result.outcome,
        survived=survived(result),
        finished_after_s=(result.workload.seconds or None) if result.stalled_after_s is None else None,
        stalled_after_s=result.stalled_after_s,
        elapsed_s=result.elapsed_s,
        failed_checks=failed,
        evidence=result.error or ("" if progress is None else progress.evidence),
        counters=result.counters | {"reserve_min_free": result.memory.reserve_min_free},
        witnesses=result.witnesses,
        warnings=result.warnings,
        directory=result.directory,
    )


def survived(result: Result) -> bool | None:
    """Whether the host came through, or None if the run cannot tell."""
    held = {check.name for check in result.checks if check.ok}
    if result.outcome == "error" or not held.issuperset(ACCOUNTS):
        return None
    return held.issuperset(SURVIVAL)


def how_it_ended(trial: Trial) -> str:
    """What became of a run, after its outcome."""
    if trial.outcome == "error":
        return f": {trial.evidence}"
    if trial.survived is None:
        return f", cannot be judged ({', '.join(trial.failed_checks)})"
    if trial.survived:
        return f", survived in {trial.finished_after_s:.1f} s" if trial.finished_after_s else ", survived"
    return f", stuck after {trial.stalled_after_s:.1f} s" if trial.stalled_after_s is not None else ", did not finish"


class Trials:
    """All runs made so far; what was run once is not run again.

    Args:
        run_many: makes runs.
        seeds: for each set of patches, one run with each of them.
        record: is told of each run when it has ended.
        at_once: how many runs are made at the same time.
    """

    def __init__(
        self, run_many: RunMany, seeds: Sequence[int], record: Callable[[Trial], None], at_once: int = 1
    ) -> None:
        self.seeds = seeds
        self._at_once = at_once
        self._run_many = run_many
        self._record = record
        self._done: dict[Key, Trial] = {}

    def make(self, wanted: Iterable[Key]) -> None:
        """Make those of the wanted runs that have not been made."""
        missing = [key for key in dict.fromkeys(wanted) if key not in self._done]
        for key, result in self._run_many(missing):
            self._done[key] = trial(key[0], result)
            self._record(self._done[key])

    def of(self, patches: frozenset[int]) -> list[Trial]:
        """The runs made with these patches on, in the order of the seeds."""
        return [self._done[patches, seed] for seed in self.seeds if (patches, seed) in self._done]

    def dies(self, patches: frozenset[int]) -> bool:
        """Whether some seed was seen not to be survived with these patches."""
        return any(each.survived is False for each in self.of(patches))

    def survivors(self, sets: Iterable[frozenset[int]]) -> list[frozenset[int]]:
        """Those of the sets that survive every seed.

        So many seeds are tried together that there are runs for all who make them; a set is given up when one of them
        is not survived.
        """
        left, untried = list(sets), list(self.seeds)
        while left and untried:
            number = max(1, self._at_once // len(left))
            seeds, untried = untried[:number], untried[number:]
            self.make((patches, seed) for patches in left for seed in seeds)
            left = [patches for patches in left if all(each.survived for each in self.of(patches))]
        return left

    def undecided(self) -> list[Trial]:
        """The runs of which it cannot be said whether the host survived."""
        return [each for each in self._done.values() if each.survived is None]

    def __len__(self) -> int:
        return len(self._done)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._done.values())
