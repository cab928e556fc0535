"""A real kernel in the client's place: our server serves its swap, and the flood decides as it does for the model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood
from testbed.experiment.coordinator import RunRecord
from testbed.experiment.load import load_topology
from testbed.experiment.plan import Overrides, Plan, resolve
from testbed.experiment.verdict import judge
from tests.integration.small_run import ALL_OFF, ALL_ON, mounts, network_namespaces, run_plan, small_plan
from tests.integration.test_no_trace import assert_nothing_left, children, made_by
from tests.lab.helpers import eventually

pytestmark = [pytest.mark.root, pytest.mark.program("gcc")]

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
FLOOD = TOPOLOGIES / "kernel_flood.py"
SMALL = Overrides(host="kernel", workload_total=40 << 20, tasks=4)


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
        topology.workload(client, LinearTouch(processes=4, total="40M"))
    topology.flood(noise, clients[1], UdpFlood(pps=500, size=200))
    record = run_plan(resolve(topology))
    checks = {check.name: check for check in judge(record.evidence).checks}
    for name in ("canary before", "progress", "integrity", "conservation", "canary after"):
        assert checks[name].ok, checks[name].evidence


@pytest.mark.kernel_image("slub")
def test_under_flood_the_series_completes() -> None:
    record = run_plan(flood_plan(), ALL_ON)
    report = record.evidence.clients[0].report
    assert report is not None
    assert report["workload"]["finished_tasks"] == 8
    assert report["workload"]["corrupt"] == 0
    checks = {check.name: check for check in judge(record.evidence).checks}
    for name in ("swap is spared", "integrity", "conservation", "the switch took effect"):
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


@pytest.mark.program("linux.uml")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_of_a_guest_is_left_however_the_run_ends(number: signal.Signals, tmp_path: Path) -> None:
    mounted = mounts()
    command = [sys.executable, "-m", "testbed.cli", "run", str(TOPOLOGIES / "swap_quiet.py"), "--host", "kernel"]
    command += ["--out", str(tmp_path / "run")]
    with (tmp_path / "output").open("wb") as output:
        runner = subprocess.Popen(command, stdout=output, stderr=output, cwd=TOPOLOGIES.parent)
    try:
        events = tmp_path / "run" / "events.jsonl"
        eventually(lambda: events.exists() and b"workload_started" in events.read_bytes(), 60.0, "the workload")
        family = [runner.pid, *children(runner.pid)]
        namespaces = made_by(family)
        assert namespaces - network_namespaces([os.getpid()])
        assert any("linux.uml" in Path(f"/proc/{pid}/cmdline").read_text() for pid in family)
        os.kill(runner.pid, number)
        runner.wait(60.0)
    finally:
        runner.kill()
        runner.wait()
    assert_nothing_left(namespaces, mounted, family)
