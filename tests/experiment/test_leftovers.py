"""What `clean` removes, and what it must leave alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.experiment import leftovers

GONE = "4194305-1"
"""No process id is as high as this."""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        env={**os.environ, leftovers.VARIABLE: GONE},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    with process:
        yield process
        process.kill()


def proc_with(tmp_path: Path, *pids: int) -> Path:
    """A /proc with these processes only, so that a test ends no other run's."""
    proc = tmp_path / "proc"
    proc.mkdir()
    for pid in pids:
        (proc / str(pid)).symlink_to(f"/proc/{pid}")
    return proc


def test_a_program_whose_run_is_gone_is_ended(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (line,) = leftovers.clean(tmp_path, proc_with(tmp_path, sleeper.pid))
    assert line.startswith(f"ended process {sleeper.pid} (")
    assert sleeper.wait(5) == -9


def test_a_program_whose_run_goes_on_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(leftovers.VARIABLE, raising=False)
    leftovers.mark_children()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert leftovers.clean(tmp_path, proc_with(tmp_path, child.pid, os.getpid())) == []
        assert child.poll() is None
        child.kill()


def test_a_program_of_nobody_is_left_alone(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != leftovers.VARIABLE}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment) as child:
        assert leftovers.clean(tmp_path, proc_with(tmp_path, child.pid)) == []
        assert child.poll() is None
        child.kill()


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    proc = proc_with(tmp_path, os.getpid())
    stale = tmp_path / f"testbed-{GONE}-abc"
    recycled = tmp_path / f"testbed-{os.getpid()}-1-abc"
    foreign = tmp_path / "testbed-notes"
    for each in (stale, recycled, foreign):
        each.mkdir()
    with leftovers.temporary_directory() as mine:
        (mine / "socket").touch()
        assert leftovers.clean(tmp_path, proc) == [f"removed {path}" for path in sorted([stale, recycled])]
        assert mine.exists()
    assert not mine.exists()
    assert foreign.exists()
    assert leftovers.clean(tmp_path, proc) == []


OWNER = """
import os, sys, tempfile
from testbed.experiment.leftovers import temporary_directory
tempfile.tempdir = sys.argv[1]
with temporary_directory() as path:
    (path / "socket").touch()
    if sys.argv[2] == "forks" and not os.fork():
        sys.stdin.read()
        os._exit(0)
    print(path, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("what", ["alone", "forks"])
def test_a_directory_does_not_outlive_a_killed_owner_and_what_it_forked(tmp_path: Path, what: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        assert (path / "socket").exists()
        owner.kill()
        owner.wait()
        assert what == "alone" or path.exists()
        owner.stdin.close()
        deadline = time.monotonic() + 20
        while path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_mark_names_one_process_only() -> None:
    assert leftovers.owner_mark().startswith(f"{os.getpid()}-")
    with pytest.raises(ProcessLookupError):
        leftovers.owner_mark(4194305)
