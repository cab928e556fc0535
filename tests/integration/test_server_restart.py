"""The swap server dies in the middle of it all: what is lost, who is killed, and what goes on as before."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from multiprocess.connection import Connection

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.coordinator import Coordinator, Limits, RunRecord
from testbed.experiment.network import Network
from testbed.experiment.plan import Overrides, Plan, resolve
from testbed.experiment.run import Processes, _Start
from testbed.experiment.verdict import judge
from testbed.hosts.messages import Finished, Ready, Sample
from testbed.hosts.nbd_host import NbdHostSpec, nbd_host_main
from testbed.lab.process import HostProcess
from testbed.nbd.client_tls import TLS_WARNING, TlsFiles
from tests.integration.small_run import ALL_ON, RING, Silent

pytestmark = pytest.mark.root

LIMITS = Limits(time=90.0, stall=20.0)
AREA = 128 << 20


def plan_with(file: Path, **options: Any) -> Plan:
    topology = Topology("restart")
    server = topology.add(NbdServer("server", size=AREA, file=str(file)))
    client = topology.add(SwapClient("client", swap=server, memory="16M", ring=RING, **options))
    topology.connect(server, client, topology.add(Neighbour("noise")))
    topology.workload(client, LinearTouch(processes=8))
    return resolve(topology, Overrides())


class Watching(Silent):
    """Knows how many pages have been swapped in, the latest counters, and what happened."""

    latest: dict[str, int] = {}  # noqa: RUF012

    def sample(self, sample: Sample) -> None:
        self.latest = dict(sample.counters)

    def names(self) -> list[str]:
        return [event.name for event in self.events]


@dataclass
class Restarting(Processes):
    """Kills the server, or pauses it, once pages come back from it, and brings it back when `back` says so."""

    watching: Watching
    start_server: Callable[[], HostProcess]
    back: Callable[[Watching, float], bool]
    programs: list[int | None]
    prepare: Callable[[], None] = lambda: None
    pauses: bool = False
    running: list[HostProcess] = field(default_factory=list)
    killed_at: float | None = None
    again: bool = False

    def start(self) -> None:
        self.server = self.start_server()
        self.running.append(self.server)

    def tick(self, most: float) -> None:
        super().tick(most)
        if self.killed_at is None:
            if self.watching.latest.get("pswpin", 0) > 2000:
                self.take_away()
                self.killed_at = time.monotonic()
        elif not self.again and self.back(self.watching, time.monotonic() - self.killed_at):
            self.again = True
            self.prepare()
            self.bring_back()

    def take_away(self) -> None:
        if self.pauses:
            os.kill(self.server.pid, signal.SIGSTOP)
            return
        for pid in self.programs:
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        self.server.kill()
        self.running.remove(self.server)
        self.server.close()

    def bring_back(self) -> None:
        if self.pauses:
            os.kill(self.server.pid, signal.SIGCONT)
        else:
            self.start()


def run_with_restart(
    plan: Plan,
    *,
    back: Callable[[Watching, float], bool],
    main: Callable[[Connection, NbdHostSpec], None] = nbd_host_main,
    **options: Any,
) -> tuple[RunRecord, Watching]:
    watching = Watching()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(plan))

        programs: list[int | None] = []

        def start_server() -> HostProcess:
            server = plan.servers[0]
            host = network.hosts[server.name]
            process = HostProcess(server.name, main, NbdHostSpec(server), [host]).start()
            programs[:] = [process.wait_ready(30.0).facts.get("pid")]
            return process

        processes = Restarting(watching, start_server, back, programs, **options)
        stack.callback(processes.stop)
        processes.start()
        coordinator = Coordinator(plan, ALL_ON, LIMITS, watching, processes)
        start = _Start(network, processes, coordinator, 1, stack)
        for client in plan.clients:
            start._client(client, plan.canary_source(client))
        coordinator.carry_out()
        assert processes.killed_at is not None
        return coordinator.record(1.0), watching


def ended(record: RunRecord) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The client's report, its swap section, and the checks that failed."""
    report = record.evidence.clients[0].report
    assert report is not None
    wrong = [check.name for check in judge(record.evidence).checks if check.ok is False]
    return dict(report), report["swap"], wrong


@pytest.fixture
def area(tmp_path: Path) -> Path:
    file = tmp_path / "area"
    with file.open("wb") as made:
        made.truncate(AREA)
    return file


def after(seconds: float) -> Callable[[Watching, float], bool]:
    return lambda _watching, away: away > seconds


@pytest.mark.parametrize("connections", [1, 3])
def test_a_server_that_kept_its_data_loses_no_page(area: Path, connections: int) -> None:
    plan = plan_with(area, nbd_dead_conn_timeout=60, nbd_connections=connections)
    record, watching = run_with_restart(plan, back=after(0.7))
    report, swap, wrong = ended(record)
    assert wrong == []
    assert report["workload"]["finished_tasks"] == 8
    assert (swap["nbd_reconnects"], swap["lost_pages"]["count"], swap["sigbus"]) == (connections, 0, 0)
    assert swap["nbd_requeued"] > 0
    assert watching.names().count("nbd_reconnected") == watching.names().count("nbd_connection_lost") == connections


def test_a_server_without_its_data_is_told_which_pages_it_lost(area: Path) -> None:
    def lose() -> None:
        with area.open("r+b") as file:
            file.truncate(0)
            file.truncate(AREA)

    record, _ = run_with_restart(plan_with(area, nbd_dead_conn_timeout=60), back=after(0.3), prepare=lose)
    report, swap, wrong = ended(record)
    assert wrong == ["integrity"]
    lost = swap["lost_pages"]
    assert lost["count"] == report["workload"]["corrupt"] > 0
    assert len(lost["pages"]) == min(300, lost["count"])
    assert len({(page["task"], page["page"]) for page in lost["pages"]}) <= len(lost["pages"])
    assert all(0 < page["slot"] < AREA >> 12 for page in lost["pages"])


@pytest.mark.parametrize("timeout", [None, 0.5])
def test_a_server_that_stays_away_kills_tasks_and_everything_is_accounted_for(
    area: Path, timeout: float | None
) -> None:
    plan = plan_with(area, nbd_dead_conn_timeout=timeout)
    record, _ = run_with_restart(plan, back=lambda _watching, _away: False)
    report, swap, wrong = ended(record)
    verdict = judge(record.evidence)
    assert verdict.outcome == "fail"
    assert set(wrong) <= {"progress", "integrity"}
    assert report["workload"]["finished_tasks"] + report["workload"]["killed_tasks"] == 8
    assert swap["sigbus"] > 0
    assert swap["swap_read_errors"] > 0
    assert (report["pages_leaked"], swap["nbd_reconnects"]) == (0, 0)
    progress = next(check.evidence for check in verdict.checks if check.name == "progress")
    assert "killed by SIGBUS" in progress
    assert "the connection to the swap server was lost" in progress


def test_a_server_that_does_not_answer_is_given_up_and_comes_back(area: Path) -> None:
    plan = plan_with(area, nbd_timeout=0.5, nbd_dead_conn_timeout=60)
    record, watching = run_with_restart(plan, back=after(1.5), pauses=True)
    report, swap, wrong = ended(record)
    assert wrong == []
    assert report["workload"]["finished_tasks"] == 8
    assert swap["nbd_timeouts"] == swap["nbd_reconnects"] >= 1
    assert swap["nbd_requeued"] > 0
    lost = [event.fields["why"] for event in watching.events if event.name == "nbd_connection_lost"]
    assert "did not answer a request within 0.5 s" in lost[0]


def nbdkit_main(channel: Connection, spec: NbdHostSpec) -> None:
    """nbdkit with TLS, in the server's place; its certificates lie beside its file.

    It must be killed by its process id: told to end, it first answers with NBD_ESHUTDOWN, which is an I/O error.
    """
    (area,) = spec.plan.areas
    assert area.file is not None
    directory = Path(area.file).parent
    argv = ["nbdkit", "--foreground", "--exit-with-parent", f"--ipaddr={area.address}", f"--port={area.port}"]
    argv += ["--tls=require", f"--tls-certificates={directory}", "file", area.file]
    server = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((area.address, area.port)) == 0:
                break
    channel.send(Ready(spec.plan.name, {"pid": server.pid}))
    channel.recv()
    server.kill()
    server.wait()
    channel.send(Finished(spec.plan.name))


@pytest.mark.program("nbdkit")
@pytest.mark.program("openssl")
def test_swap_over_tls_survives_a_restart_too_and_the_result_says_what_tls_means(area: Path) -> None:
    make_certificates(area.parent)
    plan = plan_with(area, nbd_dead_conn_timeout=60, tls=TlsFiles(str(area.parent / "ca-cert.pem"), hostname="server"))
    assert any(TLS_WARNING in line for line in plan.warnings)
    record, _ = run_with_restart(plan, back=after(0.3), main=nbdkit_main)
    report, swap, wrong = ended(record)
    assert wrong == []
    assert (report["workload"]["finished_tasks"], swap["nbd_reconnects"]) == (8, 1)


def make_certificates(directory: Path) -> None:
    new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    for name, more in (
        ("ca", ()),
        ("server", ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-addext", "subjectAltName=DNS:server")),
    ):
        files = ("-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem", "-subj", f"/CN={name}")
        subprocess.run([*new, *files, *more], cwd=directory, check=True, capture_output=True)
