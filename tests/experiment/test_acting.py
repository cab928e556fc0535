"""Which patches can act: said by the clients of a topology, and asked by the command line and by the verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.experiment import command
from testbed.experiment.acting import acting
from testbed.experiment.arguments import RunOptions, parse_run
from testbed.experiment.checks import switch_took_effect
from testbed.experiment.errors import CannotRun
from testbed.experiment.faults.step import Step
from testbed.experiment.plan import Plan, resolve
from testbed.experiment.result import Result
from testbed.hosts.plan import ClientPlan, WorkloadPlan
from testbed.patches import ALWAYS_ACTING, PATCHES
from tests.experiment import witness
from tests.experiment.small import build

INTERLEAVED = WorkloadPlan(16, 65536, 1, "interleave:0,1")


def client_plan(**changes: Any) -> ClientPlan:
    (client,) = resolve(build()).clients
    return replace(client, **changes)


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {3}),
        ({"driver": "frag"}, {3, 10}),
        ({"driver": "vector"}, {3, 10}),
        ({"driver": "page"}, {3, 11}),
        ({"slab": "slab"}, {13}),
        ({"nodes": 2}, {3}),
        ({"nodes": 2, "workload": INTERLEAVED}, {3, 6}),
        ({"workload": INTERLEAVED}, {3}),
        ({"driver": "page", "slab": "slab", "nodes": 2, "workload": INTERLEAVED}, {6, 11, 13}),
    ],
)
def test_what_a_client_has_decides_which_patches_act(changes: dict[str, Any], more: set[int]) -> None:
    assert acting([client_plan(**changes)]) == ALWAYS_ACTING | more


@pytest.mark.parametrize(("slab", "idle"), [("slub", {1, 6, 11, 13}), ("slab", {1, 3, 6, 11})])
def test_on_a_real_kernel_those_act_that_it_can_do_without(slab: str, idle: set[int]) -> None:
    assert acting([client_plan(host="kernel", slab=slab)]) == frozenset(PATCHES) - idle


def test_one_client_that_has_it_is_enough() -> None:
    assert acting([client_plan(), client_plan(driver="frag", slab="slab")]) == ALWAYS_ACTING | {3, 10, 13}


def test_patch_01_acts_where_two_write_the_watermarks_of_several_zones_at_once() -> None:
    def write(time: float, target: str = "client") -> Step:
        return Step(time, "set", target, "min_free_kbytes", {"kbytes": 1024})

    two_zones, one_zone = client_plan(zones="x86_64"), client_plan()
    together = (write(1), write(2), write(2))
    assert acting([two_zones], together) == ALWAYS_ACTING | {1, 3}
    assert acting([one_zone], together) == ALWAYS_ACTING | {3}
    assert acting([two_zones], (write(1), write(2))) == ALWAYS_ACTING | {3}
    assert acting([two_zones], (write(2), write(2, "other"))) == ALWAYS_ACTING | {3}


def test_every_condition_is_about_a_patch_that_says_so() -> None:
    assert acting([]) == ALWAYS_ACTING


LINEAR, FRAG, PAGE = {"driver": "linear"}, {"driver": "frag"}, {"driver": "page"}
SLAB, SLUB = {"slab": "slab"}, {"slab": "slub"}


@pytest.mark.parametrize(
    ("client", "number"), [(LINEAR, 10), (LINEAR, 11), (FRAG, 11), (PAGE, 10), (SLAB, 3), (SLUB, 13)]
)
def test_the_command_refuses_to_switch_off_what_cannot_act(
    client: dict[str, str], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    status = command.execute(build(client=client), parse_run(["--without", str(number)], "small"))
    said = capsys.readouterr().err
    assert status == command.CANNOT_RUN
    assert said.count("\n") == 1
    assert f"patch {number} acts only on {PATCHES[number].acts_on}" in said


def test_the_faults_of_a_schedule_from_a_file_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two writers of min_free_kbytes that only the file has."""
    step = {"time": 1, "action": "set", "target": "client", "kind": "min_free_kbytes", "arguments": {"kbytes": 1024}}
    file = tmp_path / "writers.json"
    monkeypatch.setattr(command, "_on_sockets", _reached)
    for writers, said in ((1, "patch 1 acts only on"), (2, "reached")):
        file.write_text(json.dumps([step] * writers))
        options = parse_run(["--without", "1", "--schedule", str(file)], "small")
        assert command.execute(build(client={"zones": "x86_64"}), options) == command.CANNOT_RUN
        assert said in capsys.readouterr().err


def _reached(_plan: Plan, _options: RunOptions) -> Result:
    raise CannotRun("reached")


def test_a_client_is_not_asked_about_patches_that_cannot_act_on_it() -> None:
    row = {"opportunity": 0, "witness": 0, "what": "skbs marked"}
    report = witness.spoiled("witnesses", "10", value=row)
    run = witness.run(patches=witness.ALL_PATCHES - {10})
    assert switch_took_effect(witness.client(report=report), run)[0]
    verdict, text = switch_took_effect(witness.client(report=report, acting=ALWAYS_ACTING | {10}), run)
    assert not verdict
    assert "patch 10 is off, but had no occasion" in text
    row |= {"opportunity": 7}
    assert switch_took_effect(witness.client(report=report, acting=ALWAYS_ACTING | {10}), run)[0]
