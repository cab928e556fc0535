"""Links: wired as asked, refused with a line, and counted."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Callable

import pytest

from testbed.lab.builder import Lab
from testbed.lab.errors import LabError
from testbed.lab.hosts import HostPort, add_hosts
from testbed.lab.link import (
    add_bridge,
    add_permanent_neighbour,
    add_veth,
    delete_link,
    interface_mtu,
    interface_statistics,
    mac_address,
    set_address,
    set_down,
    set_offloads,
    set_up,
    wait_up,
)
from testbed.lab.namespace import NetworkNamespace, wait_gone
from tests.lab.conftest import MAC_B, Wire

pytestmark = pytest.mark.root


def offload(namespace: NetworkNamespace, ifname: str, command: int) -> bool:
    value = ctypes.create_string_buffer(struct.pack("=II", command, 0))
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8946, struct.pack("=16sQ16x", ifname.encode(), ctypes.addressof(value)))
    return bool(struct.unpack("=II", value.raw[:8])[1])


def exchange(source: NetworkNamespace, destination: NetworkNamespace, address: str) -> bytes:
    with destination.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with source.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.settimeout(5)
        receiver.bind((address, 0))
        sender.sendto(b"over the wire", receiver.getsockname())
        return receiver.recv(100)


def test_hosts_on_a_bridge_reach_each_other_at_once(lab: Lab) -> None:
    bridge = add_bridge(lab.namespace(), "br0")
    ports = [HostPort(f"port{n}", f"10.0.0.{n + 1}/24", mac=f"02:00:00:00:01:{n:02x}") for n in range(40)]
    hosts = add_hosts(bridge, ports)
    assert exchange(hosts[0], hosts[39], "10.0.0.40") == b"over the wire"
    assert mac_address(hosts[39], "eth0") == "02:00:00:00:01:27"
    wait_gone(hosts)
    assert bridge.namespace.route.link_names() == {"lo", "br0"}


def test_more_hosts_can_be_added_later(lab: Lab) -> None:
    bridge = add_bridge(lab.namespace(), "br0")
    lab.namespaces += add_hosts(bridge, [HostPort("a", "10.0.0.1/24")])
    lab.namespaces += add_hosts(bridge, [HostPort("b", "10.0.0.2/24", mtu=9000), HostPort("c", None)])
    assert bridge.namespace.route.link_names() == {"lo", "br0", "a", "b", "c"}
    assert interface_mtu(lab.namespaces[2], "eth0") == 9000


@pytest.mark.usefixtures("descriptors")
def test_hosts_that_cannot_all_be_made_are_not_made() -> None:
    with NetworkNamespace.create() as hub:
        bridge = add_bridge(hub, "br0")
        with pytest.raises(LabError, match=r"making link same - eth0: File exists"):
            add_hosts(bridge, [HostPort("same", "10.0.0.1/24"), HostPort("same", "10.0.0.2/24")])
        with pytest.raises(LabError, match="not an address"):
            add_hosts(bridge, [HostPort("x", "10.0.0.1/24"), HostPort("y", "nonsense")])
        with pytest.raises(LabError, match="not the MAC address of a host"):
            add_hosts(bridge, [HostPort("z", None, mac="01:00:00:00:00:01")])
        with pytest.raises(LabError, match="cannot name an interface"):
            add_hosts(bridge, [HostPort("a name that is too long", None)])


def test_addresses_neighbours_and_state(wire: Wire) -> None:
    set_address(wire.a, "eth0", "10.0.0.1/24")
    set_address(wire.b, "eth0", "10.0.0.2/24")
    add_permanent_neighbour(wire.a, "eth0", "10.0.0.2", MAC_B)
    add_permanent_neighbour(wire.a, "eth0", "10.0.0.2", MAC_B)
    assert exchange(wire.a, wire.b, "10.0.0.2") == b"over the wire"
    counters = interface_statistics(wire.b, "eth0")
    assert counters["rx_packets"] == interface_statistics(wire.a, "eth0")["tx_packets"] == 1
    assert counters["rx_dropped"] == 0
    set_down(wire.a, "eth0")
    with pytest.raises(OSError, match="unreachable"):
        exchange(wire.a, wire.b, "10.0.0.2")


def test_an_interface_whose_other_end_is_down_is_not_waited_for_in_vain(wire: Wire) -> None:
    set_down(wire.b, "eth0")
    with pytest.raises(LabError, match="eth0 carries no frames"):
        wait_up(wire.a, "eth0", deadline_s=0.05)
    set_up(wire.b, "eth0")
    wait_up(wire.a, "eth0")


def test_offloads_switch_off_and_on(wire: Wire) -> None:
    every = (0x16, 0x1E, 0x23, 0x2B)
    set_offloads(wire.a, "eth0", on=False)
    assert [offload(wire.a, "eth0", command) for command in every] == [False] * 4
    set_offloads(wire.a, "eth0", on=True)
    assert [offload(wire.a, "eth0", command) for command in every] == [True] * 4


def test_deleting_one_end_deletes_both(wire: Wire) -> None:
    delete_link(wire.a, "eth0")
    assert wire.a.route.link_names() == wire.b.route.link_names() == {"lo"}


@pytest.mark.parametrize("name", ["", "a" * 16, "a b", "a/b", "..", "a:b"])
def test_names_the_kernel_would_not_take(lab: Lab, name: str) -> None:
    hub = lab.namespace()
    with pytest.raises(LabError, match="cannot name an interface"):
        add_bridge(hub, name)
    with pytest.raises(LabError, match="cannot name an interface"):
        add_veth((hub, "fine"), (hub, name))
    assert hub.route.link_names() == {"lo"}


def test_errors_are_one_line_that_says_what(wire: Wire) -> None:
    calls: dict[str, Callable[[], object]] = {
        "looking for none": lambda: set_up(wire.a, "none"),
        "making link eth0 - new": lambda: add_veth((wire.a, "eth0"), (wire.b, "new")),
        "reading the counters of none": lambda: interface_statistics(wire.a, "none"),
        "switching offloads of none": lambda: set_offloads(wire.a, "none", on=False),
        "'10.0.0.1' is not an address with a prefix": lambda: set_address(wire.a, "eth0", "10.0.0.1"),
        "'nonsense' is not the MAC": lambda: add_veth((wire.a, "x"), (wire.b, "new"), mac_a="nonsense"),
        "'nonsense' is not an IP": lambda: add_permanent_neighbour(wire.a, "eth0", "nonsense", MAC_B),
        "making link x - new: ": lambda: add_veth((wire.a, "x"), (wire.b, "new"), mtu=70_000),
    }
    for doing, call in calls.items():
        with pytest.raises(LabError) as caught:
            call()
        assert str(caught.value).startswith(doing)
        assert "\n" not in str(caught.value)
    assert wire.b.route.link_names() == {"lo", "eth0"}
