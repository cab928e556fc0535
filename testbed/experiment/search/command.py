"""`testbed search`: from the command line to an exit status.

Status 0: the boundary was found, with both of its ends; 1: there is none in the range, or it is not certain; 2: it
could not run, or was interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from testbed.experiment import preflight
from testbed.experiment.ablation.trials import survived
from testbed.experiment.arguments import (
    RunOptions,
    add_condition_options,
    add_patch_options,
    count,
    options_from,
    parse_path,
)
from testbed.experiment.command import CANNOT_RUN, EXPECTED, UNEXPECTED
from testbed.experiment.errors import CannotRun
from testbed.experiment.execution import Job, OneByOne, Workers, on_real_sockets, on_virtual_time
from testbed.experiment.load import load_topology
from testbed.experiment.many_runs import ManyRunsDirectory, as_file, publish
from testbed.experiment.plan import resolve
from testbed.experiment.progress import Progress
from testbed.experiment.report import wide
from testbed.experiment.result import Outcome, Result
from testbed.experiment.search.conclusion import Search, conclude
from testbed.experiment.search.evidence import Evidence
from testbed.experiment.search.finder import Finder
from testbed.experiment.search.ladder import Ladder
from testbed.experiment.search.quantities import QUANTITIES, Quantity, Setting, bound, quantity
from testbed.experiment.topology import TopologyError
from testbed.experiment.version import project_version

RESULT = "search.json"
CONFIDENCE, REPETITIONS = 0.95, 14
AROUND = 4.0
"""How many times less, and more, than the topology's own value the search begins with."""
REACHED = 0.9
"""A flood that did not come up to this part of its rate was not the one that was asked for."""
NOT_JUDGED = 3
"""After so many runs in a row that cannot be judged there is no point in going on."""
Key = tuple[int, int]
"""A position, and the seed."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a search, a line of `runs.jsonl`; `survived` is None if it does not count."""

    value: float
    seed: int
    outcome: Outcome
    survived: bool | None
    flood_pps: float
    elapsed_s: float
    directory: str
    error: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `testbed search`."""
    parser.add_argument("topology", type=parse_path, metavar="TOPOLOGY.py")
    parser.add_argument("--find", choices=tuple(QUANTITIES), required=True, help="whose boundary is looked for")
    parser.add_argument("--low", metavar="N", help="begin with this much (default: a quarter of the topology's)")
    parser.add_argument("--high", metavar="N", help="and with this much (default: four times as much)")
    parser.add_argument(
        "--confidence", type=_confidence, default=CONFIDENCE, metavar="P", help="of the interval (default %(default)s)"
    )
    parser.add_argument(
        "--repetitions",
        type=count(1),
        default=REPETITIONS,
        metavar="N",
        help="most runs of one value (default %(default)s)",
    )
    parser.add_argument("--simulate", action="store_true", help="on virtual time, without root")
    parser.add_argument("--jobs", type=count(1), metavar="N", help="simulations at a time (default: processors)")
    add_patch_options(parser)
    add_condition_options(parser)
    parser.set_defaults(expect="pass", trace=False)


def _confidence(text: str) -> float:
    try:
        chance = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.5 <= chance < 1:
        raise argparse.ArgumentTypeError(f"must be from 0.5 to less than 1, not {text}")
    return chance


def run(space: argparse.Namespace, unknown: Sequence[str], words: Sequence[str]) -> int:
    """Carry out `testbed search`; `unknown` are words for the topology. Raises CannotRun, PatchError."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = options_from(space, str(space.topology), words)
    topology, unused = load_topology(space.topology, unknown)
    if unused:
        raise CannotRun(f"unrecognized arguments: {' '.join(unused)} (see testbed search --help)")
    try:
        plan = resolve(topology, options.overrides)
    except TopologyError as error:
        raise CannotRun(str(error)) from None
    (preflight.check_simulated if space.simulate else preflight.check)(plan)
    chosen = quantity(space.find, plan)
    setting = Setting(topology, options.overrides, plan)
    rig = Rig(setting, options, chosen, Ladder(chosen.more_is_harder), space.simulate, space.jobs)
    finder = rig.finder(space.low, space.high, space.confidence, space.repetitions)
    search = Search(
        find=space.find,
        unit=chosen.unit,
        confidence=space.confidence,
        topology=topology.name,
        simulated=space.simulate,
        arguments=options.as_arguments(),
        version=project_version(),
    )
    return carry_out(rig, finder, search)


@dataclass(frozen=True, slots=True)
class Rig:
    """What is to be run, with what changed, and how."""

    setting: Setting
    options: RunOptions
    quantity: Quantity
    ladder: Ladder
    simulate: bool
    jobs: int | None

    def finder(self, low: str | None, high: str | None, confidence: float, repetitions: int) -> Finder:
        """A search between what the command line says, or around what the topology has. Raises CannotRun."""
        current = self.quantity.current(self.setting.plan)
        least = current / AROUND if low is None else bound(self.quantity, low, "--low")
        most = current * AROUND if high is None else bound(self.quantity, high, "--high")
        if least >= most:
            raise CannotRun(f"--low must be less than --high, and {least:,g} is not less than {most:,g}")
        ends = self.ladder.position(least), self.ladder.position(most)
        start = min(max(self.ladder.position(current), min(ends)), max(ends))
        easiest, hardest = self._limit(start, -1), self._limit(start, 1)
        return Finder(Evidence(confidence), ends, easiest, hardest, repetitions)

    def _limit(self, position: int, step: int) -> int:
        """The furthest position that can be run, from one that can."""
        while self._possible(position + step):
            position += step
        return position

    def _possible(self, position: int) -> bool:
        value = self.ladder.value(position)
        if not self.quantity.least <= value <= self.quantity.most:
            return False
        try:
            plan = resolve(*self.quantity.change(self.setting.topology, self.options.overrides, value))
            if not self.simulate:
                preflight.check(plan)
        except (CannotRun, TopologyError):
            return False
        return True

    def job(self, key: Key, directory: ManyRunsDirectory) -> Job:
        """One run with a value and a seed."""
        value = self.ladder.value(key[0])
        topology, overrides = self.quantity.change(self.setting.topology, self.options.overrides, value)
        options = replace(
            self.options,
            overrides=overrides,
            seed=key[1],
            out=directory.for_run(f"{value:g}-seed-{key[1]}"),
        )
        return (on_virtual_time if self.simulate else on_real_sockets), topology, options

    def at_once(self, positions: list[int]) -> list[int]:
        """As many runs as there are processors for, if nothing but processors is needed."""
        if not self.simulate:
            return positions
        return positions * max(1, (self.jobs or os.cpu_count() or 1) // len(positions))

    def words(self, position: int) -> str:
        """A value for people."""
        return self.quantity.say(self.ladder.value(position))


def carry_out(rig: Rig, finder: Finder, search: Search) -> int:
    """Make the runs, write down and show what came out; returns the exit status. Raises CannotRun."""
    options, console = rig.options, wide(Console(stderr=rig.options.json))
    stamp = f"{search.topology}-search-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    with ManyRunsDirectory((options.out or Path("runs") / stamp).absolute(), "many runs") as directory:
        search.directory = str(directory.path)
        trouble = _Searching(rig, finder, search, directory, console).all()
        conclude(search, finder.evidence, rig.ladder, rig.quantity, rig.quantity.subject(rig.setting))
        search.complete = trouble is None
        (directory.path / RESULT).write_bytes(as_file(search))
    publish(console, search, search.directory, lambda: _show(console, search), json=options.json)
    if trouble is not None:
        print(f"testbed: {trouble}", file=sys.stderr)
        return CANNOT_RUN
    return EXPECTED if None not in (search.low, search.high) else UNEXPECTED


def _show(console: Console, search: Search) -> None:
    for line in [*search.remarks, search.sentence]:
        console.print(escape(line), highlight=False, soft_wrap=True)


@dataclass(slots=True)
class _Searching:
    """A search that is under way."""

    rig: Rig
    finder: Finder
    search: Search
    directory: ManyRunsDirectory
    console: Console
    made: int = 0
    in_vain: int = 0

    def all(self) -> str | None:
        """Make all runs; returns what ended them early, in one line."""
        with Progress(self.console, 0) as progress:
            runner: OneByOne[Key] | Workers[Key] = (
                Workers(self._job, self.rig.jobs)
                if self.rig.simulate
                else OneByOne(self._job, lambda key: progress.starting(self._name(key)))
            )
            with runner as run_many:
                try:
                    while positions := self.finder.next():
                        keys = [(position, self._seed()) for position in self.rig.at_once(positions)]
                        for key, result in run_many(keys):
                            self._take(key, result, progress)
                except KeyboardInterrupt:
                    return "interrupted"
                except CannotRun as error:
                    return str(error)
        return None

    def _job(self, key: Key) -> Job:
        return self.rig.job(key, self.directory)

    def _seed(self) -> int:
        self.made += 1
        return self.rig.options.seed + self.made - 1

    def _name(self, key: Key) -> str:
        return f"{self.rig.words(key[0])}, seed {key[1]}"

    def _take(self, key: Key, result: Result, progress: Progress) -> None:
        """A run has ended: it counts if it can be judged, and if it was the run that was asked for."""
        position, seed = key
        lived = survived(result)
        short = lived is True and not self._reached(position, result)
        counts = lived is not None and not short
        self.directory.record(
            Run(
                value=self.rig.ladder.value(position),
                seed=seed,
                outcome=result.outcome,
                survived=lived if counts else None,
                flood_pps=result.flood.pps,
                elapsed_s=result.elapsed_s,
                directory=result.directory,
                error=result.error,
            )
        )
        progress.ended(self._name(key), result.outcome, _how(lived, short, result))
        if counts:
            self.in_vain = 0
            self.finder.evidence.add(position, lived is True)
        elif short:
            self._cannot_reach(position, result)
        else:
            self._in_vain(key, result)

    def _reached(self, position: int, result: Result) -> bool:
        """Whether the floods were as fast as they were to be."""
        if self.search.find != "flood":
            return True
        return result.flood.pps >= REACHED * self.rig.ladder.value(position) * len(self.rig.setting.plan.floods)

    def _cannot_reach(self, position: int, result: Result) -> None:
        self.search.not_judged.append(f"{self.rig.words(position)}: the flood came to {result.flood.pps:,.0f} only")
        if position <= self.finder.easiest:
            raise CannotRun(f"this machine cannot make a flood of {self.rig.words(position)}: choose a lower --low")
        if position <= self.finder.hardest:
            self.finder.limit(position - 1)
            self.search.remarks.append(f"this machine cannot make a flood of {self.rig.words(position)}")

    def _in_vain(self, key: Key, result: Result) -> None:
        self.in_vain += 1
        failed = ", ".join(check.name for check in result.checks if check.ok is False)
        reason = result.error or f"accounts do not hold: {failed}"
        self.search.not_judged.append(f"{self._name(key)}: {reason}")
        if self.in_vain >= NOT_JUDGED:
            raise CannotRun(f"{NOT_JUDGED} runs in a row could not be judged: {reason}")


def _how(lived: bool | None, short: bool, result: Result) -> str:
    """What became of a run, after its outcome."""
    if short:
        return f", but the flood came to {result.flood.pps:,.0f} frames/s only"
    if lived is None:
        return f", cannot be judged{f': {result.error}' if result.error else ''}"
    return ", survived" if lived else ", not survived"
