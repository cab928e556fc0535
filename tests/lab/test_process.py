"""Host processes: in their namespace from the start, heard to the last word, and never left behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.hosts.messages import Event, Failed, Finished, Ready, Shutdown, StartFlood
from testbed.lab.builder import Lab
from testbed.lab.errors import LabError
from testbed.lab.link import add_bridge
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.process import HostProcess
from testbed.lab.program import run_program
from tests.lab.helpers import eventually, holders_of, is_running

pytestmark = pytest.mark.root


def obedient(channel: Any, spec: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
        channel.send(Ready("host", {"namespace": Path("/proc/self/ns/net").stat().st_ino, "spec": spec}))
    while not isinstance(command := channel.recv(), Shutdown):
        channel.send(Event("host", 0.0, type(command).__name__))
    channel.send(Finished("host", {"done": True}))


def stubborn(channel: Any, spec: Any) -> None:
    if spec:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.send(Ready("host"))
    while True:
        signal.pause()


@pytest.fixture
def hosts() -> Iterator[list[HostProcess]]:
    started: list[HostProcess] = []
    yield started
    for host in started:
        host.kill()
        host.close()


def test_child_is_in_its_namespace_from_the_start(lab: Lab, hosts: list[HostProcess]) -> None:
    spec = {"anything": lambda: 7}
    made = lab.namespace()
    hosts.append(HostProcess("host", obedient, None, [made]).start())
    ready = hosts[0].wait_ready()
    assert ready.facts["namespace"] == made.inode != Path("/proc/self/ns/net").stat().st_ino
    hosts.append(HostProcess("host", lambda channel, given: channel.send(Ready("x", {"r": given["anything"]()})), spec))
    assert hosts[1].start().wait_ready().facts["r"] == 7


def test_commands_and_messages(lab: Lab, hosts: list[HostProcess]) -> None:
    host = HostProcess("host", obedient, None, [lab.namespace()]).start()
    hosts.append(host)
    host.wait_ready()
    assert host.messages() == []
    assert host.send(StartFlood())
    assert select.select([host], [], [], 10)[0] == [host]
    assert host.messages() == [Event("host", 0.0, "StartFlood")]
    assert host.stop() == 0
    assert host.messages() == [Finished("host", {"done": True})]
    assert host.messages() == []
    assert (host.alive, host.exitcode, host.stop()) == (False, 0, 0)
    assert not host.send(StartFlood())


def test_the_other_namespaces_are_let_go(lab: Lab, hosts: list[HostProcess]) -> None:
    own, second, foreign = lab.namespace(), lab.namespace(), lab.namespace()
    assert foreign.netlink.get_links()
    hosts.append(HostProcess("host", obedient, None, [own, second]).start())
    hosts[0].wait_ready()
    assert hosts[0].pid in holders_of(own.inode)
    assert hosts[0].pid in holders_of(second.inode)
    assert hosts[0].pid not in holders_of(foreign.inode)
    assert foreign.netlink.get_links()


def test_child_and_parent_do_not_read_each_others_answers(lab: Lab, hosts: list[HostProcess]) -> None:
    made = lab.namespace()

    def looks(channel: Any, spec: Any) -> None:
        channel.send(Ready("host"))
        names = {tuple(made.route.link_names()) for _ in range(300)}
        channel.send(Finished("host", {"names": names}))

    hosts.append(HostProcess("host", looks, None, [made]).start())
    hosts[0].wait_ready()
    assert {tuple(made.route.link_names()) for _ in range(300)} == {("lo",)}
    assert hosts[0].stop(grace_s=20) == 0
    assert hosts[0].messages() == [Finished("host", {"names": {("lo",)}})]


def test_an_exception_becomes_one_line(hosts: list[HostProcess], capfd: pytest.CaptureFixture[str]) -> None:
    def broken(channel: Any, spec: Any) -> None:
        raise ValueError("first\nsecond")

    host = HostProcess("host", broken, None).start()
    hosts.append(host)
    with pytest.raises(LabError, match="host host: ValueError: first second"):
        host.wait_ready()
    eventually(lambda: not host.alive)
    assert host.messages() == [Failed("host", "ValueError: first second")]
    assert host.messages() == []
    assert host.exitcode == 1
    assert "in broken" in capfd.readouterr().err


def test_a_killed_child_is_reported(hosts: list[HostProcess]) -> None:
    host = HostProcess("host", stubborn, False).start()
    hosts.append(host)
    host.wait_ready()
    os.kill(host.pid, signal.SIGKILL)
    assert select.select([host], [], [], 10)[0]
    assert host.messages() == [Failed("host", "was ended by SIGKILL")]
    with pytest.raises(LabError, match="host host ended"):
        host.wait_ready()


@pytest.mark.parametrize(("ignores_term", "expected"), [(False, signal.SIGTERM), (True, signal.SIGKILL)])
def test_stop_goes_on_to_signals(hosts: list[HostProcess], ignores_term: bool, expected: signal.Signals) -> None:
    host = HostProcess("host", stubborn, ignores_term).start()
    hosts.append(host)
    host.wait_ready()
    assert host.stop(grace_s=0.05) == -expected


def test_not_ready_in_time(hosts: list[HostProcess]) -> None:
    hosts.append(HostProcess("slow", lambda channel, spec: signal.pause(), None).start())
    with pytest.raises(LabError, match=r"host slow did not get ready within 0.05 s"):
        hosts[0].wait_ready(0.05)


def test_a_child_that_talks_much_can_be_stopped(hosts: list[HostProcess]) -> None:
    def talkative(channel: Any, spec: Any) -> None:
        for number in range(2000):
            channel.send(Event("host", 0.0, "x" * 1000, {"number": number}))
        channel.send(Finished("host"))

    host = HostProcess("host", talkative, None).start()
    hosts.append(host)
    assert host.stop(grace_s=30) == 0
    said = host.messages()
    assert len(said) == 2001
    assert said[-1] == Finished("host")


def test_misuse_is_told() -> None:
    host = HostProcess("host", obedient, None)
    assert host.stop() is None
    with pytest.raises(LabError, match="has not been started"):
        _ = host.pid
    host.start()
    with pytest.raises(LabError, match="has been started already"):
        host.start()
    host.close()


def test_interrupt_is_left_to_the_runner(hosts: list[HostProcess]) -> None:
    host = HostProcess("host", obedient, None).start()
    hosts.append(host)
    host.wait_ready()
    os.kill(host.pid, signal.SIGINT)
    host.send(StartFlood())
    assert select.select([host], [], [], 10)[0]
    assert host.messages() == [Event("host", 0.0, "StartFlood")]


def deep(channel: Any, spec: NetworkNamespace) -> None:
    """A host that has a host, that has a program."""

    def middle(inner: Any, _: Any) -> None:
        program = run_program(["sleep", "1000"], spec, output=Path("/dev/null"))
        inner.send(Ready("middle", {"pids": [os.getpid(), program.pid]}))
        inner.recv()

    below = HostProcess("middle", middle, None, [spec]).start()
    facts = below.wait_ready().facts
    channel.send(Ready("top", {"pids": [os.getpid(), *facts["pids"]]}))
    channel.recv()


RUNNER = """
import sys
from testbed.lab.hosts import HostPort, add_hosts
from testbed.lab.link import add_bridge
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.process import HostProcess
from tests.lab.test_process import deep
hub = NetworkNamespace.create()
hosts = add_hosts(add_bridge(hub, "br0"), [HostPort("p", "10.0.0.1/24")])
process = HostProcess("top", deep, hosts[0], hosts).start()
pids = process.wait_ready().facts["pids"]
print(hub.inode, hosts[0].inode, *pids, flush=True)
if sys.argv[1] == "leave":
    sys.exit(0)
sys.stdin.read()
"""


@pytest.mark.parametrize("victim", ["runner", "top", "middle", "leave"])
def test_whoever_is_killed_takes_all_below_along(victim: str) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, victim], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with runner:
        assert runner.stdout is not None
        hub, host, *pids = map(int, runner.stdout.readline().split())
        assert len(pids) == 3
        doomed = {"runner": [*pids], "top": [*pids], "middle": pids[1:], "leave": [*pids]}[victim]
        if victim != "leave":
            os.kill({"runner": runner.pid, "top": pids[0], "middle": pids[1]}[victim], signal.SIGKILL)
        eventually(lambda: not any(map(is_running, doomed)), what="the end of all below")
        runner.kill()
    eventually(lambda: not any(map(is_running, pids)))
    eventually(lambda: not holders_of(hub) and not holders_of(host), what="the end of the namespaces")


def test_program_runs_inside_and_ends_on_request(lab: Lab, tmp_path: Path) -> None:
    made = lab.namespace()
    add_bridge(made, "br7")
    log = tmp_path / "log"
    program = run_program(["sh", "-c", "cat /proc/net/dev; exec sleep 1000"], made, output=log)
    eventually(lambda: "br7" in log.read_text())
    assert program.alive
    assert program.stop() == -signal.SIGTERM
    assert not program.alive


def test_program_that_ignores_sigterm_and_its_helpers_end(lab: Lab, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap '' TERM; sleep 1000 & echo $!; while :; do wait; done"
    with run_program(["sh", "-c", script], lab.namespace(), output=log) as program:
        eventually(lambda: log.read_text().strip())
        helper = int(program.last_line())
        assert program.stop(grace_s=0.05) == -signal.SIGKILL
    eventually(lambda: not is_running(helper))


def test_programs_that_cannot_run(lab: Lab, tmp_path: Path) -> None:
    made = lab.namespace()
    with pytest.raises(LabError, match="there is no program 'no-such-program' on PATH: install it"):
        run_program(["no-such-program"], made, output=tmp_path / "log")
    with run_program(["sh", "-c", "echo why >&2; exit 3"], made, output=tmp_path / "log") as program:
        eventually(lambda: not program.alive)
        assert (program.exitcode, program.last_line()) == (3, "why")


def test_starting_is_quick_enough_to_start_many(lab: Lab, hosts: list[HostProcess]) -> None:
    made = lab.namespace()
    for number in range(20):
        hosts.append(HostProcess(f"host{number}", obedient, None, [made]).start())
    end = time.monotonic() + 20
    assert all(host.wait_ready(end - time.monotonic()) for host in hosts)
