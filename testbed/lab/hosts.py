"""Many hosts on one bridge at once: a namespace each, a veth to the bridge, an address, up.

The links of all hosts go to the kernel in a few sends on the bridge's netlink socket, then address and "up" of each
host in one send of its own. If anything fails, the namespaces made so far are closed, which takes the links along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyroute2.netlink.rtnl import RTM_NEWLINK

from testbed.lab.link import Bridge, address_request, veth_request
from testbed.lab.namespace import UP, NetworkNamespace
from testbed.lab.rtnetlink import Request

_HOST_INDEX = 1000


@dataclass(frozen=True, slots=True)
class HostPort:
    """How one host hangs on the bridge: its port's name there, its own interface, address with prefix, MAC, MTU."""

    port: str
    address: str | None
    mac: str | None = None
    ifname: str = "eth0"
    mtu: int = 1500


def add_hosts(bridge: Bridge, ports: Sequence[HostPort], *, ipv6: bool = False) -> list[NetworkNamespace]:
    """Make a namespace for each port, wired to the bridge and up; in the order given. Raises LabError, leaving none."""
    namespaces: list[NetworkNamespace] = []
    try:
        for _ in ports:
            namespaces.append(NetworkNamespace.create(ipv6=ipv6))
        pairs = list(zip(namespaces, ports, strict=True))
        first = bridge.namespace.route.highest_index() + 1
        links = [_link(bridge, host, port, first + number) for number, (host, port) in enumerate(pairs)]
        bridge.namespace.route.request(links)
        for host, port in pairs:
            host.route.request(_interface(port))
    except BaseException:
        for host in namespaces:
            host.close()
        raise
    return namespaces


def _link(bridge: Bridge, host: NetworkNamespace, port: HostPort, index: int) -> Request:
    end, indices = (host, port.ifname), (index, _HOST_INDEX)
    return veth_request(port.port, end, mtu=port.mtu, mac_b=port.mac, master_a=bridge, indices=indices)


def _interface(port: HostPort) -> list[Request]:
    requests = [] if port.address is None else [address_request(_HOST_INDEX, port.ifname, port.address)]
    return [*requests, Request(RTM_NEWLINK, f"bringing {port.ifname} up", {"index": _HOST_INDEX, **UP})]
