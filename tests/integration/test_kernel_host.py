"""A real kernel in the client's place: our server serves its swap, and the flood decides as it does for the model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood
from testbed.experiment.coordinator import RunRecord
from testbed.experiment.leftovers import PREFIX
from testbed.experiment.load import load_topology
from testbed.experiment.plan import Overrides, Plan, resolve
from testbed.experiment.result import decode
from testbed.experiment.verdict import judge
from testbed.hosts.server_program import OWN_PIDS
from tests.integration.small_run import ALL_OFF, mounts, network_namespaces, run_plan, small_plan
from tests.integration.test_no_trace import assert_nothing_left, children, made_by
from tests.lab.helpers import eventually

pytestmark = [pytest.mark.root, pytest.mark.program("gcc"), pytest.mark.timeout(300)]

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
FLOOD = TOPOLOGIES / "kernel_flood.py"
SMALL = Overrides(host="kernel", workload_total=64 << 20, tasks=4)


def failed(record: RunRecord) -> list[str]:
    return [f"{check.name}: {check.evidence}" for check in judge(record.evidence).checks if check.ok is False]


def flood_plan() -> Plan:
    return resolve(load_topology(FLOOD, [])[0], Overrides(host="kernel"))


@pytest.mark.program("linux.uml")
def test_our_server_serves_a_real_kernels_swap_with_no_page_wrong() -> None:
    record = run_plan(small_plan(memory="40M", overrides=SMALL))
    assert failed(record) == []
    report = record.evidence.clients[0].report
    assert report is not None
    assert report["workload"]["checked"] == report["workload"]["pages"]
    assert report["swap"]["pages_in"] > 0
    assert report["kernel"]["release"] == report["kernel"]["version"]
    assert report["kernel"]["disorder"] is None


@pytest.mark.program("linux.uml")
def test_a_kernel_and_a_model_share_a_topology() -> None:
    topology = Topology("both")
    server = topology.add(NbdServer("server"))
    noise = topology.add(Neighbour("noise"))
    clients = [
        topology.add(SwapClient("real", swap=server, memory="40M", host="kernel", ring=64)),
        topology.add(SwapClient("model", swap=server, memory="16M", ring=64)),
    ]
    topology.connect(server, noise, *clients)
    for client in clients:
        topology.workload(client, LinearTouch(processes=4, total="64M"))
    topology.flood(noise, clients[1], UdpFlood(pps=500, size=200))
    record = run_plan(resolve(topology))
    checks = {check.name: check for check in judge(record.evidence).checks}
    for name in ("canary before", "progress", "integrity", "conservation", "canary after"):
        assert checks[name].ok, checks[name].evidence


@pytest.mark.kernel_image("slub")
def test_under_flood_a_kernel_without_the_series_deadlocks() -> None:
    record = run_plan(flood_plan(), ALL_OFF)
    verdict = judge(record.evidence)
    assert verdict.outcome == "deadlock", [check.evidence for check in verdict.checks]
    report = record.evidence.clients[0].report
    assert report is not None
    hang = report["kernel"]["hang"]
    assert "Mem-Info" in hang["memory"]
    assert hang["silent_s"] < 2, "the guest's sampler hung, too"
    evidence = next(check.evidence for check in verdict.checks if check.name == "progress")
    assert "its kernel" in evidence


@contextmanager
def quiet_run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A run in a process of its own, in the midst of its workload, and all its processes."""
    command = [sys.executable, "-m", "testbed.cli", "run", str(TOPOLOGIES / "swap_quiet.py"), "--host", "kernel"]
    command += ["--out", str(tmp_path / "run")]
    with (tmp_path / "output").open("wb") as output:
        runner = subprocess.Popen(command, stdout=output, stderr=output, cwd=TOPOLOGIES.parent)
    try:
        events = tmp_path / "run" / "events.jsonl"
        eventually(lambda: events.exists() and b"workload_started" in events.read_bytes(), 60.0, "the workload")
        yield runner, [runner.pid, *children(runner.pid)]
    finally:
        runner.kill()
        runner.wait()


def guests(family: list[int]) -> list[int]:
    """Which of these processes are User Mode Linux, the kernel itself first."""
    words = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in family}
    return [pid for pid in family if "rootfstype=hostfs" in words[pid] and words[pid][0] != OWN_PIDS[0]]


@pytest.mark.program("linux.uml")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_of_a_guest_is_left_however_the_run_ends(number: signal.Signals, tmp_path: Path) -> None:
    mounted = mounts()
    with quiet_run(tmp_path) as (runner, family):
        namespaces = made_by(family)
        assert namespaces - network_namespaces([os.getpid()])
        assert guests(family)
        os.kill(runner.pid, number)
        runner.wait(60.0)
    assert_nothing_left(namespaces, mounted, family)
    mine = f"{PREFIX}{runner.pid}-*"
    eventually(lambda: not list(Path(tempfile.gettempdir()).glob(mine)), 20.0, "the end of its directory")


@pytest.mark.program("linux.uml")
def test_a_guest_that_ends_by_itself_fails_the_run(tmp_path: Path) -> None:
    with quiet_run(tmp_path) as (runner, family):
        os.kill(guests(family)[0], signal.SIGKILL)
        assert runner.wait(60.0) == 1
    result = decode((tmp_path / "run" / "result.json").read_bytes())
    assert result.outcome == "fail"
    progress = next(check for check in result.checks if check.name == "progress")
    assert "the machine stopped" in progress.evidence
