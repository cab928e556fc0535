"""The `testbed` command: parse, call, exit status. Every mistake is one line on standard error and status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed.experiment import leftovers
from testbed.experiment.arguments import Parser, add_run_options, options_from
from testbed.experiment.command import CANNOT_RUN, execute, simulate
from testbed.experiment.errors import CannotRun
from testbed.experiment.load import load_topology
from testbed.mm.watermarks import PAGE_SIZE, SERIES, compute
from testbed.nbd import serve
from testbed.patches import PATCHES, PRESETS, PatchError
from testbed.size import parse_size


def parser() -> Parser:
    """The parser of the whole command line."""
    top = Parser(prog="testbed", description="Swap over the network under memory pressure, on emulated hosts.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    run = commands.add_parser("run", help="run a topology and judge it")
    run.add_argument("topology", type=Path, metavar="TOPOLOGY.py")
    add_run_options(run)
    simulation = commands.add_parser("simulate", help="the same on virtual time: no root, no network, repeatable")
    simulation.add_argument("topology", type=Path, metavar="TOPOLOGY.py")
    add_run_options(simulation)
    serve.add_arguments(commands.add_parser("serve", help="our NBD server by itself"))
    commands.add_parser("patches", help="the 16 patches, what they build on, and which presets have them on")
    watermarks = commands.add_parser("watermarks", help="what the model computes from the size of memory")
    watermarks.add_argument("--memory", required=True, metavar="SIZE")
    watermarks.add_argument("--series", choices=SERIES, default=SERIES[0], help="kernel (default %(default)s)")
    watermarks.add_argument("--min-free-kbytes", type=int, metavar="N", help="instead of the kernel's own choice")
    commands.add_parser("clean", help="remove what a crash left")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    top = parser()
    space, unknown = top.parse_known_args(words)
    if unknown and space.command not in _TAKE_TOPOLOGIES:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        if space.command in _TAKE_TOPOLOGIES:
            return _run(space, unknown, words)
        return _OTHERS[space.command](space)
    except (CannotRun, PatchError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return CANNOT_RUN
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(space: argparse.Namespace, unknown: Sequence[str], words: Sequence[str]) -> int:
    options = options_from(space, str(space.topology), words)
    topology, unused = load_topology(space.topology, unknown)
    if unused:
        raise CannotRun(f"unrecognized arguments: {' '.join(unused)} (see testbed {space.command} --help)")
    return _TAKE_TOPOLOGIES[space.command](topology, options)


def _patches(_: argparse.Namespace) -> int:
    print(f"{'':>2}  {'builds on':<10} {'on in':<{max(12, len(', '.join(PRESETS)))}} title")
    for patch in PATCHES.values():
        base = ", ".join(map(str, sorted(patch.depends_on))) or "-"
        on = ", ".join(name for name, preset in PRESETS.items() if patch.number in preset.patches) or "-"
        print(f"{patch.number:>2}  {base:<10} {on:<{max(12, len(', '.join(PRESETS)))}} {patch.title}")
        if patch.acts_on:
            print(f"{'':>2}  {'':<10} {'':<{max(12, len(', '.join(PRESETS)))}} (acts only on {patch.acts_on})")
    return 0


def _watermarks(space: argparse.Namespace) -> int:
    try:
        pages = parse_size(space.memory) // PAGE_SIZE
        marks = compute(pages, space.min_free_kbytes, space.series)
    except ValueError as error:
        raise CannotRun(str(error)) from None
    rows = [
        ("high", marks.high, "kswapd stops"),
        ("low", marks.low, "kswapd starts"),
        ("min", marks.min, "ordinary requests wait"),
        ("throttle", marks.throttle, "direct reclaimers wait (patch 15)"),
        ("atomic", marks.atomic_floor, "GFP_ATOMIC fails"),
    ]
    print(f"{pages} pages, min_free_kbytes {marks.min_free_kbytes}, as in {space.series}")
    for name, value, what in rows:
        print(f"{name:<9} {value:>9} pages {value * PAGE_SIZE // 1024:>10} KiB   {what}")
    return 0


def _clean(_: argparse.Namespace) -> int:
    for line in leftovers.clean() or ["nothing to clean"]:
        print(line)
    return 0


_TAKE_TOPOLOGIES = {"run": execute, "simulate": simulate}
_OTHERS = {"serve": serve.run, "patches": _patches, "watermarks": _watermarks, "clean": _clean}

if __name__ == "__main__":
    sys.exit(main())
