"""`testbed ablate`: from the command line to an exit status.

Status 0: with all patches on, every seed was survived; 1: not so; 2: it could not run, was interrupted, or a run could
not be judged.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from testbed.experiment import preflight
from testbed.experiment.ablation.figure import draw
from testbed.experiment.ablation.output import AblationDirectory
from testbed.experiment.ablation.rows import name
from testbed.experiment.ablation.study import Ablation, Study
from testbed.experiment.ablation.table import show
from testbed.experiment.ablation.trials import Key, Trial, Trials, how_it_ended
from testbed.experiment.arguments import RunOptions, add_condition_options, count, numbers, options_from, parse_path
from testbed.experiment.command import CANNOT_RUN, EXPECTED, UNEXPECTED
from testbed.experiment.drawing import NoFigure
from testbed.experiment.errors import CannotRun
from testbed.experiment.execution import Job, OneByOne, Workers, on_real_sockets, on_virtual_time
from testbed.experiment.load import load_topology
from testbed.experiment.many_runs import publish
from testbed.experiment.plan import Plan, resolve
from testbed.experiment.progress import Progress
from testbed.experiment.report import wide
from testbed.experiment.topology import Topology, TopologyError
from testbed.experiment.version import project_version
from testbed.hosts.kernel.switches import refusals
from testbed.hosts.plan import ClientHost
from testbed.patches import PATCHES, PatchError

SEEDS = 5


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; `options` holds for every run but for its patches, seed and directory. `candidates` are to be
    turned off, `refused` are all patches that a real kernel cannot undo, and why: they stay on whatever is off."""

    options: RunOptions
    seeds: tuple[int, ...]
    candidates: frozenset[int]
    refused: dict[int, str]
    exhaustive: bool
    simulate: bool
    jobs: int | None

    @property
    def turned_off(self) -> frozenset[int]:
        """The patches that are turned off alone."""
        return self.candidates - self.refused.keys()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `testbed ablate`."""
    parser.add_argument("topology", type=parse_path, metavar="TOPOLOGY.py")
    add_condition_options(parser)
    parser.add_argument(
        "--seeds", type=count(1), default=SEEDS, metavar="N", help="runs of each set of patches (default %(default)s)"
    )
    parser.add_argument("--patches", type=numbers, metavar="N[,N...]", help="turn off only these, each alone")
    parser.add_argument(
        "--exhaustive", action="store_true", help="try every smaller set of patches, to prove which is the smallest"
    )
    parser.add_argument("--simulate", action="store_true", help="on virtual time, without root")
    parser.add_argument("--jobs", type=count(1), metavar="N", help="simulations at a time (default: processors)")
    parser.set_defaults(vanilla=False, without=(), force=True, expect="pass", trace=False)


def run(space: argparse.Namespace, unknown: Sequence[str], words: Sequence[str]) -> int:
    """Carry out `testbed ablate`; `unknown` are words for the topology. Raises CannotRun, PatchError."""
    options = options_from(space, str(space.topology), words)
    topology, unused = load_topology(space.topology, unknown)
    if unused:
        raise CannotRun(f"unrecognized arguments: {' '.join(unused)} (see testbed ablate --help)")
    candidates = _candidates(space.patches, options)
    refused = _refused(topology, options)
    request = Request(
        options,
        tuple(range(options.seed, options.seed + space.seeds)),
        candidates,
        refused,
        space.exhaustive,
        space.simulate,
        space.jobs,
    )
    return ablate(topology, request)


def _candidates(chosen: Sequence[int] | None, options: RunOptions) -> frozenset[int]:
    if not options.patches:
        raise CannotRun(f"preset {options.overrides.preset} has no patches on that could be turned off")
    candidates = options.patches if chosen is None else frozenset(chosen)
    if unknown := sorted(candidates - options.patches):
        raise PatchError(f"there is no patch {unknown[0]}: the series has patches 1 to {len(PATCHES)}")
    return candidates


def _refused(topology: Topology, options: RunOptions) -> dict[int, str]:
    """The patches that stay on because a real kernel cannot undo them, and why."""
    if options.overrides.host != "kernel":
        return {}
    plan = _plan(topology, options)
    return refusals(plan.clients[0].slab)


def ablate(topology: Topology, request: Request) -> int:
    """Make the runs, write down and show what came out; returns the exit status. Raises CannotRun."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    flooded = _check(topology, request)
    options = request.options
    ablation = Ablation(
        topology=topology.name,
        simulated=request.simulate,
        seeds=list(request.seeds),
        runs=0,
        arguments=options.as_arguments() | {"patches": sorted(request.turned_off)},
        version=project_version(),
        host=options.overrides.host or "",
        refused={str(number): why for number, why in request.refused.items() if number in request.candidates},
    )
    console = wide(Console(stderr=options.json))
    with AblationDirectory.create(topology.name, options.out) as directory:
        ablation.directory = str(directory.path)
        study = Study(options.patches, request.turned_off, flooded, request.exhaustive)
        trouble = _carry_out(_Rig(topology, request, directory, console), study, ablation)
        directory.finish(ablation)
        remarks = [trouble, _draw(ablation, directory.path)]
    publish(console, ablation, ablation.directory, lambda: _show(console, ablation), json=options.json)
    for line in filter(None, remarks):
        print(f"testbed: {line}", file=sys.stderr)
    return CANNOT_RUN if trouble else status(ablation)


def _check(topology: Topology, request: Request) -> bool:
    """Refuse early what cannot be run; returns whether the topology has a flood."""
    plan = _plan(topology, request.options)
    (preflight.check_simulated if request.simulate else preflight.check)(plan)
    return any(flood.pps for flood in plan.floods)


def _plan(topology: Topology, options: RunOptions) -> Plan:
    try:
        return resolve(topology, options.overrides)
    except TopologyError as error:
        raise CannotRun(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Rig:
    """Where runs are made, written down, and shown. `host` None: on what the topology and the command line say."""

    topology: Topology
    request: Request
    directory: AblationDirectory
    console: Console
    host: ClientHost | None = None

    def job_for(self, key: Key) -> Job:
        run_once = on_virtual_time if self.request.simulate else on_real_sockets
        patches, seed = key
        options = self.request.options
        if self.host is not None:
            options = replace(options, overrides=replace(options.overrides, host=self.host))
        if patches and options.overrides.host == "kernel":
            patches = patches.union(self.request.refused)
        directory = self.directory.for_key(key, self.host or "")
        return run_once, self.topology, replace(options, patches=patches, seed=seed, out=directory)

    def named(self, off: Iterable[int], seed: int) -> str:
        host = f"{self.host}, " if self.host else ""
        return f"{host}{name(sorted(off))}, seed {seed}"

    def runner(self, progress: Progress) -> OneByOne[Key] | Workers[Key]:
        if self.request.simulate:
            return Workers(self.job_for, self.request.jobs)
        return OneByOne(self.job_for, lambda key: progress.starting(self.named(frozenset(PATCHES) - key[0], key[1])))

    def trials(self, run_many: OneByOne[Key] | Workers[Key], progress: Progress) -> Trials:
        def record(trial: Trial) -> None:
            self.directory.record(trial)
            progress.ended(self.named(trial.off, trial.seed), trial.outcome, how_it_ended(trial))

        return Trials(run_many, self.request.seeds, record, run_many.at_once)


def _carry_out(rig: _Rig, study: Study, ablation: Ablation) -> str | None:
    """Make all runs, and conclude from those that were made; returns what ended them early, in one line."""
    kernel = ablation.host == "kernel"
    planned = len(rig.request.seeds) * len(study.sets()) * (1 + kernel)
    with Progress(rig.console, planned) as progress, rig.runner(progress) as run_many:
        trials = rig.trials(run_many, progress)
        try:
            study.carry_out(trials, progress.say)
            if kernel:
                _emulate(replace(rig, host="emulated"), study, ablation, progress)
        except KeyboardInterrupt:
            return "interrupted"
        except CannotRun as error:
            return str(error)
        finally:
            study.conclude(trials, ablation)
    return None


def _emulate(rig: _Rig, study: Study, ablation: Ablation, progress: Progress) -> None:
    """The same rows on the model, to stand beside a real kernel's."""
    trials = rig.trials(rig.runner(progress), progress)
    try:
        trials.make((patches, seed) for patches in study.sets() for seed in rig.request.seeds)
    finally:
        ablation.emulated = study.rows(trials)


def _draw(ablation: Ablation, path: Path) -> str | None:
    if not ablation.rows:
        return None
    try:
        draw(ablation, path)
    except NoFigure as reason:
        return str(reason)
    return None


def _show(console: Console, ablation: Ablation) -> None:
    if ablation.rows:
        show(console, ablation)


def status(ablation: Ablation) -> int:
    """The exit status for what came out."""
    if ablation.errors or not ablation.complete:
        return CANNOT_RUN
    all_on = ablation.all_on
    return EXPECTED if all_on is not None and all_on.survived == all_on.runs else UNEXPECTED
