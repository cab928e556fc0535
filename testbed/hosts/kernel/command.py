"""`testbed kernel`: make kernels, list them, show our patch. A mistake or an interruption is status 2."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import get_args

from rich.console import Console
from rich.table import Table

from testbed.experiment.arguments import count
from testbed.experiment.leftovers import mark_children, temporary_directory
from testbed.experiment.patch_tables import ONE_LINE
from testbed.hosts.kernel.build import build
from testbed.hosts.kernel.build_steps import Steps
from testbed.hosts.kernel.catalogue import images
from testbed.hosts.kernel.image import KernelImage
from testbed.hosts.kernel.recipe import PATCH
from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError

SLABS: tuple[SlabAllocator, ...] = get_args(SlabAllocator)
STATUS_CANNOT_RUN = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `testbed kernel`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(parser))
    making = commands.add_parser("build", help="make kernels from Debian's kernel source package, in minutes, once")
    making.add_argument("--slab", choices=SLABS, help="only the one with this slab allocator")
    making.add_argument(
        "--jobs", type=count(1), metavar="N", default=os.cpu_count(), help="compilers at a time (default: processors)"
    )
    making.add_argument("--json", action="store_true", help="the same for programs")
    listing = commands.add_parser("list", help="which kernels are there")
    listing.add_argument("--json", action="store_true", help="the same for programs")
    commands.add_parser("patch", help="show what we change in the kernel, and why")


def run(space: argparse.Namespace) -> int:
    """Carry out `testbed kernel`; returns the exit status."""
    try:
        return _ACTIONS[space.action](space)
    except LabError as error:
        print(f"testbed: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("testbed: interrupted", file=sys.stderr)
    return STATUS_CANNOT_RUN


def _build(space: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mark_children()
    with Steps(Console(stderr=True)) as steps:
        made = build([space.slab] if space.slab else SLABS, space.jobs or 1, steps, temporary_directory)
    _show(made, space.json)
    return 0


def _list(space: argparse.Namespace) -> int:
    found = images()
    if found or space.json:
        _show(found, space.json)
    else:
        print("there is none: apt install user-mode-linux, or testbed kernel build")
    return 0


def _patch(_: argparse.Namespace) -> int:
    sys.stdout.write(PATCH.read_text())
    return 0


def _show(found: list[KernelImage], as_json: bool) -> None:
    if as_json:
        json.dump([image.identity() for image in found], sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("version", "slab", "from", "configuration", "program"):
        table.add_column(heading, overflow="fold")
    for image in found:
        kind = "build" if image.built else "package"
        table.add_row(image.version, image.slab, kind, image.config_hash[:12], str(image.path))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = ONE_LINE
    console.print(table)
    for change in dict.fromkeys(change for image in found for change in image.changes):
        print(f"  changed in a build: {change}")


_ACTIONS = {"build": _build, "list": _list, "patch": _patch}
