"""`testbed compare`: from the command line to an exit status.

Status 0: the hosts agree, or every disagreement is explained; 1: not so; 2: it could not run, was interrupted, or a run
could not be judged.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import get_args

from rich.console import Console

from testbed.experiment import preflight
from testbed.experiment.acting import acting
from testbed.experiment.arguments import (
    RunOptions,
    add_condition_options,
    add_patch_options,
    count,
    options_from,
    parse_path,
)
from testbed.experiment.cluster import Cluster
from testbed.experiment.command import CANNOT_RUN, EXPECTED, UNEXPECTED
from testbed.experiment.compare import grid
from testbed.experiment.compare.comparison import Comparison, Refused, reference_of
from testbed.experiment.compare.figure import draw
from testbed.experiment.compare.output import CompareDirectory, Request, stored_request
from testbed.experiment.compare.runs import Cell, Host, Key, Run, run
from testbed.experiment.compare.table import show
from testbed.experiment.drawing import NoFigure
from testbed.experiment.errors import CannotRun
from testbed.experiment.execution import Job, OneByOne, Workers
from testbed.experiment.load import load_topology
from testbed.experiment.many_runs import publish
from testbed.experiment.plan import Plan, resolve
from testbed.experiment.progress import Progress
from testbed.experiment.report import wide
from testbed.experiment.topology import TopologyError
from testbed.experiment.version import project_version
from testbed.hosts.kernel.switches import boot_parameters
from testbed.lab.errors import LabError
from testbed.patches import KERNEL_PRESET, check_acting

DEFAULT_HOSTS: tuple[Host, ...] = ("emulated", "kernel")


@dataclass(frozen=True, slots=True)
class Task:
    """What was asked for: which cells, on which hosts, how often each (and how often those in which the hosts differ),
    and who makes the runs."""

    name: str
    cells: list[Cell]
    refused: list[Refused]
    hosts: tuple[Host, ...]
    repetitions: int
    repetitions_if_differing: int
    workers: int
    cluster: str | None
    options: RunOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `testbed compare`."""
    parser.add_argument("topology", type=parse_path, nargs="?", metavar="TOPOLOGY.py")
    parser.add_argument("--grid", action="store_true", help="compare under many conditions instead of on a topology")
    parser.add_argument("--cells", type=count(1), metavar="N", help="so many of the grid's cells (default: all)")
    parser.add_argument(
        "--hosts",
        type=_hosts,
        default=DEFAULT_HOSTS,
        metavar="HOST,HOST",
        help=f"two or more of {', '.join(get_args(Host))} (default {','.join(DEFAULT_HOSTS)})",
    )
    parser.add_argument(
        "--repetitions", type=count(1), default=1, metavar="N", help="runs on each host (default %(default)s)"
    )
    parser.add_argument(
        "--repetitions-if-differing",
        type=count(1),
        metavar="N",
        help="where the hosts differ after --repetitions, in outcome or unexplained, go on to N runs on each host",
    )
    parser.add_argument("--workers", type=count(1), default=1, metavar="N", help="runs at a time (default %(default)s)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="make the runs on this dask.distributed cluster")
    add_patch_options(parser)
    add_condition_options(parser)
    parser.set_defaults(preset=KERNEL_PRESET, driver="vector", expect="pass", trace=False)


def _hosts(text: str) -> tuple[Host, ...]:
    known: dict[str, Host] = {host: host for host in get_args(Host)}
    try:
        hosts = tuple(known[name] for name in text.split(","))
    except KeyError as unknown:
        raise argparse.ArgumentTypeError(f"{unknown} is not one of {', '.join(known)}") from None
    if len(set(hosts)) < max(2, len(hosts)):
        raise argparse.ArgumentTypeError("name two or three different hosts, such as emulated,kernel")
    return hosts


def command(space: argparse.Namespace, unknown: Sequence[str], words: Sequence[str]) -> int:
    """Carry out `testbed compare`; `unknown` are words for the topology. Raises CannotRun, PatchError."""
    options = options_from(space, str(space.topology or ""), words)
    if space.host is not None:
        raise CannotRun("compare runs on several hosts: use --hosts")
    if space.grid == (space.topology is not None):
        raise CannotRun("compare needs either a topology or --grid (see testbed compare --help)")
    if space.seed is None and options.out is not None and (stored := stored_request(options.out.absolute())):
        options = replace(options, seed=stored.seed)
    make = _grid if space.grid else _one
    return compare(make(space, unknown, options))


def _one(space: argparse.Namespace, unknown: Sequence[str], options: RunOptions) -> Task:
    """A comparison on a topology."""
    if space.cells is not None:
        raise CannotRun("--cells goes with --grid")
    topology, unused = load_topology(space.topology, unknown)
    if unused:
        raise CannotRun(f"unrecognized arguments: {' '.join(unused)} (see testbed compare --help)")
    cell = Cell(topology.name, topology, options, options.as_arguments())
    return Task(topology.name, [cell], [], *_who(space), options)


def _grid(space: argparse.Namespace, unknown: Sequence[str], options: RunOptions) -> Task:
    """A comparison on the grid, or on a sample of it."""
    if unknown:
        raise CannotRun(f"unrecognized arguments: {' '.join(unknown)} (see testbed compare --help)")
    if set_here := [name for name in grid.SETS if getattr(options.overrides, name) is not None]:
        raise CannotRun(f"the grid sets {', '.join(set_here)} itself")
    if options.without:
        raise CannotRun("the grid has cells with the patches and cells without: it takes no --vanilla or --without")
    cells, refused = grid.choose(options, space.cells, options.seed)
    return Task("grid", cells, refused, *_who(space), options)


def _who(space: argparse.Namespace) -> tuple[tuple[Host, ...], int, int, int, str | None]:
    """Raises CannotRun."""
    most = space.repetitions if space.repetitions_if_differing is None else space.repetitions_if_differing
    if most < space.repetitions:
        raise CannotRun(f"--repetitions-if-differing {most} is less than --repetitions {space.repetitions}")
    return space.hosts, space.repetitions, most, space.workers, space.cluster


def compare(task: Task) -> int:
    """Make the runs that are missing, write down and show what came out; returns the exit status. Raises CannotRun."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _check(task)
    options = task.options
    comparison = Comparison(
        topology=task.name,
        hosts=list(task.hosts),
        reference=reference_of(task.hosts),
        seed=options.seed,
        repetitions=task.repetitions,
        refused=task.refused,
        arguments=options.as_arguments(),
        version=project_version(),
    )
    console = wide(Console(stderr=options.json))
    request = Request(task.name, list(task.hosts), options.seed, _common(options))
    with CompareDirectory.create(request, options.out) as directory:
        comparison.directory = str(directory.path)
        runs, trouble = _carry_out(_Rig(task, directory, console), comparison)
        directory.finish(comparison)
        remarks = [trouble, _draw(runs, directory.path) if len(task.cells) == 1 else None]
    publish(console, comparison, comparison.directory, lambda: _show(console, comparison), json=options.json)
    for line in filter(None, remarks):
        print(f"testbed: {line}", file=sys.stderr)
    return CANNOT_RUN if trouble else status(comparison)


def _check(task: Task) -> None:
    """Refuse early what this machine cannot run; a cluster's workers see for themselves."""
    for cell in task.cells:
        for host in task.hosts:
            _, topology, options = cell.job(host, 0, Path())
            try:
                plan = resolve(topology, options.overrides)
            except TopologyError as error:
                raise CannotRun(str(error)) from None
            _check_patches(host, plan, options)
            if host == "simulated":
                preflight.check_simulated(plan)
            elif task.cluster is None:
                preflight.check(plan)


def _check_patches(host: Host, plan: Plan, options: RunOptions) -> None:
    """Refuse to switch off what no client of the plan can show. Raises CannotRun, PatchError."""
    if host == "kernel":
        try:
            for client in plan.clients:
                boot_parameters(options.patches, client.slab)
        except LabError as error:
            raise CannotRun(str(error)) from None
    check_acting(options.patches, acting(plan.clients, plan.schedule), options.force)


def _common(options: RunOptions) -> dict[str, object]:
    """What makes runs comparable, but for what is said of each cell."""
    arguments = options.as_arguments()
    return {name: value for name, value in arguments.items() if name not in ("argv", "expect", "trace")}


@dataclass(frozen=True, slots=True)
class _Rig:
    """Where runs are made, written down, and shown."""

    task: Task
    directory: CompareDirectory
    console: Console

    def keys(self, cells: Sequence[str], repetitions: int) -> list[Key]:
        """All runs in these cells, those that belong together one after the other."""
        return [Key(cell, host, each) for cell, each, host in product(cells, range(repetitions), self.task.hosts)]

    def seed(self, key: Key) -> int:
        """Every host gets the same."""
        return self.task.options.seed + key.repetition

    def job_for(self, key: Key) -> Job:
        cell = next(each for each in self.task.cells if each.name == key.cell)
        return cell.job(key.host, self.seed(key), self.directory.for_key(key))

    def runner(self, progress: Progress) -> OneByOne[Key] | Workers[Key] | Cluster[Key]:
        if self.task.cluster is not None:
            return Cluster(self.job_for, self.task.cluster)
        if self.task.workers > 1:
            return Workers(self.job_for, self.task.workers)
        return OneByOne(self.job_for, lambda key: progress.starting(self.named(key)))

    def named(self, key: Key) -> str:
        return f"{key.cell}, {key.host}, seed {self.seed(key)}"


def _carry_out(rig: _Rig, comparison: Comparison) -> tuple[list[Run], str | None]:
    """Make the runs that are missing, and conclude from all; returns these, and what ended them early, in one line."""
    task = rig.task
    done = {each.key: each for each in rig.directory.runs}
    everywhere = rig.keys([cell.name for cell in task.cells], task.repetitions)
    trouble = _make(rig, everywhere, done)
    comparison.conclude(task.cells, [done[key] for key in everywhere if key in done], len(everywhere))
    differing = dict.fromkeys(found.cell for found in comparison.disagreements if found.is_open)
    wanted = dict.fromkeys(everywhere + rig.keys([*differing], task.repetitions_if_differing))
    trouble = trouble or _make(rig, wanted, done)
    runs = [done[key] for key in wanted if key in done]
    comparison.conclude(task.cells, runs, len(wanted))
    return runs, trouble


def _make(rig: _Rig, wanted: Collection[Key], done: dict[Key, Run]) -> str | None:
    """Make those of the wanted runs that are not done yet; returns what ended them early, in one line."""
    missing = [key for key in wanted if key not in done]
    with Progress(rig.console, len(missing)) as progress:
        if missing and len(missing) < len(wanted):
            progress.say(f"{len(wanted) - len(missing)} of {len(wanted)} runs were made before")
        try:
            with rig.runner(progress) as run_many:
                for key, result in run_many(missing):
                    done[key] = run(key, rig.seed(key), result)
                    rig.directory.record(done[key])
                    progress.ended(rig.named(key), result.outcome, _how_it_ended(done[key]))
        except KeyboardInterrupt:
            return "interrupted: the same command with the same --out goes on from here"
        except CannotRun as error:
            return str(error)
    return None


def _how_it_ended(run: Run) -> str:
    if run.outcome == "error":
        return f": {run.evidence}"
    return f" after {run.seconds:.1f} s" if run.seconds else ""


def _draw(runs: Sequence[Run], path: Path) -> str | None:
    """Draw the first repetition on each host."""
    first = {each.host: each for each in runs if each.repetition == 0 and each.outcome != "error"}
    if not first:
        return None
    try:
        draw(list(first.values()), path)
    except NoFigure as reason:
        return str(reason)
    return None


def _show(console: Console, comparison: Comparison) -> None:
    if comparison.cells:
        show(console, comparison)


def status(comparison: Comparison) -> int:
    """The exit status for what came out."""
    if comparison.errors or not comparison.complete:
        return CANNOT_RUN
    unexplained = any(found.explanation is None for found in comparison.disagreements)
    return UNEXPECTED if unexplained else EXPECTED
