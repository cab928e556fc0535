"""Many hosts on one bridge at once: a namespace each, a veth to the bridge, an address, up.

The links of all hosts go to the kernel in a few sends on the bridge's netlink socket, then address and "up" of each
host in one send of its own. The message that makes a link is encoded once and filled in for each host. If anything
fails, the namespaces made so far are closed, which takes the links along.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pyroute2.netlink.rtnl import RTM_NEWLINK

from testbed.lab.link import Bridge, address_request, check_mac, check_name, veth_request, wait_up
from testbed.lab.namespace import UP, NetworkNamespace
from testbed.lab.rtnetlink import Request, Stencil

_HOST_INDEX = 1000
_STAND_IN_NAME = "port-stands-in-"
_STAND_IN_MAC = "02:5a:e7:91:c3:5b"
_STAND_IN_INDEX = 0x6C21_93D5


@dataclass(frozen=True, slots=True)
class HostPort:
    """How one host hangs on the bridge: its port's name there, its own interface, address with prefix, MAC, MTU."""

    port: str
    address: str | None
    mac: str | None = None
    ifname: str = "eth0"
    mtu: int = 1500


def add_hosts(bridge: Bridge, ports: Sequence[HostPort], *, ipv6: bool = False) -> list[NetworkNamespace]:
    """Make a namespace for each port, wired to the bridge and carrying frames; in the order given.

    Raises LabError, and then there is none of them.
    """
    namespaces: list[NetworkNamespace] = []
    try:
        for _ in ports:
            namespaces.append(NetworkNamespace.create(ipv6=ipv6))
        pairs = list(zip(namespaces, ports, strict=True))
        first = bridge.namespace.route.highest_index() + 1
        stencils = _LinkStencils(bridge)
        links = [stencils.link(host, port, first + number) for number, (host, port) in enumerate(pairs)]
        bridge.namespace.route.request(links)
        up = Request(RTM_NEWLINK, "bringing a host's interface up", {"index": _HOST_INDEX, **UP})
        for host, port in pairs:
            host.route.request([*_address(port), up])
        for host, port in pairs:
            wait_up(host, port.ifname)
            wait_up(bridge.namespace, port.port)
    except BaseException:
        for host in namespaces:
            host.close()
        raise
    return namespaces


class _LinkStencils:
    """One stencil for each kind of port (interface name, MTU); the kernel would draw a MAC address, here we do."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._made: dict[tuple[str, int], Stencil] = {}

    def link(self, host: NetworkNamespace, port: HostPort, index: int) -> Request:
        """The request that makes the host's veth, number `index` at the bridge."""
        kind = (port.ifname, port.mtu)
        if kind not in self._made:
            self._made[kind] = self._make(*kind)
        values = {
            "port": check_name(port.port).encode(),
            "mac": _mac_bytes(port),
            "host": struct.pack("=I", host.fd),
            "index": struct.pack("=I", index),
        }
        return self._made[kind].filled(f"making link {port.port} - {port.ifname}", values)

    def _make(self, ifname: str, mtu: int) -> Stencil:
        end, indices = (_StandIn(), ifname), (_STAND_IN_INDEX, _HOST_INDEX)
        request = veth_request(
            _STAND_IN_NAME, end, mtu=mtu, mac_b=_STAND_IN_MAC, master_a=self._bridge, indices=indices
        )
        places = {
            "port": _STAND_IN_NAME.encode(),
            "mac": bytes.fromhex(_STAND_IN_MAC.replace(":", "")),
            "host": struct.pack("=I", _StandIn.fd),
            "index": struct.pack("=I", _STAND_IN_INDEX),
        }
        return Stencil(request, places)


class _StandIn:
    """In place of a namespace while a stencil is made."""

    fd: int = 0x5B3A_77E1


def _mac_bytes(port: HostPort) -> bytes:
    """The port's MAC address, or one drawn at random: locally administered, not multicast."""
    return b"\x02" + os.urandom(5) if port.mac is None else bytes.fromhex(check_mac(port.mac).replace(":", ""))


def _address(port: HostPort) -> list[Request]:
    return [] if port.address is None else [address_request(_HOST_INDEX, port.ifname, port.address)]
