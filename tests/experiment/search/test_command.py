"""`testbed search` as scripts meet it, with runs whose outcome is known: files, JSON, sentence, exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.experiment import preflight
from testbed.experiment.arguments import RunOptions
from testbed.experiment.errors import CannotRun
from testbed.experiment.plan import resolve
from testbed.experiment.result import FloodTotals, Outcome, Result
from testbed.experiment.search import command
from testbed.experiment.topology import Topology
from tests.experiment.ablation.planted import result

TOPOLOGIES = Path(__file__).parents[3] / "topologies"
SWAP_FLOOD = TOPOLOGIES / "swap_flood.py"
Fate = Callable[[RunOptions], Outcome]
Rigged = Callable[..., list[RunOptions]]


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> Rigged:
    """Have runs come out as a fate says, under floods of at most `fastest`; returns the options of each, as made."""

    def rig(fate: Fate, fastest: float = 1e9) -> list[RunOptions]:
        made: list[RunOptions] = []

        def run_once(topology: Topology, options: RunOptions) -> Result:
            made.append(options)
            done = result(options.patches, options.seed, fate(options))
            asked = sum(flood.pps for flood in resolve(topology, options.overrides).floods)
            done.flood = FloodTotals(1000, min(asked, fastest))
            return done

        monkeypatch.setattr(command, "on_real_sockets", run_once)
        monkeypatch.setattr(preflight, "check", lambda plan: None)
        return made

    return rig


def search(
    capfd: pytest.CaptureFixture[str], out: Path, *words: str, topology: Path = SWAP_FLOOD
) -> tuple[int, dict[str, Any], str]:
    """Status, what is in search.json (the same as on standard output), and standard error."""
    status = cli.main(["search", str(topology), "--json", "--seed", "1", "--out", str(out), *words])
    told, err = capfd.readouterr()
    written = json.loads((out / "search.json").read_text())
    assert json.loads(told) == written
    return status, written, err


def up_to(name: str, most: float) -> Fate:
    return lambda options: "pass" if getattr(options.overrides, name) <= most else "deadlock"


def from_on(name: str, least: float) -> Fate:
    return lambda options: "fail" if getattr(options.overrides, name) >= least else "deadlock"


def test_the_most_that_is_survived(rigged: Rigged, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = rigged(up_to("flood", 38_000))
    status, data, err = search(capfd, tmp_path / "s", "--find", "flood")
    assert status == 0
    assert (data["find"], data["low"], data["high"], data["unit"]) == ("flood", 36_000, 39_000, "frames/s")
    assert (data["confidence"], data["runs"], data["complete"]) == (0.95, len(made), True)
    assert data["sentence"] == (
        "64M with the default min_free_kbytes survives floods of 1,000-byte frames up to 36,000 frames/s; "
        f"39,000 frames/s is too much (0.95 confidence, {len(made)} runs)"
    )
    assert data["sentence"] in err
    assert sum(each["survived"] + each["failed"] for each in data["tried"]) == len(made)
    lines = [json.loads(line) for line in (tmp_path / "s" / "runs.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines] == [options.overrides.flood for options in made]
    assert len({options.seed for options in made}) == len({options.out for options in made}) == len(made)


@pytest.mark.parametrize(
    ("find", "fate", "ends", "sentence"),
    [
        (
            "min-free-kbytes",
            from_on("min_free_kbytes", 900),
            (820, 910),
            "64M survives a flood of 40,000 frames/s of 1,000 bytes with min_free_kbytes down to 910 kB; "
            "820 kB is too little",
        ),
        (
            "memory",
            from_on("memory", 50 << 20),
            (47, 51),
            "a flood of 40,000 frames/s of 1,000 bytes, with the default min_free_kbytes, is survived with a memory "
            "down to 51 MiB; 47 MiB is too little",
        ),
    ],
)
def test_the_least_that_is_needed(  # noqa: PLR0917
    find: str,
    fate: Fate,
    ends: tuple[float, float],
    sentence: str,
    rigged: Rigged,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rigged(fate)
    status, data, _ = search(capfd, tmp_path / "s", "--find", find)
    assert (status, data["low"], data["high"]) == (0, *ends)
    assert data["sentence"].startswith(sentence)


def test_a_boundary_outside_of_what_it_began_with_is_found(
    rigged: Rigged, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(up_to("flood", 400_000))
    status, data, _ = search(capfd, tmp_path / "s", "--find", "flood", "--low", "1000", "--high", "2000")
    assert [options.overrides.flood for options in made[:2]] == [1000, 2000]
    assert (status, data["low"], data["high"]) == (0, 390_000, 430_000)


def test_where_there_is_no_boundary_it_says_so(
    rigged: Rigged, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(up_to("flood", 1e9))
    status, data, _ = search(capfd, tmp_path / "s", "--find", "flood")
    assert (status, data["low"], data["high"]) == (1, 10_000_000, None)
    assert ": everything up to 10,000,000 frames/s, the most that was tried" in data["sentence"]


def test_where_nothing_is_survived_it_says_so(
    rigged: Rigged, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(up_to("flood", -1))
    status, data, _ = search(capfd, tmp_path / "s", "--find", "flood")
    assert (status, data["low"], data["high"]) == (1, None, 10)
    assert ": nothing, not even 10 frames/s, the least that was tried" in data["sentence"]


def test_a_flood_that_cannot_be_made_proves_nothing(
    rigged: Rigged, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(up_to("flood", 1e9), fastest=50_000)
    status, data, _ = search(capfd, tmp_path / "s", "--find", "flood")
    assert status == 1
    assert data["low"] <= 56_000
    assert data["high"] is None
    assert "this machine cannot make a flood of" in data["remarks"][0]


def test_a_run_that_breaks_down_does_not_count(
    rigged: Rigged, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fate = up_to("flood", 38_000)
    made = rigged(lambda options: "error" if options.seed % 5 == 0 else fate(options))
    status, data, _ = search(capfd, tmp_path / "s", "--find", "flood")
    assert (status, data["low"], data["high"]) == (0, 36_000, 39_000)
    assert data["runs"] + len(data["not_judged"]) == len(made)
    assert "the rig broke" in data["not_judged"][0]


def test_a_rig_that_is_broken_ends_it(rigged: Rigged, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = rigged(lambda _: "error")
    status, data, err = search(capfd, tmp_path / "s", "--find", "flood")
    assert (status, len(made), data["complete"], data["low"]) == (2, 3, False, None)
    assert "3 runs in a row could not be judged: the rig broke" in err


def test_an_interruption_keeps_what_there_is(rigged: Rigged, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def fate(options: RunOptions) -> Outcome:
        if options.seed == 6:
            raise KeyboardInterrupt
        return "pass"

    rigged(fate)
    status, data, err = search(capfd, tmp_path / "s", "--find", "flood")
    assert (status, data["runs"], data["complete"]) == (2, 5, False)
    assert "testbed: interrupted" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--find", "flood", "--low", "many"), "--low many: could not convert"),
        (("--find", "flood", "--low", "5000", "--high", "5000"), "--low must be less than --high"),
        (("--find", "flood", "--simulate", "--host", "kernel"), "a real kernel cannot be simulated"),
        (("--find", "flood", "--flood", "0"), "has no flood whose rate could be searched for"),
        (("--find", "memory", "--high", "1G", "--low", "0"), "--low 0: it must be from 1 to"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], message: str, rigged: Rigged, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(lambda _: "pass")
    assert cli.main(["search", str(SWAP_FLOOD), *words]) == 2
    _, err = capfd.readouterr()
    assert err.count("\n") == 1
    assert message in err
    assert not made


def test_what_cannot_be_run_is_said_first(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(plan: object) -> None:
        raise CannotRun("this needs root")

    monkeypatch.setattr(preflight, "check", refuse)
    assert cli.main(["search", str(SWAP_FLOOD), "--find", "flood"]) == 2
    assert "this needs root" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("find", "kind", "arguments", "ends", "sentence"),
    [
        (
            "rtt",
            "delay",
            {"seconds": 0.015, "keep_order": True},
            (30, 33),
            "64M with the default min_free_kbytes, under a flood of 40,000 frames/s of 1,000 bytes, survives round "
            "trips longer by up to 30 ms; 33 ms is too much",
        ),
        (
            "loss",
            "loss",
            {"probability": 0.03},
            (3, 3.3),
            "64M with the default min_free_kbytes, under a flood of 40,000 frames/s of 1,000 bytes, survives losses "
            "each way of up to 3%; 3.3% is too much",
        ),
    ],
)
def test_what_a_link_may_do(  # noqa: PLR0917
    find: str,
    kind: str,
    arguments: dict[str, float],
    ends: tuple[float, float],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A value is a fault on the client's link from the start, and the topology itself is left as it was."""

    def run_once(topology: Topology, options: RunOptions) -> Result:
        (step,) = topology.steps
        assert (step.time, step.target, step.kind, set(step.arguments)) == (0.0, "client", kind, set(arguments))
        lived = all(step.arguments[name] <= most for name, most in arguments.items())
        return result(options.patches, options.seed, "pass" if lived else "deadlock")

    monkeypatch.setattr(command, "on_real_sockets", run_once)
    monkeypatch.setattr(preflight, "check", lambda plan: None)
    status, data, _ = search(capfd, tmp_path / "s", "--find", find)
    assert (status, data["low"], data["high"]) == (0, *ends)
    assert data["sentence"].startswith(sentence)
