"""Namespaces: separate, anonymous, left again, and gone when they should be."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import socket
import threading
from pathlib import Path

import pytest

from testbed.lab import namespace as module
from testbed.lab.builder import Lab
from testbed.lab.errors import LabError
from testbed.lab.link import add_bridge, add_veth, set_address, set_down, set_up
from testbed.lab.namespace import NetworkNamespace, wait_gone
from testbed.lab.rtnetlink import RouteSocket
from tests.lab.conftest import Wire
from tests.lab.helpers import eventually, holders_of

pytestmark = pytest.mark.root


def current() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_create_leaves_the_thread_where_it_was(lab: Lab) -> None:
    before = current()
    made = lab.namespace()
    assert current() == before
    assert made.inode != before
    assert made.route.link_names() == {"lo"}


def test_loopback_works_inside(lab: Lab) -> None:
    with (
        lab.namespace().entered(),
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_entered_returns_even_after_an_error(lab: Lab) -> None:
    before, made = current(), lab.namespace()

    def fails() -> None:
        with made.entered():
            assert current() == made.inode
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert current() == before


def test_entered_moves_only_its_own_thread(lab: Lab) -> None:
    before, made, seen = current(), lab.namespace(), []
    with made.entered():
        other = threading.Thread(target=lambda: seen.append(current()))
        other.start()
        other.join()
    # a thread starts in the namespace of the thread that made it, and stays there when that one leaves
    assert seen == [made.inode]
    assert current() == before


def test_a_socket_stays_in_the_namespace_it_was_opened_in(lab: Lab) -> None:
    made = lab.namespace()
    with made.entered():
        inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        outside.bind(("127.0.0.1", 0))
        inside.sendto(b"x", outside.getsockname())
        outside.setblocking(False)
        with pytest.raises((BlockingIOError, ConnectionRefusedError)):
            outside.recv(1)


def test_pyroute2_works_in_the_namespace_from_outside(lab: Lab) -> None:
    made = lab.namespace()
    add_bridge(made, "br0")
    assert {link.get("ifname") for link in made.netlink.get_links()} == {"lo", "br0"}


def test_tcp_is_the_same_on_every_machine(lab: Lab) -> None:
    with lab.namespace().entered(), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).startswith(b"reno\0")


def test_no_ipv6_unless_asked_for(lab: Lab) -> None:
    def addresses() -> str:
        return Path("/proc/thread-self/net/if_inet6").read_text()

    with lab.namespace().entered() as _, NetworkNamespace.create(ipv6=True) as speaking:
        assert "eth0" not in addresses()
        add_veth((speaking, "eth0"), (speaking, "eth1"))
        set_up(speaking, "eth0")
        set_up(speaking, "eth1")
        with speaking.entered():
            eventually(lambda: "eth0" in addresses(), what="a link-local address")


def test_two_labs_with_the_same_names_do_not_meet(lab: Lab) -> None:
    hubs = [lab.namespace(), lab.namespace()]
    for hub in hubs:
        host = lab.namespace()
        add_veth((hub, "port0"), (host, "eth0"), master_a=add_bridge(hub, "br0"))
        set_address(host, "eth0", "10.0.0.1/24")
    assert [hub.route.link_names() for hub in hubs] == [{"lo", "br0", "port0"}] * 2


def test_nothing_is_mounted(lab: Lab) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    lab.namespace()
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.usefixtures("descriptors")
def test_close_gives_everything_back() -> None:
    made = NetworkNamespace.create()
    inode = made.inode
    assert made.netlink.get_links()
    made.close()
    made.close()
    assert made.closed
    assert holders_of(inode) == []


@pytest.mark.usefixtures("descriptors")
def test_a_failure_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(RouteSocket):
        def request(self, requests: object) -> None:
            raise LabError("no")

    monkeypatch.setattr(module, "RouteSocket", Broken)
    before = current()
    with pytest.raises(LabError):
        NetworkNamespace.create()
    assert current() == before


def test_wait_gone_returns_when_links_are_gone(lab: Lab) -> None:
    hub = lab.namespace()
    bridge = add_bridge(hub, "br0")
    hosts = [NetworkNamespace.create() for _ in range(5)]
    for number, host in enumerate(hosts):
        add_veth((hub, f"port{number}"), (host, "eth0"), master_a=bridge)
    wait_gone(hosts)
    assert hub.route.link_names() == {"lo", "br0"}
    assert all(host.closed for host in hosts)


def test_wait_gone_says_when_something_still_holds_one() -> None:
    held = NetworkNamespace.create()
    with held.entered():
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with holder, pytest.raises(LabError, match=r"1 of 1 .* still held by a process or socket"):
        wait_gone([held], deadline_s=0.05)


def test_wait_gone_does_not_wait_for_connections_that_cannot_end(wire: Wire) -> None:
    for namespace, address in ((wire.a, "10.0.0.1/24"), (wire.b, "10.0.0.2/24")):
        set_address(namespace, "eth0", address)
    with wire.b.entered():
        server = socket.create_server(("10.0.0.2", 0))
    with wire.a.entered():
        client = socket.socket()
    with server, client:
        client.connect(server.getsockname())
        server.accept()[0].close()
        set_down(wire.b, "eth0")
        client.send(b"never acknowledged")
    wait_gone([wire.a, wire.b], deadline_s=2.0)


def test_without_privilege_the_error_says_what_is_needed() -> None:
    receiving, sending = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
            assert ctypes.CDLL(None).capset(version_3, (ctypes.c_uint32 * 6)()) == 0
            NetworkNamespace.create()
        except BaseException as error:
            sending.send(str(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert receiving.poll(5)
    text = receiving.recv()
    receiving.close()
    sending.close()
    assert "needs root (CAP_NET_ADMIN" in text
    assert "\n" not in text
