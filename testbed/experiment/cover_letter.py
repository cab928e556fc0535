"""The swap test of the series' cover letter: four cases, one after the other, beside the figures it published.

The letter's machine had 2 GB of RAM, eight tasks per CPU, mappings of four times RAM and a swap file behind NBD. With
`--host kernel` each case runs on a real kernel, and on the model under the same rules.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.experiment import preflight
from testbed.experiment.arguments import Parser, RunOptions, add_condition_options, count, options_from
from testbed.experiment.command import CANNOT_RUN, EXPECTED, UNEXPECTED
from testbed.experiment.errors import CannotRun
from testbed.experiment.execution import Job, OneByOne, Workers, on_real_sockets, on_virtual_time
from testbed.experiment.plan import resolve
from testbed.experiment.report import STYLES, seconds, wide
from testbed.experiment.result import Result
from testbed.experiment.topology import SLAB_ALLOCATORS, Topology, TopologyError
from testbed.hosts.plan import ClientHost, SlabAllocator
from testbed.net.tcp_timer import TCP_RTO_MAX
from testbed.patches import PRESETS, PatchError

TIME_LIMIT_S = 7200.0
"""The letter's own test took more than an hour."""
STALL_LIMIT_S = TCP_RTO_MAX + 30
"""Without the series a segment that is sent again may be what the host goes on with, for a while: what stands still for
less than TCP waits before that has not locked up.
"""


@dataclass(frozen=True, slots=True)
class Published:
    """What the letter says of a case: whether the test completes, and its times in seconds, if it gives them."""

    completes: bool
    system_s: float | None = None
    user_system_s: float | None = None
    elapsed_s: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel: its slab allocator, and whether it has the series. `host` None: what the topology says."""

    slab: SlabAllocator
    series: bool
    host: ClientHost | None = None

    @property
    def name(self) -> str:
        """The case in a file name."""
        words = (self.slab, "series" if self.series else "vanilla", self.host)
        return "-".join(filter(None, words))

    @property
    def published(self) -> Published:
        """The letter's figures."""
        return PUBLISHED[replace(self, host=None)]

    def options(self, common: RunOptions, directory: Path) -> RunOptions:
        """The options of this case's run: what is common to all, with its kernel."""
        rules = common.overrides.preset if self.series or self.host else "vanilla"
        return replace(
            common,
            patches=PRESETS[rules].patches if self.series else frozenset(),
            overrides=replace(common.overrides, preset=rules, slab=self.slab, host=self.host),
            out=directory / self.name,
            expect="pass" if self.published.completes else "deadlock",
        )


PUBLISHED: dict[Case, Published] = {
    Case("slab", False): Published(True, 87.90, 91.93, 4174.37),
    Case("slab", True): Published(True, 73.45, 76.91, 2953.96),
    Case("slub", False): Published(False),
    Case("slub", True): Published(True),
}


class Entry(msgspec.Struct):
    """One case of the test and the whole of its result, for programs."""

    case: str
    result: Result


def main(topology: Topology, argv: Sequence[str]) -> int:
    """Run the cases that the command line asks for and print the table; returns the exit status.

    0: every case ended as in the letter; 1: one did not; 2: it could not run.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    space = _parser().parse_args(argv)
    try:
        common = options_from(space, f"{topology.name}.py", argv)
        _check(topology, common, space.simulate)
        console = wide(Console(stderr=common.json))
        directory = common.out or Path("runs") / f"{topology.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        results = _carry_out(space, topology, common, directory, console)
    except (CannotRun, PatchError, TopologyError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return CANNOT_RUN
    except KeyboardInterrupt:
        print("testbed: interrupted", file=sys.stderr)
        return CANNOT_RUN
    if common.json:
        entries = [Entry(case.name, result) for case, result in results.items()]
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n")
    show(console, results)
    return status(results)


def _carry_out(
    space: argparse.Namespace, topology: Topology, common: RunOptions, directory: Path, console: Console
) -> dict[Case, Result]:
    """Run the cases that the command line asks for, on virtual time several at once; a line for each that has ended."""
    run_once = on_virtual_time if space.simulate else on_real_sockets

    def job_for(case: Case) -> Job:
        return run_once, topology, case.options(common, directory)

    def say(case: Case, how: str = "...") -> None:
        console.print(f"{case.name} {how}", highlight=False, markup=False)

    chosen = cases(space.slab, ("kernel", "emulated") if space.host == "kernel" else (space.host,))
    results = {}
    runner = Workers(job_for, space.jobs) if space.simulate else OneByOne(job_for, say)
    with runner as run:
        for case, result in run(chosen):
            results[case] = result
            say(case, ended(result))
    return {case: results[case] for case in chosen}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="cover_letter.py", description="The swap test of the cover letter: four cases and a table.")
    add_condition_options(parser)
    parser.add_argument("--simulate", action="store_true", help="on virtual time, without root")
    parser.add_argument("--jobs", type=count(1), metavar="N", help="simulations at a time (default: processors)")
    parser.set_defaults(time_limit=TIME_LIMIT_S, stall_limit=STALL_LIMIT_S)
    parser.set_defaults(vanilla=False, without=(), force=False, expect="pass", trace=False)
    return parser


def _check(topology: Topology, options: RunOptions, simulated: bool) -> None:
    """Refuse early what no case could run."""
    if not options.patches:
        raise CannotRun(f"preset {options.overrides.preset} is without the series, which half of the cases have")
    plan = resolve(topology, options.overrides)
    if not simulated:
        preflight.check(plan)


def cases(slab: SlabAllocator | None = None, hosts: Sequence[ClientHost | None] = (None,)) -> list[Case]:
    """The letter's cases in its order, or those of one slab allocator, as far as the model has it; on each host."""
    chosen = [case for case in PUBLISHED if case.slab in SLAB_ALLOCATORS and slab in (None, case.slab)]
    return [replace(case, host=host) for case in chosen for host in hosts]


def status(results: dict[Case, Result]) -> int:
    """The exit status for what came out."""
    if any(result.outcome == "error" for result in results.values()):
        return CANNOT_RUN
    as_published = all(
        result.outcome == ("pass" if case.published.completes else "deadlock") for case, result in results.items()
    )
    return EXPECTED if as_published else UNEXPECTED


def ended(result: Result) -> str:
    """How a run of the swap test ended, in words."""
    if result.outcome == "pass":
        return "completes"
    if result.outcome == "deadlock":
        return f"locks up after {seconds(result.stalled_after_s)}"
    if result.outcome == "error":
        return f"error: {result.error}"
    limit = result.arguments.get("time_limit", math.inf)
    if result.times.elapsed_s is None and result.elapsed_s >= limit and result.stalled_after_s is None:
        return f"not finished after {seconds(limit)}"
    return f"fails: {', '.join(check.name for check in result.checks if check.ok is False)}"


def show(console: Console, results: dict[Case, Result]) -> None:
    """Print the table: each case as it was here, and as the letter has it."""
    table = Table(title="The cover letter's swap test", title_justify="left")
    for name in ("case", "", "test"):
        table.add_column(name, no_wrap=name != "test")
    for name in ("system", "user+system", "elapsed"):
        table.add_column(name, justify="right", no_wrap=True)
    for kernel, same in groupby(results.items(), lambda entry: (entry[0].slab, entry[0].series)):
        slab, series = kernel
        name = f"{slab.upper()} {'series' if series else 'vanilla'}"
        for case, result in same:
            test = f"[{STYLES[result.outcome]}]{escape(ended(result))}[/]"
            table.add_row(name, case.host or "here", test, *_times(result))
            name = ""
        published = PUBLISHED[Case(slab, series)]
        table.add_row(
            "",
            "published",
            "completes" if published.completes else "locks up within minutes",
            *(seconds(value) for value in (published.system_s, published.user_system_s, published.elapsed_s)),
            end_section=True,
        )
    console.print(table)
    for line in _notes(list(results.values())):
        console.print(line, highlight=False, soft_wrap=True)


def _times(result: Result) -> tuple[str, str, str]:
    times = result.times
    both = None if times.user_s is None or times.system_s is None else times.user_s + times.system_s
    return seconds(times.system_s), seconds(both), seconds(times.elapsed_s)


def _notes(results: list[Result]) -> Iterator[str]:
    if any(result.simulated for result in results):
        yield "simulated: elapsed time is virtual, and a simulation has no CPU time"
    else:
        yield "user is what the tasks' own writes and checks took; system is all other CPU time of the client"
    yield "the published machine had 2 GB of RAM and a disk: compare cases with one another, not with the letter"
    directories = [result.directory for result in results if result.directory]
    if directories:
        yield f"everything about these runs: {escape(str(Path(directories[0]).parent))}"
