"""Who makes the runs: processes that an interruption ends, a process of its own, a cluster."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.experiment.apart import attempt_apart
from testbed.experiment.arguments import RunOptions
from testbed.experiment.cluster import Cluster
from testbed.experiment.errors import CannotRun
from testbed.experiment.execution import Job, Workers
from testbed.experiment.plan import Overrides
from testbed.experiment.result import Result
from testbed.experiment.topology import Topology
from testbed.patches import PATCHES
from tests.experiment.small import build


def named(topology: Topology, options: RunOptions) -> Result:
    """A run that says in which process it was made; seed 13 cannot be made."""
    if options.seed == 13:
        raise CannotRun("no luck")
    return Result(outcome="pass", seed=options.seed, topology=topology.name, environment={"pid": os.getpid()})


def endless(topology: Topology, options: RunOptions) -> Result:
    """A run that only an interruption ends, and that cleans up then."""
    assert options.out is not None
    try:
        (options.out / f"{options.seed}-started").touch()
        while True:
            time.sleep(0.01)
    finally:
        (options.out / f"{options.seed}-cleaned").touch()


def killed(topology: Topology, options: RunOptions) -> Result:
    """A run whose process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def job(key: int) -> Job:
    return named, build(), RunOptions(frozenset(PATCHES), Overrides(), key)


def test_workers_are_other_processes() -> None:
    with Workers(job, 2) as run_many:
        made = dict(run_many([1, 2, 13]))
    assert {key: each.outcome for key, each in made.items()} == {1: "pass", 2: "pass", 13: "error"}
    assert os.getpid() not in {made[1].environment["pid"], made[2].environment["pid"]}
    assert made[13].error == "no luck"


def test_an_interruption_ends_the_runs_that_are_under_way(tmp_path: Path) -> None:
    def forever(key: int) -> Job:
        return endless, build(), RunOptions(frozenset(PATCHES), Overrides(), key, out=tmp_path)

    def interrupted_once_both_run() -> None:
        with Workers(forever, 2) as run_many:
            runs = run_many([1, 2])
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            next(runs)

    def interrupt(*_: object) -> None:
        if len(list(tmp_path.glob("*-started"))) == 2:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_once_both_run()
    assert {path.name for path in tmp_path.glob("*-cleaned")} == {"1-cleaned", "2-cleaned"}


RUNNER = """
import sys
from pathlib import Path
from tests.experiment import test_execution
if __name__ == "__main__":
    test_execution.run_forever(Path(sys.argv[1]))
"""


def run_forever(out: Path) -> None:
    """What is killed below."""

    def forever(key: int) -> Job:
        return endless, build(), RunOptions(frozenset(PATCHES), Overrides(), key, out=out)

    with Workers(forever, 2) as run_many:
        list(run_many([1, 2]))


def start_runner(directory: Path) -> subprocess.Popen[str]:
    """`run_forever` in a process and a session of its own."""
    script = directory / "runner.py"
    script.write_text(RUNNER)
    return subprocess.Popen(
        [sys.executable, str(script), str(directory)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def test_workers_do_not_outlive_who_asked_for_the_runs(tmp_path: Path) -> None:
    runner = start_runner(tmp_path)
    while len(list(tmp_path.glob("*-started"))) < 2:
        assert runner.poll() is None
        time.sleep(0.05)
    runner.kill()
    runner.communicate(timeout=20)  # to its end: whoever is left has standard error open


def test_the_workers_of_a_background_job_which_ignores_sigint_work() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Workers(job, 1) as run_many:
            assert [result.outcome for _, result in run_many([7])] == ["pass"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_workers_that_only_start_are_interrupted_without_a_word(tmp_path: Path) -> None:
    runner = start_runner(tmp_path)
    children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children")
    while len(children.read_text().split()) < 2:
        assert runner.poll() is None
        time.sleep(0.01)
    os.killpg(runner.pid, signal.SIGINT)
    _, errors = runner.communicate(timeout=20)
    assert errors.count("Traceback") == 1, "the runner's own"


def test_a_run_apart_gives_its_result_whatever_becomes_of_its_process() -> None:
    made = attempt_apart(job(7))
    assert (made.outcome, made.seed) == ("pass", 7)
    assert made.environment["pid"] != os.getpid()
    assert attempt_apart(job(13)).error == "no luck"
    broken = attempt_apart((killed, *job(3)[1:]))
    assert broken.outcome == "error"
    assert "ended with status -9" in (broken.error or "")


def test_a_cluster_makes_the_runs() -> None:
    distributed = pytest.importorskip("distributed")
    local = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="inproc"
    )
    with local, Cluster(job, local) as run_many:
        made = dict(run_many([1, 13]))
    assert {key: each.outcome for key, each in made.items()} == {1: "pass", 13: "error"}


def test_a_malformed_address_is_no_clusters() -> None:
    pytest.importorskip("distributed")
    started = time.monotonic()
    with pytest.raises(CannotRun, match="no cluster at nowhere: missing port number"):
        Cluster(job, "nowhere")
    gc.collect()
    assert time.monotonic() - started < 10


def test_without_a_cluster_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(CannotRun, match=r"swap-testbed\[cluster\]"):
        Cluster(job, "127.0.0.1:1")
