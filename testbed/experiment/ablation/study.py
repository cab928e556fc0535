"""A whole ablation: which runs it makes, and what it concludes from those that were made.

All on, all off, and each patch off alone. A patch that builds on one that is off stays on then, and does what it can
do without: its warning is in the row. Then the smallest set that survives is looked for, and gets a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from testbed.experiment.ablation.disagreements import Disagreement, compare, compare_minimal
from testbed.experiment.ablation.minimal_set import MEANING, MinimalSet, find
from testbed.experiment.ablation.predictions import MINIMAL_SET, ROBUST_SET
from testbed.experiment.ablation.rows import Row, name, row
from testbed.experiment.ablation.trials import Trial, Trials
from testbed.experiment.errors import CannotRun
from testbed.patches import PATCHES, with_bases


class Ablation(msgspec.Struct, kw_only=True):
    """The whole of `ablate.json`. `minimal_set` has the patches that were on, and is None if none was found or looked
    for; `errors` has a line for each run of which it cannot be said whether the host survived. `complete` is False
    if it was interrupted. On a real kernel (`host`) `refused` says of some patches why it cannot undo them, and
    `emulated` are the same rows on the model."""

    topology: str
    simulated: bool
    seeds: list[int]
    runs: int
    rows: list[Row] = []
    minimal_set: list[int] | None = None
    established: str = ""
    sets_tried: int = 0
    predicted_set: list[int] = []
    disagreements: list[Disagreement] = []
    errors: list[str] = []
    complete: bool = False
    arguments: dict[str, Any] = {}
    version: str = ""
    directory: str = ""
    host: str = ""
    refused: dict[str, str] = {}
    emulated: list[Row] = []

    @property
    def all_on(self) -> Row | None:
        """The row with all patches on, if there is one yet."""
        return next((each for each in self.rows if not each.off), None)


@dataclass
class Study:
    """What is to be found out: `candidates` are the patches to turn off, `flooded` whether there is other traffic."""

    everything: frozenset[int]
    candidates: frozenset[int]
    flooded: bool
    exhaustive: bool
    found: MinimalSet | None = None
    searched: bool = False

    def sets(self) -> list[frozenset[int]]:
        """The sets of patches that get a row whatever comes out."""
        return [self.everything, frozenset(), *(self.everything - {number} for number in sorted(self.candidates))]

    def carry_out(self, trials: Trials, say: Callable[[str], None]) -> None:
        """Make all runs. Raises CannotRun if no run with all patches on can be judged."""
        trials.make((self.everything, seed) for seed in trials.seeds)
        reference = trials.of(self.everything)
        if all(each.survived is None for each in reference):
            raise CannotRun(f"no run with all patches on could be judged: {_error(reference[0])}")
        trials.make((patches, seed) for patches in self.sets() for seed in trials.seeds)
        say("looking for the smallest set of patches that survives")
        needed = frozenset(number for number in self.candidates if trials.dies(self.everything - {number}))
        self.found = find(trials, self.everything, self.candidates, needed, self.exhaustive)
        self.searched = True

    def conclude(self, trials: Trials, ablation: Ablation) -> Ablation:
        """Fill in what the runs made so far have shown."""
        predicted = ROBUST_SET if self.flooded else MINIMAL_SET
        ablation.runs = len(trials)
        ablation.rows = self.rows(trials)
        ablation.predicted_set = sorted(with_bases(predicted))
        ablation.errors = [_error(each) for each in trials.undecided()]
        ablation.complete = self.searched
        all_on = ablation.all_on
        if all_on is not None:
            ablation.disagreements = [found for each in ablation.rows if (found := compare(each, all_on))]
        if self.found is not None:
            self._add_minimal(ablation, self.found, predicted)
        elif self.searched:
            ablation.established = "no set was found: not even all patches survive every seed"
        return ablation

    def rows(self, trials: Trials) -> list[Row]:
        """A row for each set of patches of which there is a run."""
        reference = trials.of(self.everything)
        sets = self.sets() if self.found is None else [*self.sets(), self.found.patches]
        return [row(made, reference) for patches in dict.fromkeys(sets) if (made := trials.of(patches))]

    def _add_minimal(self, ablation: Ablation, found: MinimalSet, predicted: frozenset[int]) -> None:
        ablation.minimal_set = sorted(found.patches)
        ablation.established = MEANING[found.established]
        ablation.sets_tried = found.tried
        if self.candidates != frozenset(PATCHES):
            kept = ", ".join(map(str, sorted(self.candidates)))
            ablation.established += f"; only {kept} and what builds on them were to be turned off"
        elif difference := compare_minimal(found, predicted):
            ablation.disagreements.append(difference)


def _error(trial: Trial) -> str:
    reason = trial.evidence if trial.outcome == "error" else f"accounts do not hold: {', '.join(trial.failed_checks)}"
    return f"{name(trial.off)}, seed {trial.seed}: {reason}"
