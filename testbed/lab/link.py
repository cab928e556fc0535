"""Links between namespaces: veth pairs and bridges, their addresses, neighbours, offloads and statistics.

A veth is made with both ends in place and attached to its bridge in one netlink message. Names need be unique only
within one namespace; the namespaces have none, so fixed names such as eth0 never collide between runs.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import re
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Protocol

from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH

from testbed.lab.errors import LabError, lab_error
from testbed.lab.namespace import UP, NetworkNamespace, switch_ipv6_off, write_setting
from testbed.lab.rtnetlink import CREATE, REPLACE, Request

End = tuple[NetworkNamespace, str]

_SIOCETHTOOL = 0x8946
_ETHTOOL_SET_TX_CHECKSUM, _ETHTOOL_SET_TSO, _ETHTOOL_SET_GSO, _ETHTOOL_SET_GRO = 0x17, 0x1F, 0x24, 0x2C
_NUD_PERMANENT = 0x80
_IFF_RUNNING = 0x40
_IFLA_OPERSTATE, _OPERATIONAL = 16, (0, 6)
_IFLA_ADDRESS, _IFLA_MTU, _IFLA_STATS64 = 1, 4, 23
_STATISTICS = (
    "rx_packets",
    "tx_packets",
    "rx_bytes",
    "tx_bytes",
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
    "multicast",
    "collisions",
    "rx_length_errors",
    "rx_over_errors",
    "rx_crc_errors",
    "rx_frame_errors",
    "rx_fifo_errors",
    "rx_missed_errors",
    "tx_aborted_errors",
    "tx_carrier_errors",
    "tx_fifo_errors",
    "tx_heartbeat_errors",
    "tx_window_errors",
    "rx_compressed",
    "tx_compressed",
    "rx_nohandler",
)


class HoldsNamespace(Protocol):
    """Anything with a descriptor of a network namespace."""

    @property
    def fd(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge named `name` in `namespace`; `index` is its interface number there."""

    namespace: NetworkNamespace
    name: str
    index: int


def check_name(ifname: str) -> str:
    """The name itself, or LabError when the kernel would not take it (IFNAMSIZ: at most 15 bytes, no / or space)."""
    size = len(ifname.encode())
    if not 1 <= size <= 15 or ifname in (".", "..") or any(c in "/:" or c.isspace() for c in ifname):
        raise LabError(f"{ifname!r} cannot name an interface: use 1 to 15 characters without spaces, '/' or ':'")
    return ifname


def check_mac(mac: str) -> str:
    """The address itself, or LabError unless it is six hexadecimal bytes with colons that can name one host."""
    if not re.fullmatch(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}", mac):
        raise LabError(f"{mac!r} is not the MAC address of a host: write one like 02:00:00:00:00:01")
    return mac


def add_bridge(namespace: NetworkNamespace, name: str) -> Bridge:
    """A bridge that only forwards: no spanning tree, no multicast snooping, no delay before a port forwards, up.

    It has no address and speaks no IPv6 of its own. Raises LabError.
    """
    settings = {"attrs": [("IFLA_BR_FORWARD_DELAY", 0), ("IFLA_BR_STP_STATE", 0), ("IFLA_BR_MCAST_SNOOPING", 0)]}
    info = {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", settings)]}
    wanted = [("IFLA_IFNAME", check_name(name)), ("IFLA_LINKINFO", info)]
    namespace.route.request([Request(RTM_NEWLINK, f"making bridge {name}", {}, wanted, CREATE)])
    try:
        disable_ipv6(namespace, name)
        set_up(namespace, name)
        return Bridge(namespace, name, namespace.route.index(name))
    except BaseException:
        delete_link(namespace, name)
        raise


def add_veth(
    a: End,
    b: End,
    *,
    mtu: int = 1500,
    mac_a: str | None = None,
    mac_b: str | None = None,
    master_a: Bridge | None = None,
) -> None:
    """A veth pair with end `a` (namespace, name) and end `b`; both are still down, unless `a` is a bridge port.

    `mtu` is in bytes without the Ethernet header; MAC addresses as "02:00:00:00:00:01". Raises LabError; then neither
    end exists.
    """
    a[0].route.request([veth_request(a[1], b, mtu=mtu, mac_a=mac_a, mac_b=mac_b, master_a=master_a)])


def veth_request(
    name_a: str,
    b: tuple[HoldsNamespace, str],
    *,
    mtu: int = 1500,
    mac_a: str | None = None,
    mac_b: str | None = None,
    master_a: Bridge | None = None,
    indices: tuple[int, int] | None = None,
) -> Request:
    """The netlink request behind `add_veth`, to be sent in the namespace of end a (alone or with others).

    `indices` fixes the interface numbers of both ends; the kernel ignores a peer's number given without the other.
    """
    peer: dict[str, Any] = {"attrs": [("IFLA_IFNAME", check_name(b[1])), ("IFLA_MTU", mtu)]}
    peer["attrs"] += [("IFLA_NET_NS_FD", b[0].fd), *_mac(mac_b)]
    data = {"attrs": [("VETH_INFO_PEER", peer)]}
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}
    wanted: list[tuple[str, Any]] = [("IFLA_IFNAME", check_name(name_a)), ("IFLA_MTU", mtu), *_mac(mac_a)]
    fields: dict[str, int] = {}
    if indices is not None:
        fields["index"], peer["index"] = indices
    if master_a is not None:
        wanted.append(("IFLA_MASTER", master_a.index))
        fields |= UP
    return Request(RTM_NEWLINK, f"making link {name_a} - {b[1]}", fields, [*wanted, ("IFLA_LINKINFO", info)], CREATE)


def _mac(mac: str | None) -> list[tuple[str, Any]]:
    return [] if mac is None else [("IFLA_ADDRESS", check_mac(mac))]


def delete_link(namespace: NetworkNamespace, ifname: str) -> None:
    """Remove an interface (of a veth: both ends). Raises LabError."""
    request = Request(RTM_DELLINK, f"removing {ifname}", {}, [("IFLA_IFNAME", ifname)])
    namespace.route.request([request])


def set_up(namespace: NetworkNamespace, ifname: str) -> None:
    """Bring an interface up. Raises LabError.

    A veth carries frames only once both ends are up *and* the kernel has noticed, which it does later on a work
    queue; frames sent before vanish and are counted nowhere. Call `wait_up` for each end before traffic.
    """
    fields = {"index": namespace.route.index(ifname), **UP}
    namespace.route.request([Request(RTM_NEWLINK, f"bringing {ifname} up", fields)])


def wait_up(namespace: NetworkNamespace, ifname: str, deadline_s: float = 5.0) -> None:
    """Wait until an interface carries frames (operational state of RFC 2863, IFLA_OPERSTATE).

    Raises LabError when it does not within `deadline_s` seconds, as when its other end is down.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        link = namespace.route.link(ifname, f"waiting for {ifname}")
        running = struct.unpack_from("=I", link[0], 8)[0] & _IFF_RUNNING
        if running and link[_IFLA_OPERSTATE][0] in _OPERATIONAL:
            return
        if time.monotonic() > deadline:
            raise LabError(f"{ifname} carries no frames: bring it and its other end up")
        time.sleep(0.001)


def set_down(namespace: NetworkNamespace, ifname: str) -> None:
    """Take an interface down. Raises LabError."""
    fields = {"index": namespace.route.index(ifname), "flags": 0, "change": 1}
    namespace.route.request([Request(RTM_NEWLINK, f"taking {ifname} down", fields)])


def set_address(namespace: NetworkNamespace, ifname: str, address: str) -> None:
    """Give an interface an address with its prefix, "10.1.2.3/24" or IPv6. Raises LabError."""
    namespace.route.request([address_request(namespace.route.index(ifname), ifname, address)])


def address_request(index: int, ifname: str, address: str) -> Request:
    """The netlink request behind `set_address`."""
    try:
        parsed = ipaddress.ip_interface(address if "/" in address else "")
    except ValueError as error:
        raise LabError(f"{address!r} is not an address with a prefix: write one like 10.1.2.3/24") from error
    values = [("IFA_ADDRESS", str(parsed.ip)), ("IFA_LOCAL", str(parsed.ip))]
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    if parsed.version == 4 and parsed.network.prefixlen < 31:
        values.append(("IFA_BROADCAST", str(parsed.network.broadcast_address)))
    fields = {"index": index, "family": family, "prefixlen": parsed.network.prefixlen}
    return Request(RTM_NEWADDR, f"giving {ifname} the address {address}", fields, values, CREATE)


def add_permanent_neighbour(namespace: NetworkNamespace, ifname: str, address: str, mac: str) -> None:
    """A neighbour entry that never expires and is never asked for by ARP. Raises LabError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    fields = {"ifindex": namespace.route.index(ifname), "family": family, "state": _NUD_PERMANENT}
    try:
        values = [("NDA_DST", str(ipaddress.ip_address(address))), ("NDA_LLADDR", check_mac(mac))]
    except ValueError as error:
        raise LabError(f"{address!r} is not an IP address: write one like 10.1.2.3") from error
    doing = f"adding neighbour {address} on {ifname}"
    namespace.route.request([Request(RTM_NEWNEIGH, doing, fields, values, REPLACE)])


def set_neighbour_timeout(namespace: NetworkNamespace, ifname: str, seconds: float) -> None:
    """Have the interface's ARP entries go stale `seconds` after they were confirmed, and be probed at once then.

    It is used until it has failed, three unanswered probes and as many seconds later (ip-sysctl.rst, neigh/*).
    Raises LabError.
    """
    milliseconds = str(max(1, round(seconds * 1000)))
    settings = {
        "base_reachable_time_ms": milliseconds,
        "gc_stale_time": str(max(1, round(seconds))),
        "delay_first_probe_time": "0",
    }
    with namespace.entered():
        for name, value in settings.items():
            write_setting(f"ipv4/neigh/{ifname}/{name}", value.encode())


def disable_ipv6(namespace: NetworkNamespace, ifname: str) -> None:
    """Have an interface speak no IPv6: no link-local address, no neighbour discovery."""
    with namespace.entered():
        switch_ipv6_off(ifname)


def set_offloads(namespace: NetworkNamespace, ifname: str, *, on: bool) -> None:
    """Switch transmit checksums, TSO, GSO and GRO on or off (SIOCETHTOOL, linux/ethtool.h).

    Do it on both end hosts of a path whose frames are to be whole on the wire. Raises LabError.
    """
    checksum_first = (_ETHTOOL_SET_TX_CHECKSUM, _ETHTOOL_SET_TSO, _ETHTOOL_SET_GSO, _ETHTOOL_SET_GRO)
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in checksum_first if on else reversed(checksum_first):
            value = ctypes.create_string_buffer(struct.pack("=II", command, int(on)))
            request = struct.pack("=16sQ16x", ifname.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(control, _SIOCETHTOOL, request)
            except OSError as error:
                raise lab_error(f"switching offloads of {ifname}", error.errno or 0) from error


def interface_statistics(namespace: NetworkNamespace, ifname: str) -> dict[str, int]:
    """The counters of `struct rtnl_link_stats64` (linux/if_link.h) by name: rx_packets, tx_dropped, ... LabError."""
    data = namespace.route.link(ifname, f"reading the counters of {ifname}")[_IFLA_STATS64]
    return dict(zip(_STATISTICS, struct.unpack_from(f"={min(len(_STATISTICS), len(data) // 8)}Q", data), strict=False))


def mac_address(namespace: NetworkNamespace, ifname: str) -> str:
    """The interface's MAC address, "02:00:00:00:00:01". Raises LabError."""
    return namespace.route.link(ifname, f"reading the address of {ifname}")[_IFLA_ADDRESS].hex(":")


def interface_mtu(namespace: NetworkNamespace, ifname: str) -> int:
    """The interface's MTU in bytes. Raises LabError."""
    return int(struct.unpack("=I", namespace.route.link(ifname, f"reading the MTU of {ifname}")[_IFLA_MTU])[0])
