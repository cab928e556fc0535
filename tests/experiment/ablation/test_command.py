"""`testbed ablate` as scripts meet it, with runs whose outcome is known: files, JSON, exit status, Ctrl-C."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.experiment import execution, preflight
from testbed.experiment.ablation import command
from testbed.experiment.arguments import RunOptions
from testbed.experiment.errors import CannotRun
from testbed.experiment.live import NoView
from testbed.experiment.plan import Overrides
from testbed.experiment.result import Outcome, Result
from testbed.experiment.topology import Topology
from testbed.lab.errors import LabError
from tests.experiment.ablation.planted import ALL, Fate, needing, result, simulated

ROOT = Path(__file__).parents[3]
SWAP_FLOOD = str(ROOT / "topologies" / "swap_flood.py")
SERIES = frozenset({4, 8, 9, 14})


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[RunOptions]]:
    """Have runs come out as a fate says, or raise what it raises; returns the options of each as it is made."""

    def rig(fate: Fate) -> list[RunOptions]:
        made: list[RunOptions] = []

        def run_once(topology: Topology, options: RunOptions) -> Result:
            made.append(options)
            return result(options.patches, options.seed, fate(options.patches, options.seed))

        monkeypatch.setattr(command, "on_real_sockets", run_once)
        monkeypatch.setattr(preflight, "check", lambda plan: None)
        return made

    return rig


def ablate(capfd: pytest.CaptureFixture[str], out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Status, what is in ablate.json (the same as on standard output), and standard error."""
    status = cli.main(["ablate", SWAP_FLOOD, "--json", "--seed", "1", "--out", str(out), *words])
    told, err = capfd.readouterr()
    written = json.loads((out / "ablate.json").read_text())
    assert json.loads(told) == written
    return status, written, err


def by_off(data: dict[str, Any]) -> dict[tuple[int, ...], dict[str, Any]]:
    return {tuple(row["off"]): row for row in data["rows"]}


def test_the_whole_of_it(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(needing(SERIES))
    status, data, err = ablate(capfd, tmp_path / "a", "--seeds", "2")
    assert status == 0
    rows = by_off(data)
    assert set(rows) == {(), tuple(sorted(ALL)), *((n,) for n in ALL), tuple(sorted(ALL - SERIES - {7}))}
    assert data["minimal_set"] == [4, 7, 8, 9, 14]
    assert data["established"].startswith("no part of it survives")
    assert data["complete"]
    assert data["errors"] == []
    for off, row in rows.items():
        dead = bool(SERIES & set(off))
        assert row["outcomes"] == ({"deadlock": 2} if dead else {"pass": 2})
        assert row["witness"] is (True if off else None)
        assert row["survived"] == (0 if dead else 2)
    assert rows[(9,)]["stalled_after_s"] == 3.0
    assert rows[(3,)]["slowdown"] == 1.0
    assert "patch 16 is on without patch 15" in rows[(15,)]["warnings"][0]
    wrong = {each["patch"] for each in data["disagreements"]}
    assert not wrong & {1, 6, 10, 11, 13}
    assert [each["off"] for each in data["disagreements"] if each["patch"] is None] == [sorted(ALL - SERIES - {7})]
    assert "looking for the smallest set" in err
    assert all(options.force and options.seed in {1, 2} for options in made)
    assert len({options.out for options in made}) == len(made) == data["runs"]


def test_each_run_is_written_down(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(needing(SERIES))
    _, data, _ = ablate(capfd, tmp_path / "a", "--seeds", "1", "--patches", "9")
    lines = [json.loads(line) for line in (tmp_path / "a" / "runs.jsonl").read_text().splitlines()]
    assert [line["off"] for line in lines] == [options.without for options in made]
    assert set(by_off(data)) == {(), tuple(sorted(ALL)), (9,), (13,)}
    assert data["minimal_set"] == sorted(ALL - {13})
    assert "only 9 and what builds on them" in data["established"]


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        (lambda on, seed: "fail", (0, 0)),
        (lambda on, seed: "deadlock" if seed == 3 else "pass", (1, 0)),
        (lambda on, seed: "error" if 4 not in on and seed == 2 else "pass", (2, 2)),
    ],
)
def test_exit_status(
    fate: Fate,
    expected: tuple[int, int],
    rigged: Callable[..., list[RunOptions]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rigged(fate)
    found, data, err = ablate(capfd, tmp_path / "a", "--seeds", "3", "--patches", "4")
    assert found == expected[0]
    assert len(data["errors"]) >= expected[1]
    assert err.count("could not be judged: ") == len(data["errors"])
    assert sum(row["outcomes"].get("error", 0) for row in data["rows"]) == expected[1]


def test_a_flaky_patch_set_does_not_survive(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(lambda on, seed: "deadlock" if 15 not in on and seed == 5 else "pass")
    _, data, _ = ablate(capfd, tmp_path / "a")
    assert data["seeds"] == [1, 2, 3, 4, 5]
    assert by_off(data)[(15,)]["outcomes"] == {"pass": 4, "deadlock": 1}
    assert data["minimal_set"] == [15]


@pytest.mark.parametrize("error", [CannotRun("no memory"), LabError("a host was killed")])
def test_a_run_that_cannot_be_made_is_an_error_of_that_run(
    error: Exception, rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fate(on: frozenset[int], seed: int) -> Outcome:
        if on == ALL - {5}:
            raise error
        return "pass"

    rigged(fate)
    status, data, _ = ablate(capfd, tmp_path / "a", "--seeds", "1", "--patches", "5,12")
    assert status == 2
    assert data["errors"] == [f"without 5, seed 1: {error}"]
    assert by_off(data)[(12,)]["survived"] == 1


def test_nothing_to_compare_with_ends_it(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(lambda on, seed: "error")
    status, data, err = ablate(capfd, tmp_path / "a", "--seeds", "2")
    assert (status, len(made), data["complete"]) == (2, 2, False)
    assert "no run with all patches on could be judged: all on, seed 1: the rig broke" in err


def test_an_interruption_leaves_what_was_made(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fate(on: frozenset[int], seed: int) -> Outcome:
        if 7 not in on and on:
            raise KeyboardInterrupt
        return "pass"

    rigged(fate)
    status, data, err = ablate(capfd, tmp_path / "a", "--seeds", "1")
    assert (status, data["complete"], data["minimal_set"]) == (2, False, None)
    assert [row["off"] for row in data["rows"]] == [[], sorted(ALL), *([n] for n in range(1, 7))]
    assert "testbed: interrupted" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--patches", "17"], "there is no patch 17"),
        (["--patches", "x"], "not a list of patch numbers"),
        (["--preset", "vanilla"], "has no patches on"),
        (["--seeds", "0"], "at least 1"),
        (["--without", "4"], "unrecognized arguments: --without 4"),
        (["--flood-size", "9999"], "flood frames must have"),
        (["--host", "kernel", "--simulate"], "a real kernel cannot be simulated"),
        (["--out", "/dev/null/x"], "cannot write to /dev/null/x: Not a directory"),
        (["--out", "/dev/null"], "cannot write to /dev/null: Not a directory"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        status = cli.main(["ablate", SWAP_FLOOD, "--out", str(tmp_path / "a"), *words])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert part in err
    assert not (tmp_path / "a").exists()


def test_an_ablation_is_never_overwritten(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(needing(SERIES))
    ablate(capfd, tmp_path / "a", "--seeds", "1", "--patches", "9")
    assert cli.main(["ablate", SWAP_FLOOD, "--out", str(tmp_path / "a")]) == 2
    assert "holds an ablation already" in capfd.readouterr().err


def test_under_sudo_it_belongs_to_the_user(
    monkeypatch: pytest.MonkeyPatch,
    rigged: Callable[..., list[RunOptions]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given: set[str] = set()
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "567")
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, follow_symlinks: given.add(path.name))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    rigged(needing(SERIES))
    ablate(capfd, tmp_path / "new" / "a", "--seeds", "1", "--patches", "9")
    assert given == {"new", "a", "runs.jsonl", "ablate.json"}


def test_simulations_run_side_by_side_and_give_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
    rigged: Callable[..., list[RunOptions]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rigged(lambda on, seed: "fail" if ({4, 15} if seed % 2 else {4}) <= on else "deadlock")
    _, alone, _ = ablate(capfd, tmp_path / "alone", "--seeds", "2")
    monkeypatch.setattr(command, "on_virtual_time", simulated)
    status, beside, _ = ablate(capfd, tmp_path / "beside", "--seeds", "2", "--simulate", "--jobs", "2")
    assert status == 0
    assert beside["simulated"]
    assert beside["minimal_set"] == alone["minimal_set"] == [4, 15]
    assert beside["rows"] == alone["rows"]
    assert beside["disagreements"] == alone["disagreements"]


def test_an_exhaustive_search_proves_the_smallest(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(needing(frozenset({9})))
    _, data, _ = ablate(capfd, tmp_path / "a", "--seeds", "1", "--exhaustive")
    assert data["minimal_set"] == [4, 7, 8, 9]
    assert data["established"].startswith("the smallest")


def test_a_real_kernel_turns_off_what_it_can_and_stands_beside_the_model(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(lambda on, seed: "pass" if {9} <= on else "deadlock")
    _, data, err = ablate(capfd, tmp_path / "a", "--seeds", "1", "--host", "kernel")
    assert set(data["refused"]) == {"1", "6", "11", "13"}
    assert "no network driver of User Mode Linux" in data["refused"]["11"]
    assert "use --slab slab" in data["refused"]["13"]
    assert err.count("not turned off: ") == 4
    kernel = [each for each in made if each.overrides.host == "kernel"]
    assert all({1, 6, 11, 13} <= each.patches for each in kernel if each.patches)
    assert frozenset() in {each.patches for each in kernel}
    assert {each.overrides.preset for each in made} == {"6.1"}
    sets = {tuple(row["off"]) for row in data["emulated"]}
    assert sets == {(), tuple(sorted(ALL)), *((n,) for n in ALL - {1, 6, 11, 13})}
    assert [row["off"] for row in data["rows"]][: len(sets)] == [row["off"] for row in data["emulated"]]
    assert "the same on the model" in err
    assert data["minimal_set"] is not None
    assert 9 in data["minimal_set"]


def test_what_a_real_kernel_cannot_undo_stays_on_whichever_patches_were_asked_for(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(lambda on, seed: "pass" if {9} <= on else "deadlock")
    words = ("--seeds", "1", "--host", "kernel", "--patches", "2,4,9")
    _, data, _ = ablate(capfd, tmp_path / "a", *words)
    assert data["refused"] == {}
    kernel = [each for each in made if each.overrides.host == "kernel" and each.patches]
    assert len(kernel) > 4, "some were made in search of the smallest set"
    assert all({1, 6, 11, 13} <= each.patches for each in kernel)


def test_a_kernel_with_slab_can_be_without_patch_13_but_not_without_3(
    rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(lambda on, seed: "pass")
    words = ("--seeds", "1", "--host", "kernel", "--slab", "slab", "--patches", "3,13")
    _, data, _ = ablate(capfd, tmp_path / "a", *words)
    assert set(data["refused"]) == {"3"}
    assert (13,) in by_off(data)
    assert (3,) not in by_off(data)


def test_the_figure(rigged: Callable[..., list[RunOptions]], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    rigged(needing(SERIES))
    _, _, err = ablate(capfd, tmp_path / "a", "--seeds", "1")
    assert (tmp_path / "a" / "ablate.png").read_bytes().startswith(b"\x89PNG")
    assert "without 9" in (tmp_path / "a" / "ablate.svg").read_text()
    assert "no figure" not in err


def test_without_matplotlib_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
    rigged: Callable[..., list[RunOptions]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    rigged(needing(SERIES))
    status, _, err = ablate(capfd, tmp_path / "a", "--seeds", "1", "--patches", "9")
    assert status == 0
    assert err.count("testbed: no figure: matplotlib is not installed (pip install 'swap-testbed[figures]')\n") == 1
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"ablate.json", "runs.jsonl"}


def test_real_runs_are_made_without_a_picture_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run_once(topology: Topology, options: RunOptions, view: object) -> Result:
        seen.append(view)
        return result()

    monkeypatch.setattr(execution, "run_once", run_once)
    execution.on_real_sockets(Topology("x"), RunOptions(ALL, Overrides(), 1))
    assert [type(view) for view in seen] == [NoView]
