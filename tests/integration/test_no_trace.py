"""Whatever way a run ends, nothing of it stays: no process, no namespace, no mount."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.small_run import mounts, network_namespaces
from tests.lab.helpers import eventually, is_running

pytestmark = pytest.mark.root

TOPOLOGY = Path(__file__).parents[2] / "topologies" / "swap_flood.py"
GONE_WITHIN_S = 20.0
ROUNDS = int(os.environ.get("TESTBED_KILL_ROUNDS", "6"))


def children(pid: int) -> list[int]:
    """All processes below `pid`, at this moment."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *children(child)]
    except OSError:
        pass
    return found


@contextmanager
def running(tmp_path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`testbed run` on the demo in a process of its own."""
    command = [sys.executable, "-m", "testbed.cli", "run", str(TOPOLOGY)]
    command += ["--memory", "32M", "--out", str(tmp_path / "run")]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output, cwd=tmp_path)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def under_way(tmp_path: Path) -> bool:
    events = tmp_path / "run" / "events.jsonl"
    return events.exists() and b"workload_started" in events.read_bytes()


def assert_nothing_left(namespaces: set[int], mounted: list[str], pids: list[int]) -> None:
    eventually(lambda: not any(is_running(pid) for pid in pids), GONE_WITHIN_S, "the end of all processes")
    eventually(lambda: network_namespaces() <= namespaces, GONE_WITHIN_S, "the end of all namespaces")
    assert mounts() == mounted


@pytest.mark.parametrize("round_number", range(ROUNDS))
def test_kill_9_of_the_runner_or_a_child_leaves_nothing(round_number: int, tmp_path: Path) -> None:
    chosen = random.Random(round_number)
    before, mounted = network_namespaces(), mounts()
    with running(tmp_path) as runner:
        if round_number % 2:
            eventually(lambda: under_way(tmp_path), 30.0, "the start of the workload")
        deadline = time.monotonic() + chosen.uniform(0.2, 3.0)
        while time.monotonic() < deadline and runner.poll() is None:
            time.sleep(0.01)
        family = [runner.pid, *children(runner.pid)]
        victim = runner.pid if round_number % 3 == 0 else chosen.choice(family)
        os.kill(victim, signal.SIGKILL)
        if victim != runner.pid:
            assert runner.wait(60.0) != 0
        else:
            runner.wait(60.0)
    assert_nothing_left(before, mounted, family)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_and_says_so(number: signal.Signals, tmp_path: Path) -> None:
    before, mounted = network_namespaces(), mounts()
    with running(tmp_path) as runner:
        eventually(lambda: under_way(tmp_path), 30.0, "the start of the workload")
        family = [runner.pid, *children(runner.pid)]
        runner.send_signal(number)
        assert runner.wait(60.0) == 2
    assert_nothing_left(before, mounted, family)
    assert b"interrupted" in (tmp_path / "output").read_bytes()
    assert b"Traceback" not in (tmp_path / "output").read_bytes()


def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    before, mounted = network_namespaces(), mounts()
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    options = ("--memory", "16M", "--flood", "0", "--json")
    with running(first, *options) as one, running(second, *options) as other:
        assert [one.wait(120.0), other.wait(120.0)] == [0, 0]
    assert_nothing_left(before, mounted, [one.pid, other.pid])
    for directory in (first, second):
        assert json.loads((directory / "run" / "result.json").read_bytes())["outcome"] == "pass"
