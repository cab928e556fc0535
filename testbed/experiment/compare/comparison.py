"""A whole comparison: what `compare.json` holds, and how it follows from the runs.

The most real of the hosts is the reference. Every way in which another one differs from it is a disagreement, with an
explanation if there is one: a known difference, a median that lies within the reference's own spread, or a count that
comes from so few moments that chance decides it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from testbed.experiment.compare.agreement import (
    BOUNDS,
    CounterAgreement,
    Measured,
    commonest,
    count_outcomes,
    in_bounds,
    majority,
    measure,
    outcomes_agree,
    over_cells,
    repeatability,
    share,
)
from testbed.experiment.compare.explanations import blocks_too_small, drops_by_chance, explain, few_moments
from testbed.experiment.compare.runs import HOSTS, Cell, Host, Run
from testbed.experiment.result import Outcome


class Disagreement(msgspec.Struct, frozen=True):
    """Where a host differs from the reference: in its `outcome`, or in a counter. `explanation` None: not known."""

    cell: str
    what: str
    host: Host
    measured: str
    reference: str
    explanation: str | None

    @property
    def is_open(self) -> bool:
        """Would more runs say more? Chance decides outcomes, and what is not understood may be chance."""
        return self.what == "outcome" or self.explanation is None


class CellResult(msgspec.Struct, kw_only=True):
    """What came out under the same conditions. `completed` are the runs that came to the end of their work. `agree`:
    whether all hosts have the reference's outcome, None if one has no run that could be judged. `counters` are those
    that every host has."""

    name: str
    arguments: dict[str, Any]
    outcomes: dict[Host, dict[Outcome, int]] = {}
    completed: dict[Host, int] = {}
    counters: dict[str, dict[Host, Measured]] = {}
    agree: bool | None = None

    @property
    def completion_agrees(self) -> bool | None:
        """Whether most runs of all hosts completed, or most of none; None if a host has no run that could be judged."""
        if self.agree is None:
            return None
        judged = {host: sum(found.values()) - found.get("error", 0) for host, found in self.outcomes.items()}
        return len({majority(self.completed[host], of) for host, of in judged.items()}) == 1


class Refused(msgspec.Struct, frozen=True):
    """A cell that cannot exist, and why."""

    name: str
    arguments: dict[str, Any]
    reason: str


class Comparison(msgspec.Struct, kw_only=True):
    """The whole of `compare.json`. `outcome_agreement` is the part of the cells, of those that could be judged, in
    which the outcomes agree, and `completion_agreement` the part in which most runs of every host came to the end of
    their work, or most of none did, whatever else they found. `repeatability` is how often two runs of a host in one
    cell had the same outcome (None: nothing was run twice): the reference's is what a perfect model would reach.
    `counters` is that for each counter which has bounds. `errors` has a line for each run that broke down. `complete`
    is False if some runs are missing."""

    topology: str
    hosts: list[Host]
    reference: Host
    seed: int
    repetitions: int
    runs: int = 0
    cells: list[CellResult] = []
    refused: list[Refused] = []
    outcome_agreement: float | None = None
    completion_agreement: float | None = None
    repeatability: dict[Host, float | None] = {}
    counters: list[CounterAgreement] = []
    disagreements: list[Disagreement] = []
    errors: list[str] = []
    complete: bool = False
    arguments: dict[str, Any] = {}
    version: str = ""
    directory: str = ""

    @property
    def others(self) -> list[Host]:
        """The hosts that are held against the reference."""
        return [host for host in self.hosts if host != self.reference]

    def conclude(self, cells: Sequence[Cell], runs: Sequence[Run], wanted: int) -> None:
        """Fill in what the runs made so far, of so many `wanted`, have shown."""
        by_cell: dict[str, list[Run]] = {cell.name: [] for cell in cells}
        for each in runs:
            by_cell[each.cell].append(each)
        self.runs = len(runs)
        self.cells = [self._cell(cell, by_cell[cell.name]) for cell in cells if by_cell[cell.name]]
        self.outcome_agreement = share(cell.agree for cell in self.cells)
        self.completion_agreement = share(cell.completion_agrees for cell in self.cells)
        self.repeatability = {host: repeatability(cell.outcomes[host] for cell in self.cells) for host in self.hosts}
        self.counters = [found for host in self.others for found in self._over_cells(host, by_cell)]
        self.disagreements = [found for cell in self.cells for found in self._disagreements(cell, by_cell[cell.name])]
        self.errors = [f"{', '.join(map(str, e.key))}: {e.evidence}" for e in runs if e.outcome == "error"]
        self.complete = self.runs == wanted

    def _cell(self, cell: Cell, runs: Sequence[Run]) -> CellResult:
        by_host = {host: [each for each in runs if each.host == host] for host in self.hosts}
        outcomes = {host: count_outcomes([each.outcome for each in made]) for host, made in by_host.items()}
        completed = {host: sum(each.completed for each in made) for host, made in by_host.items()}
        result = CellResult(name=cell.name, arguments=dict(cell.arguments), outcomes=outcomes, completed=completed)
        agreed = [outcomes_agree(outcomes[host], outcomes[self.reference]) for host in self.others]
        result.agree = None if None in agreed else all(agreed)
        sound = {host: [each for each in made if each.outcome != "error"] for host, made in by_host.items()}
        if all(sound.values()):
            result.counters = {name: self._counter(name, sound) for name in _common(sound)}
        return result

    def _counter(self, name: str, runs: Mapping[Host, Sequence[Run]]) -> dict[Host, Measured]:
        measured = {host: measure([each.counters[name] for each in runs[host]]) for host in self.hosts}
        reference = measured[self.reference]
        return {host: found if host == self.reference else found.against(reference) for host, found in measured.items()}

    def _over_cells(self, host: Host, by_cell: Mapping[str, Sequence[Run]]) -> Iterator[CounterAgreement]:
        cells = [cell for cell in self.cells if cell.agree and "deadlock" not in commonest(cell.outcomes[host])]
        for counter in BOUNDS:
            held = [cell for cell in cells if counter in cell.counters]
            if held:
                reference = [self._values(counter, self.reference, by_cell[cell.name]) for cell in held]
                yield over_cells(counter, host, [cell.counters[counter][host].ratio for cell in held], reference)

    @staticmethod
    def _values(counter: str, host: Host, runs: Sequence[Run]) -> list[int]:
        return [run.counters[counter] for run in runs if run.host == host and run.outcome != "error"]

    def _disagreements(self, cell: CellResult, runs: Sequence[Run]) -> Iterator[Disagreement]:
        for host in self.others:
            ours, theirs = cell.outcomes[host], cell.outcomes[self.reference]
            if outcomes_agree(ours, theirs) is False:
                of_both = [run for run in runs if run.host in (host, self.reference) and run.outcome != "error"]
                why = drops_by_chance(of_both) or blocks_too_small(of_both)
                yield Disagreement(cell.name, "outcome", host, in_words(ours), in_words(theirs), why)
            elif "deadlock" not in commonest(theirs):
                yield from self._counters_out_of_bounds(cell, host, runs)

    def _counters_out_of_bounds(self, cell: CellResult, host: Host, runs: Sequence[Run]) -> Iterator[Disagreement]:
        medians = {
            each: {name: measured[each].median for name, measured in cell.counters.items()}
            for each in (host, self.reference)
        }
        for counter, measured in cell.counters.items():
            found, reference = measured[host], measured[self.reference]
            if in_bounds(counter, found.ratio):
                continue
            less = found.median < reference.median
            why = "within the spread of the reference's own runs" if found.within else None
            why = why or few_moments(
                found.ratio, *(_moments(counter, each, runs) for each in (host, self.reference))
            )
            why = why or explain(counter, host, self.reference, cell.arguments, medians, less=less)
            yield Disagreement(cell.name, counter, host, spelled(found), spelled(reference), why)


def _moments(counter: str, host: Host, runs: Sequence[Run]) -> float | None:
    """How many all runs of a host have together; None if one does not tell."""
    each = [run.moments.get(counter) for run in runs if run.host == host and run.outcome != "error"]
    known = [found for found in each if found is not None]
    return sum(known) if len(known) == len(each) else None


def reference_of(hosts: Sequence[Host]) -> Host:
    """The most real of these hosts."""
    return min(hosts, key=HOSTS.index)


def in_words(outcomes: Mapping[Outcome, int]) -> str:
    """How often each outcome occurred, for people."""
    return ", ".join(f"{outcome} {count}" for outcome, count in outcomes.items()) or "none"


def spelled(measured: Measured) -> str:
    """A median and what it lies between, for people."""
    lowest, highest = measured.spread
    between = "" if lowest == highest else f" ({lowest:,.0f} to {highest:,.0f})"
    return f"{measured.median:,.0f}{between}"


def _common(runs: Mapping[Host, Sequence[Run]]) -> list[str]:
    """The counters that all runs of all hosts have."""
    names = [frozenset(each.counters) for made in runs.values() for each in made]
    return sorted(frozenset.intersection(*names))
