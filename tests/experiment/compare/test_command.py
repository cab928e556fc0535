"""`testbed compare` as scripts meet it, with runs whose outcome is known: files, JSON, exit status, going on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.experiment import execution, preflight
from testbed.experiment.arguments import RunOptions
from testbed.experiment.compare import runs
from testbed.experiment.result import Result
from testbed.experiment.topology import Topology
from tests.experiment.compare.planted import Fate, result

ROOT = Path(__file__).parents[3]
SWAP_FLOOD = str(ROOT / "topologies" / "swap_flood.py")


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, RunOptions]]]:
    """Have runs come out as a fate says; returns the host and the options of each as it is made."""

    def rig(fate: Fate) -> list[tuple[str, RunOptions]]:
        made: list[tuple[str, RunOptions]] = []

        def maker(kind: str) -> Callable[[Topology, RunOptions], Result]:
            def run_once(topology: Topology, options: RunOptions) -> Result:
                host = "simulated" if kind == "simulated" else str(options.overrides.host)
                made.append((host, options))
                return fate(host, options)

            return run_once

        monkeypatch.setattr(runs, "on_real_sockets", maker("real"))
        monkeypatch.setattr(runs, "on_virtual_time", maker("simulated"))
        monkeypatch.setattr(preflight, "check", lambda plan: None)
        return made

    return rig


def compare(capfd: pytest.CaptureFixture[str], out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Status, what is in compare.json (the same as on standard output), and standard error."""
    status = cli.main(["compare", "--json", "--out", str(out), *words])
    told, err = capfd.readouterr()
    written = json.loads((out / "compare.json").read_text())
    assert json.loads(told) == written
    return status, written, err


def test_a_topology(
    rigged: Callable[..., list[tuple[str, RunOptions]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(lambda host, options: result(seed=options.seed, pswpin=1000 + options.seed))
    status, data, _ = compare(capfd, tmp_path / "c", SWAP_FLOOD, "--seed", "5", "--repetitions", "3")
    assert status == 0
    assert [(host, options.seed) for host, options in made] == [
        (host, seed) for seed in (5, 6, 7) for host in ("emulated", "kernel")
    ]
    assert len({options.out for _, options in made}) == 6
    assert {options.overrides.preset for _, options in made} == {"6.1"}
    (cell,) = data["cells"]
    assert cell["outcomes"] == {"emulated": {"pass": 3}, "kernel": {"pass": 3}}
    assert cell["counters"]["pswpin"] == {
        "emulated": {"median": 1006.0, "spread": [1005.0, 1007.0], "ratio": 1.0, "within": True},
        "kernel": {"median": 1006.0, "spread": [1005.0, 1007.0]},
    }
    assert (cell["agree"], data["outcome_agreement"], data["reference"]) == (True, 1.0, "kernel")
    assert data["complete"]


def test_vanilla_is_without_the_patches_but_keeps_the_rules_of_its_version(
    rigged: Callable[..., list[tuple[str, RunOptions]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = rigged(lambda host, options: result("deadlock"))
    compare(capfd, tmp_path / "c", SWAP_FLOOD, "--vanilla")
    assert {(options.patches, options.overrides.preset) for _, options in made} == {(frozenset(), "6.1")}


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        (lambda host, options: result("deadlock" if host == "kernel" else "pass"), 1),
        (lambda host, options: result(pswpout=1200 if host == "kernel" else 1000), 1),
        (lambda host, options: result(pswpout=1100 if host == "kernel" else 1000), 0),
        (lambda host, options: result("error" if host == "kernel" else "pass"), 2),
    ],
)
def test_exit_status(
    fate: Fate,
    expected: int,
    rigged: Callable[..., list[tuple[str, RunOptions]]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rigged(fate)
    status, data, err = compare(capfd, tmp_path / "c", SWAP_FLOOD, "--seed", "1")
    assert status == expected
    assert ("        not explained" in err) == (expected == 1)
    assert bool(data["errors"]) == (expected == 2)


def test_a_sample_of_the_grid(
    rigged: Callable[..., list[tuple[str, RunOptions]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(
        lambda host, options: result("pass" if options.patches or options.overrides.memory == 64 << 20 else "deadlock")
    )
    status, data, err = compare(capfd, tmp_path / "c", "--grid", "--cells", "12", "--seed", "4")
    assert status == 0
    assert len(data["cells"]) == 12
    for cell in data["cells"]:
        arguments = cell["arguments"]
        expected = "pass" if arguments["patched"] or arguments["memory"] == 64 << 20 else "deadlock"
        assert cell["outcomes"] == {"emulated": {expected: 1}, "kernel": {expected: 1}}
    assert data["outcome_agreement"] == 1.0
    assert "cells by outcome: kernel down, emulated across" in err
    assert "agreement by condition" in err


def test_an_interrupted_grid_goes_on_where_it_was(
    rigged: Callable[..., list[tuple[str, RunOptions]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    started: list[RunOptions] = []

    def interrupted(host: str, options: RunOptions) -> Result:
        started.append(options)
        if len(started) == 4:
            raise KeyboardInterrupt
        return result("error" if len(started) == 2 else "pass")

    rigged(interrupted)
    out = tmp_path / "c"
    status, data, err = compare(capfd, out, "--grid", "--cells", "3")
    assert (status, data["complete"], data["runs"]) == (2, False, 3)
    assert "interrupted: the same command" in err
    with (out / "runs.jsonl").open("ab") as file:
        file.write(b'{"cell":"cut o')
    made = rigged(lambda host, options: result())
    status, data, err = compare(capfd, out, "--grid", "--cells", "3")
    assert (status, data["complete"], data["runs"]) == (0, True, 6)
    assert len(made) == 4, "two sound runs were kept"
    assert "2 of 6 runs were made before" in err
    again = rigged(lambda host, options: result())
    _, larger, _ = compare(capfd, out, "--grid", "--cells", "5")
    assert len(again) == 4
    assert [cell["name"] for cell in larger["cells"]][:3] == [cell["name"] for cell in data["cells"]]


def test_cells_in_which_the_hosts_differ_are_run_more_often(
    rigged: Callable[..., list[tuple[str, RunOptions]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    differing = 64 << 20

    def fate(host: str, options: RunOptions) -> Result:
        differs = options.overrides.memory == differing and host == "emulated" and options.seed == 9
        return result(PFMemallocDrop=1000 if differs else 7)

    made = rigged(fate)
    words = ("--grid", "--cells", "6", "--repetitions-if-differing", "4", "--seed", "9")
    status, data, _ = compare(capfd, tmp_path / "c", *words)
    by_memory = Counter(options.overrides.memory for _, options in made)
    differing_cells = sum(cell["arguments"]["memory"] == differing for cell in data["cells"])
    assert 0 < differing_cells < 6
    assert by_memory[differing] == differing_cells * 4 * 2
    assert by_memory.total() == by_memory[differing] + (6 - differing_cells) * 2
    assert (status, data["complete"], data["disagreements"]) == (0, True, [])
    again = rigged(fate)
    compare(capfd, tmp_path / "c", *words)
    assert again == [], "nothing is run twice"


def test_a_directory_of_another_comparison_is_left_alone(
    rigged: Callable[..., list[tuple[str, RunOptions]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rigged(lambda host, options: result())
    out = tmp_path / "c"
    compare(capfd, out, SWAP_FLOOD, "--seed", "1")
    before = (out / "runs.jsonl").read_bytes()
    for words in ([SWAP_FLOOD, "--seed", "2"], [SWAP_FLOOD, "--tasks", "3"], ["--grid", "--cells", "1"]):
        assert cli.main(["compare", "--out", str(out), *words]) == 2
        assert "holds another comparison" in capfd.readouterr().err
    assert (out / "runs.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "needs either a topology or --grid"),
        ([SWAP_FLOOD, "--grid"], "needs either a topology or --grid"),
        ([SWAP_FLOOD, "--hosts", "emulated"], "two or three different hosts"),
        ([SWAP_FLOOD, "--hosts", "kernel,kernel"], "two or three different hosts"),
        ([SWAP_FLOOD, "--hosts", "kernel,qemu"], "'qemu' is not one of"),
        ([SWAP_FLOOD, "--host", "kernel"], "use --hosts"),
        ([SWAP_FLOOD, "--cells", "3"], "--cells goes with --grid"),
        (
            [SWAP_FLOOD, "--repetitions", "2", "--repetitions-if-differing", "1"],
            "--repetitions-if-differing 1 is less than --repetitions 2",
        ),
        ([SWAP_FLOOD, "--nonsense"], "unrecognized arguments: --nonsense"),
        (["--grid", "--memory", "64M", "--mtu", "2000"], "the grid sets memory, mtu itself"),
        (["--grid", "--vanilla"], "it takes no --vanilla"),
        (["--grid", "--without", "3"], "it takes no --vanilla or --without"),
        ([SWAP_FLOOD, "--flood-size", "9999"], "flood frames must have"),
        ([SWAP_FLOOD, "--mtu", "9001"], "mtu must be"),
        ([SWAP_FLOOD, "--without", "6"], "patch 6 acts only on"),
        ([SWAP_FLOOD, "--without", "13", "--slab", "slub"], "patch 13 acts only on"),
        ([SWAP_FLOOD, "--without", "99"], "there is no patch 99"),
        ([SWAP_FLOOD, "--hosts", "emulated,simulated", "--out", "/dev/null"], "cannot write to /dev/null: Not a dir"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        status = cli.main(["compare", "--out", str(tmp_path / "c"), *words])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert part in err
    assert err.count("\n") == 1
    assert not (tmp_path / "c").exists()


SMALL = ("--memory", "8M", "--workload-total", "12M", "--flood", "2000", "--tasks", "2", "--seed", "3")


def test_small_simulations_in_two_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "on_real_sockets", execution.on_virtual_time)
    monkeypatch.setattr(preflight, "check", lambda plan: None)
    words = ("--hosts", "emulated,simulated", "--workers", "2", "--min-free-kbytes", "600", *SMALL)
    status, data, err = compare(capfd, tmp_path / "c", SWAP_FLOOD, *words)
    assert status == 0, err
    assert data["outcome_agreement"] == 1.0
    for name, by_host in data["cells"][0]["counters"].items():
        assert by_host["simulated"]["ratio"] == 1.0, name
        assert by_host["simulated"]["within"], name
    assert data["cells"][0]["counters"]["pswpout"]["emulated"]["median"] > 0
    assert len(list((tmp_path / "c" / "runs").iterdir())) == 2


def test_the_figure_has_both_hosts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(runs, "on_real_sockets", execution.on_virtual_time)
    monkeypatch.setattr(preflight, "check", lambda plan: None)
    words = ("--hosts", "emulated,simulated", "--min-free-kbytes", "600", *SMALL)
    _, _, err = compare(capfd, tmp_path / "c", SWAP_FLOOD, *words)
    assert "no figure" not in err
    assert (tmp_path / "c" / "compare.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "c" / "compare.svg").read_text()
    for words_in_it in ("emulated: ", "simulated: ", "PFMemallocDrop", "pswpin", "free pages"):
        assert words_in_it in drawn


PAGES = """
from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology

topology = Topology("pages")
server = topology.add(NbdServer("server"))
client = topology.add(SwapClient("client", memory="16M", swap=server, driver="page"))
topology.connect(server, client, topology.add(Neighbour("noise")))
topology.workload(client, LinearTouch())
"""


def test_what_a_real_kernel_cannot_undo_is_refused_before_any_run(
    rigged: Callable[..., list[tuple[str, RunOptions]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = rigged(lambda host, options: result())
    (tmp_path / "pages.py").write_text(PAGES)
    words = ["compare", "--out", str(tmp_path / "c"), str(tmp_path / "pages.py"), "--without", "11", "--force"]
    assert (cli.main(words), made) == (2, [])
    assert capsys.readouterr().err.startswith("testbed: patch 11 cannot be undone on a real kernel")
