"""The cover letter's swap test: the right four kernels, the published figures, an honest status."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from rich.console import Console

from testbed import Topology
from testbed.experiment import cover_letter, execution, preflight
from testbed.experiment.arguments import RunOptions
from testbed.experiment.cover_letter import PUBLISHED, Case, cases, ended, main, show, status
from testbed.experiment.execution import OneByOne
from testbed.experiment.load import load_topology
from testbed.experiment.plan import Overrides, resolve
from testbed.experiment.result import Check, Outcome, Result, Times
from testbed.experiment.topology import SLAB_ALLOCATORS
from testbed.net.tcp_timer import TCP_RTO_MAX
from testbed.patches import PATCHES

SCRIPT = Path(__file__).parents[2] / "topologies" / "cover_letter.py"
SLUB_VANILLA, SLUB_SERIES, SLAB_SERIES = Case("slub", False), Case("slub", True), Case("slab", True)
PASSED = Result(outcome="pass", times=Times(2.0, 10.5, 100.25))
LOCKED = Result(outcome="deadlock", stalled_after_s=12.5)


def topology(*words: str) -> Topology:
    loaded, unused = load_topology(SCRIPT, words)
    assert unused == []
    return loaded


def plant(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome) -> list[RunOptions]:
    """Runs end so, one after the other; returns the options that they will have had."""
    seen: list[RunOptions] = []

    def attempt(_run_once: Any, _topology: Topology, options: RunOptions) -> Result:
        seen.append(options)
        return Result(outcome=outcomes[len(seen) - 1])

    monkeypatch.setattr(execution, "attempt", attempt)
    monkeypatch.setattr(cover_letter, "Workers", lambda job_for, _jobs: OneByOne(job_for, lambda _case: None))
    return seen


def test_the_letters_machine() -> None:
    (client,) = resolve(topology("--cpus", "3", "--passes", "2"), Overrides(memory=96 << 20)).clients
    assert (client.workload.processes, client.workload.passes, client.workload.pages) == (24, 2, 4 * 96 << 8)
    (default,) = resolve(topology()).clients
    assert (default.workload.processes, default.memory) == (16, 64 << 20)


def test_too_many_cpus_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        topology("--cpus", "1000")
    assert ending.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_each_case_runs_its_own_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = plant(monkeypatch, "deadlock", "pass")
    assert main(topology(), ["--simulate", "--slab", "slub", "--memory", "48M", "--out", str(tmp_path)]) == 0
    vanilla, series = seen
    assert (vanilla.patches, series.patches) == (frozenset(), frozenset(PATCHES))
    assert (vanilla.overrides.preset, series.overrides.preset) == ("vanilla", "v9")
    assert {(one.overrides.slab, one.overrides.memory) for one in seen} == {("slub", 48 << 20)}
    assert [one.out for one in seen] == [tmp_path / "slub-vanilla", tmp_path / "slub-series"]
    assert vanilla.seed == series.seed


def test_a_host_that_stands_still_is_watched_for_longer_than_tcp_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = plant(monkeypatch, "deadlock", "pass")
    main(topology(), ["--simulate", "--slab", "slub"])
    assert min(options.stall_limit for options in seen) > TCP_RTO_MAX


def test_a_real_kernel_runs_beside_the_model_under_its_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = plant(monkeypatch, "deadlock", "deadlock", "pass", "pass")
    monkeypatch.setattr(preflight, "check", lambda plan: None)
    assert main(topology(), ["--host", "kernel", "--slab", "slub", "--out", str(tmp_path)]) == 0
    assert [(one.overrides.host, bool(one.patches)) for one in seen] == [
        ("kernel", False),
        ("emulated", False),
        ("kernel", True),
        ("emulated", True),
    ]
    assert {one.overrides.preset for one in seen} == {"6.1"}
    assert [one.out.name for one in seen if one.out] == [
        "slub-vanilla-kernel",
        "slub-vanilla-emulated",
        "slub-series-kernel",
        "slub-series-emulated",
    ]


def test_all_cases_that_the_model_has() -> None:
    assert {case.slab for case in cases()} == set(SLAB_ALLOCATORS)
    assert len(cases()) == 2 * len(SLAB_ALLOCATORS)
    assert cases("slub") == [SLUB_VANILLA, SLUB_SERIES]


@pytest.mark.parametrize(
    ("vanilla", "series", "expected"),
    [("deadlock", "pass", 0), ("pass", "pass", 1), ("deadlock", "fail", 1), ("fail", "pass", 1), ("error", "pass", 2)],
)
def test_the_status_says_whether_it_went_as_in_the_letter(vanilla: Outcome, series: Outcome, expected: int) -> None:
    assert status({SLUB_VANILLA: Result(outcome=vanilla), SLUB_SERIES: Result(outcome=series)}) == expected


def test_json_has_every_case(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    plant(monkeypatch, "deadlock", "pass")
    assert main(topology(), ["--simulate", "--slab", "slub", "--json"]) == 0
    entries = json.loads(capfd.readouterr().out)
    assert [(entry["case"], entry["result"]["outcome"]) for entry in entries] == [
        ("slub-vanilla", "deadlock"),
        ("slub-series", "pass"),
    ]


@pytest.mark.parametrize("words", [["--memory", "1M"], ["--preset", "vanilla"], ["--flood", "9"]])
def test_what_no_case_could_run_is_refused_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(topology(), ["--simulate", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("testbed: ")
    assert error.count("\n") == 1


def test_how_a_run_ended() -> None:
    failed = Result(outcome="fail", checks=[Check("progress", False, ""), Check("integrity", True, "")])
    late = structs.replace(failed, elapsed_s=70.5, arguments={"time_limit": 70.0})
    stalled = structs.replace(late, stalled_after_s=60.0)
    done = structs.replace(late, times=Times(elapsed_s=69.5))
    error = Result(outcome="error", error="no root")
    assert [ended(each) for each in (PASSED, LOCKED, failed, late, stalled, done, error)] == [
        "completes",
        "locks up after 12.50 s",
        "fails: progress",
        "not finished after 70.00 s",
        "fails: progress",
        "fails: progress",
        "error: no root",
    ]


def test_the_table_has_both_figures() -> None:
    out = io.StringIO()
    show(Console(file=out, width=120), {SLAB_SERIES: PASSED, SLUB_VANILLA: LOCKED})
    rows = [[cell.strip() for cell in line.split("│")[2:-1]] for line in out.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["here", "completes", "10.50 s", "12.50 s", "100.25 s"],
        ["published", "completes", "73.45 s", "76.91 s", "2953.96 s"],
        ["here", "locks up after 12.50 s", "-", "-", "-"],
        ["published", "locks up within minutes", "-", "-", "-"],
    ]


def test_hosts_stand_above_one_published_figure() -> None:
    out = io.StringIO()
    results = {Case("slub", False, "kernel"): LOCKED, Case("slub", False, "emulated"): PASSED}
    show(Console(file=out, width=120), results)
    rows = [line.split("│")[2].strip() for line in out.getvalue().splitlines() if "│" in line]
    assert rows == ["kernel", "emulated", "published"]


def test_only_vanilla_slub_locked_up_in_the_letter() -> None:
    assert [case for case, published in PUBLISHED.items() if not published.completes] == [SLUB_VANILLA]
