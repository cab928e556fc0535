"""Three points of the grid, on a real kernel and on the model: the same comes out on both."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from testbed.experiment.arguments import options_from
from testbed.experiment.compare.command import add_arguments
from testbed.experiment.compare.grid import Point, cell
from testbed.experiment.compare.runs import Host
from testbed.experiment.execution import attempt
from testbed.experiment.result import Outcome, Result

pytestmark = [pytest.mark.root, pytest.mark.kernel_image("slub"), pytest.mark.timeout(400)]

HOSTS: tuple[Host, ...] = ("kernel", "emulated")
SMALL, LARGE = 4 << 20, 8 << 20
POINTS: list[tuple[Point, Outcome]] = [
    (Point(64 << 20, "double", 10_000, 1400, 4, LARGE, patched=True), "pass"),
    (Point(64 << 20, "default", 20_000, 1400, 64, SMALL, patched=False), "deadlock"),
    (Point(64 << 20, "double", 2_000, 64, 16, LARGE, patched=False), "deadlock"),
]


def results(point: Point, seed: int, out: Path) -> dict[Host, Result]:
    """One run of a point on each host, as `testbed compare --grid` makes them, but for a shorter stall limit."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    common = options_from(parser.parse_args(["--grid", "--stall-limit", "4"]), "", [])
    of_point = cell(point, common)
    return {host: attempt(*of_point.job(host, seed, out / f"{host}-{seed}")) for host in HOSTS}


@pytest.mark.parametrize(("point", "outcome"), [pytest.param(*each, id=each[0].name) for each in POINTS])
def test_the_model_agrees_with_a_real_kernel(point: Point, outcome: Outcome, tmp_path: Path) -> None:
    """One run in twenty may end differently, on either host: two in a row are a failure."""
    made = results(point, 1, tmp_path)
    if {each.outcome for each in made.values()} != {outcome}:
        made = results(point, 2, tmp_path)
    told = {host: [check.evidence for check in each.checks if check.ok is False] for host, each in made.items()}
    assert {host: each.outcome for host, each in made.items()} == dict.fromkeys(HOSTS, outcome), told
    assert all(each.swap.corrupt == 0 for each in made.values())
    if outcome == "pass":
        assert all(each.counters["PFMemallocDrop"] > 0 for each in made.values())
