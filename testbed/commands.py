"""The commands of `testbed`: parse, call, exit status. Every mistake is one line on standard error and status 2."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from testbed.experiment import leftovers, patch_tables
from testbed.experiment.ablation import command as ablate
from testbed.experiment.arguments import Parser, add_run_options, count, options_from, parse_path
from testbed.experiment.command import CANNOT_RUN, execute, simulate
from testbed.experiment.compare import command as compare
from testbed.experiment.errors import CannotRun
from testbed.experiment.load import load_topology
from testbed.experiment.search import command as search
from testbed.hosts.kernel import command as kernel
from testbed.mm.watermarks import PAGE_SIZE, SERIES, compute, setup_per_zone_wmarks
from testbed.mm.zone_layout import LAYOUTS, ZoneType, lowmem_reserve, zone_spans
from testbed.nbd import serve
from testbed.patches import PRESETS, PatchError
from testbed.size import parse_size

STORAGE_FAILS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""Whatever was being written, which may be the output itself."""


def parser() -> Parser:
    """The parser of the whole command line."""
    top = Parser(prog="testbed", description="Swap over the network under memory pressure, on emulated hosts.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    running = commands.add_parser("run", help="run a topology and judge it")
    running.add_argument("topology", type=parse_path, metavar="TOPOLOGY.py")
    add_run_options(running)
    ablate.add_arguments(commands.add_parser("ablate", help="find out what each patch is worth, and which are needed"))
    search.add_arguments(commands.add_parser("search", help="find out how much of something a host survives"))
    compare.add_arguments(commands.add_parser("compare", help="run on several hosts, and see how far they agree"))
    simulation = commands.add_parser("simulate", help="the same on virtual time: no root, no network, repeatable")
    simulation.add_argument("topology", type=parse_path, metavar="TOPOLOGY.py")
    add_run_options(simulation)
    serve.add_arguments(commands.add_parser("serve", help="our NBD server by itself"))
    patches = commands.add_parser("patches", help="the 16 patches and what they build on; what is in a preset")
    patches.add_argument("--preset", choices=tuple(PRESETS), help="this kernel's patches and rules")
    patches.add_argument("--diff", choices=tuple(PRESETS), metavar="PRESET", help="only what is otherwise in this one")
    patches.add_argument("--json", action="store_true", help="the same for programs")
    watermarks = commands.add_parser("watermarks", help="what the model computes from the size of memory")
    watermarks.add_argument("--memory", required=True, metavar="SIZE")
    watermarks.add_argument("--series", choices=SERIES, default="3.6", help="kernel (default %(default)s)")
    watermarks.add_argument("--zones", choices=LAYOUTS, help="show each zone of this layout")
    watermarks.add_argument("--min-free-kbytes", type=count(1), metavar="N", help="instead of the kernel's own choice")
    kernel.add_arguments(commands.add_parser("kernel", help="real kernels to stand in a client's place: make, list"))
    commands.add_parser("clean", help="remove what a crash left")
    return top


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    top = parser()
    space, unknown = top.parse_known_args(words)
    if unknown and space.command not in _WITH_TOPOLOGY:
        return _complain(f"unrecognized arguments: {' '.join(unknown)} (see testbed {space.command} --help)")
    try:
        if space.command in _WITH_TOPOLOGY:
            return _WITH_TOPOLOGY[space.command](space, unknown, words)
        return _OTHERS[space.command](space)
    except (CannotRun, PatchError) as error:
        return _complain(str(error))
    except BrokenPipeError:
        _leave_the_rest_unwritten()
        return 1
    except OSError as error:
        if error.errno not in STORAGE_FAILS:
            raise
        _leave_the_rest_unwritten()
        return _complain(f"{error.filename or 'cannot write'}: {error.strerror}")


def _leave_the_rest_unwritten() -> None:
    """Of standard output: Python would try again at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(line: str) -> int:
    print(f"testbed: {line}", file=sys.stderr)
    return CANNOT_RUN


def _run(space: argparse.Namespace, unknown: Sequence[str], words: Sequence[str]) -> int:
    options = options_from(space, str(space.topology), words)
    topology, unused = load_topology(space.topology, unknown)
    if unused:
        raise CannotRun(f"unrecognized arguments: {' '.join(unused)} (see testbed {space.command} --help)")
    return _RUNS[space.command](topology, options)


def _patches(space: argparse.Namespace) -> int:
    if space.diff and not space.preset:
        raise CannotRun("--diff compares with a preset: say which with --preset")
    patch_tables.show(space.preset, space.diff, space.json)
    return 0


def _watermarks(space: argparse.Namespace) -> int:
    rules, layout = SERIES[space.series], space.zones or "normal"
    try:
        pages = parse_size(space.memory) // PAGE_SIZE
        if pages == 0:
            raise CannotRun(f"{space.memory} of memory is less than a page")
        spans = zone_spans(pages, layout)
        each = setup_per_zone_wmarks(spans, space.min_free_kbytes, rules)
        marks = compute(pages, space.min_free_kbytes, rules, layout)
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
    if space.zones:
        print(f"{'zone':<9} {'pages':>9} {'min':>7} {'low':>7} {'high':>7}   kept from requests for higher zones")
        kinds = {span.kind for span in spans}
        for span, mark in zip(spans, each, strict=True):
            kept = zip(ZoneType, lowmem_reserve(span, spans), strict=True)
            reserve = ", ".join(f"{kind.title} {count}" for kind, count in kept if count and kind in kinds) or "-"
            print(f"{span.kind.title:<9} {span.pages:>9} {mark.min:>7} {mark.low:>7} {mark.high:>7}   {reserve}")
    return 0


def _clean(_: argparse.Namespace) -> int:
    for line in leftovers.clean() or ["nothing to clean"]:
        print(line)
    return 0


_WITH_TOPOLOGY = {
    "run": _run,
    "simulate": _run,
    "ablate": ablate.run,
    "compare": compare.command,
    "search": search.run,
}
_RUNS = {"run": execute, "simulate": simulate}
_OTHERS = {"serve": serve.run, "patches": _patches, "watermarks": _watermarks, "clean": _clean, "kernel": kernel.run}
