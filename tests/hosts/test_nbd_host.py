"""The server's host process obeys the schedule of faults, and its counters say what each fault did."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from multiprocess import Pipe

from testbed.hosts.messages import ClearFault, Event, Finished, Ready, Sample, SetFault, Shutdown
from testbed.hosts.nbd_host import NbdHostSpec, nbd_host_main
from testbed.hosts.plan import Interface, ServerPlan, SwapArea
from testbed.nbd.client import open_connection
from tests.nbd.test_client import complete, pages

HERE = Interface("server", 0, "02:00:00:00:00:01", "127.0.0.1/8", "::1/128", 1500)


@pytest.fixture
def host(free_port: int) -> Iterator[tuple[Any, int]]:
    """The runner's end of a host's pipe, and the port of its one area."""
    area = SwapArea("client", "127.0.0.1", free_port, "swap", 1 << 20, None)
    ours, theirs = Pipe()
    spec = NbdHostSpec(ServerPlan("server", HERE, "testbed", (area,)))
    thread = threading.Thread(target=nbd_host_main, args=(theirs, spec))
    thread.start()
    assert isinstance(ours.recv(), Ready)
    yield ours, free_port
    ours.send(Shutdown())
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def told(channel: Any, command: object) -> Event:
    """What the host says to a command, between its samples."""
    channel.send(command)
    while isinstance(said := channel.recv(), Sample):
        pass
    assert isinstance(said, Event)
    return said


def test_a_fault_is_set_and_cleared(host: tuple[Any, int]) -> None:
    channel, port = host
    with socket.create_connection(("127.0.0.1", port)) as sock:
        client = open_connection(sock, "swap")
        event = told(channel, SetFault(7, "eio_read", {"every_nth": 2}, 1))
        assert (event.name, event.fields) == ("fault_set", {"number": 7})
        for handle in range(4):
            client.read(handle, 0, pages(b""))
        assert sorted(complete(client, 4)) == [(0, 0), (1, 5), (2, 0), (3, 5)]
        event = told(channel, ClearFault(7))
        assert (event.name, event.fields) == (
            "fault_cleared",
            {"number": 7, "requests_seen": 4, "requests_picked": 2},
        )
        client.read(1, 0, pages(b""))
        assert complete(client, 1) == [(1, 0)]
        channel.send(Shutdown())
        while isinstance(said := channel.recv(), Sample):
            pass
    assert isinstance(said, Finished)
    assert said.report["counters"]["fault_eio_read"] == 2
    assert said.report["counters"]["errors"] == 2
