"""What keeps a kernel host from running is one line and status 2, before anything is built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.experiment import leftovers, preflight
from testbed.hosts.kernel import catalogue, guest_program

TOPOLOGIES = Path(__file__).parents[2] / "topologies"


@pytest.fixture(autouse=True)
def _unprivileged_checks_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "require_privilege", lambda: None)
    monkeypatch.setattr(leftovers, "mark_children", lambda: None)


def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path, *options: str) -> str:
    words = ["run", str(TOPOLOGIES / "kernel_flood.py"), "--host", "kernel", "--out", str(tmp_path / "run"), *options]
    assert main(words) == 2
    assert not (tmp_path / "run").exists()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("testbed: ")
    return line


def test_without_a_compiler(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(guest_program, "cache", lambda: tmp_path / "cache")
    assert "apt install gcc" in refusal(capsys, tmp_path)


def test_without_room_for_the_guests_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 10, 10, 10, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert "--shm-size" in refusal(capsys, tmp_path)


@pytest.mark.program("gcc")
@pytest.mark.root
def test_without_any_kernel(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "images", list)
    assert "apt install user-mode-linux" in refusal(capsys, tmp_path)


@pytest.mark.program("gcc")
@pytest.mark.parametrize(
    ("options", "word"),
    [(("--trace",), "--trace"), (("--without", "1"), "patch 1"), (("--without", "11"), "patch 11")],
)
def test_what_a_real_kernel_cannot_do(
    options: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert word in refusal(capsys, tmp_path, *options)


@pytest.mark.program("gcc")
@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ('memory="64M"', 'memory="64M", nodes=2', "nodes=2"),
        ("LinearTouch(", 'LinearTouch(mempolicy="bind:0", ', "mempolicy='bind:0'"),
        ('memory="64M"', 'memory="64M", virtual_machines=[VirtualMachine("guest")]', "virtual_machines=1"),
    ],
)
def test_a_client_that_no_kernel_can_be(
    before: str, after: str, word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["run", str(TOPOLOGIES / "swap_quiet.py"), "--host", "kernel", "--out", str(tmp_path / "run")]
    topology = tmp_path / "two_nodes.py"
    text = (TOPOLOGIES / "swap_quiet.py").read_text().replace(before, after)
    topology.write_text(text.replace("Topology\n", "Topology, VirtualMachine\n", 1))
    words[1] = str(topology)
    assert main(words) == 2
    assert word in capsys.readouterr().err
