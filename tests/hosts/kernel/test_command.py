"""`testbed kernel` as it is called: what it prints and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.hosts.kernel.recipe import PATCH
from tests.hosts.kernel.fakes import kernel


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without kernels, compilers and apt; a directory on its PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TESTBED_RUN", "")
    return tmp_path / "bin"


def test_without_a_kernel_the_list_says_how_to_get_one(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", "list"]) == 0
    assert capsys.readouterr().out == "there is none: apt install user-mode-linux, or testbed kernel build\n"
    assert main(["kernel", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_list_has_a_line_for_each_kernel(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kernel(bare / "linux.uml")
    assert main(["kernel", "list"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "6.1.0-fake" in line]
    assert "package" in row
    assert str(path) in row
    assert main(["kernel", "list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["version"], entry["slab"], entry["built"], entry["changes"]) == ("6.1.0-fake", "slub", False, [])


def test_a_build_that_cannot_start_is_one_line_and_status_2(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", "build"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("testbed: building a kernel needs more programs: apt install gcc ")
    assert error.count("\n") == 1


def test_the_patch_is_shown_as_it_is_applied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", "patch"]) == 0
    assert capsys.readouterr().out == PATCH.read_text()


@pytest.mark.parametrize("words", [["kernel"], ["kernel", "make"], ["kernel", "build", "--slab", "slob"]])
def test_a_wrong_call_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
