"""The packets a flood repeats, built and checksummed by scapy, and where in them a number may be written.

A `Template` is one Ethernet frame's bytes plus the offsets of what may vary: the sequence number at the start of the
payload, the UDP or TCP source port, the IPv4 identification, and the checksums that cover them. Sizes here are those
of the whole Ethernet frame without FCS, because that is what a link and an emulated NIC see; a kind that cannot be so
small is as small as its headers (and, if it carries one, the sequence number) allow.

scapy is imported when the first template is built: importing it takes a good part of a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.lab.errors import LabError

SEQUENCE_BYTES = 8
ETHERTYPE_IPX = 0x8137
_ETHERNET, _VLAN, _IPV4, _IPV6, _UDP, _ICMP = 14, 4, 20, 40, 8, 8


@dataclass(frozen=True, slots=True)
class Template:
    """A frame and the byte offsets, in it, of fields that may be rewritten (None: it has no such field).

    `checksum_at` is the checksum that covers sequence and source port; it is None where there is none to keep right
    (IPv4 UDP: sent as 0, "not computed"). All offsets are even but for none.
    """

    frame: bytes
    sequence_at: int | None = None
    source_port_at: int | None = None
    checksum_at: int | None = None
    ip_id_at: int | None = None
    ip_checksum_at: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Who sends to whom: MAC and IP addresses as text; IPv6 addresses for ipv6_udp, IPv4 for all others."""

    source_mac: str
    destination_mac: str
    source_ip: str
    destination_ip: str


def udp_templates(ends: Endpoints, ports: Sequence[int], size: int, source_port: int = 40000) -> list[Template]:
    """UDP over IPv4, one template per destination port; checksum 0, a sequence number at the payload's start."""
    return [_udp4(ends, port, size, source_port, vlan=None) for port in ports]


def vlan_udp_templates(
    ends: Endpoints, ports: Sequence[int], size: int, source_port: int = 40000, vlan: int = 7
) -> list[Template]:
    """As `udp_templates`, inside an 802.1Q tag of VLAN number `vlan`; `size` includes the tag."""
    return [_udp4(ends, port, size, source_port, vlan=vlan) for port in ports]


def ipv6_udp_templates(ends: Endpoints, ports: Sequence[int], size: int, source_port: int = 40000) -> list[Template]:
    """UDP over IPv6, one template per destination port, checksummed (IPv6 demands it), with a sequence number."""
    return [_udp6(ends, port, size, source_port) for port in ports]


def tcp_syn_templates(ends: Endpoints, ports: Sequence[int], size: int, source_port: int = 40000) -> list[Template]:
    """TCP connection requests, one template per destination port; a larger `size` is filled with data."""
    s = _scapy()
    at = _ETHERNET + _IPV4
    templates = []
    for port in ports:
        packet = _ethernet(s, ends) / _ipv4(s, ends) / s.TCP(sport=source_port, dport=port, flags="S", seq=1)
        frame = _padded(s, packet, size)
        templates.append(Template(frame, None, at, at + 16, _ETHERNET + 4, _ETHERNET + 10))
    return templates


def icmp_echo_templates(ends: Endpoints, ports: Sequence[int], size: int, source_port: int = 40000) -> list[Template]:
    """ICMP echo requests with a sequence number in their data; `ports` and `source_port` mean nothing here."""
    s = _scapy()
    packet = _ethernet(s, ends) / _ipv4(s, ends) / s.ICMP(type=8, id=1, seq=1) / s.Raw(bytes(SEQUENCE_BYTES))
    at = _ETHERNET + _IPV4
    return [Template(_padded(s, packet, size), at + _ICMP, None, at + 2, _ETHERNET + 4, _ETHERNET + 10)]


def arp_templates(ends: Endpoints, ports: Sequence[int], size: int, source_port: int = 40000) -> list[Template]:
    """ARP requests for the destination's address, to everybody; `ports` and `source_port` mean nothing here."""
    s = _scapy()
    asked = s.ARP(op=1, hwsrc=ends.source_mac, psrc=ends.source_ip, pdst=ends.destination_ip)
    packet = s.Ether(src=ends.source_mac, dst="ff:ff:ff:ff:ff:ff") / asked
    return [Template(_filled(bytes(packet), size))]


def ethertype_templates(ends: Endpoints, ports: Sequence[int], size: int, source_port: int = 40000) -> list[Template]:
    """Frames of a protocol nobody listens to (IPX, 0x8137), with a sequence number right after the Ethernet header."""
    s = _scapy()
    packet = s.Ether(src=ends.source_mac, dst=ends.destination_mac, type=ETHERTYPE_IPX) / s.Raw(bytes(SEQUENCE_BYTES))
    return [Template(_filled(bytes(packet), size), _ETHERNET)]


BUILDERS: dict[str, Callable[[Endpoints, Sequence[int], int], list[Template]]] = {
    "udp": udp_templates,
    "vlan_udp": vlan_udp_templates,
    "ipv6_udp": ipv6_udp_templates,
    "tcp_syn": tcp_syn_templates,
    "icmp_echo": icmp_echo_templates,
    "arp": arp_templates,
    "ethertype": ethertype_templates,
}


def build(kind: str, ends: Endpoints, ports: Sequence[int], size: int) -> list[Template]:
    """Templates of a kind named in BUILDERS. Raises LabError for an unknown kind, no ports or a bad address."""
    builder = BUILDERS.get(kind)
    if builder is None:
        raise LabError(f"there is no flood of kind {kind!r}: choose one of {', '.join(sorted(BUILDERS))}")
    if not ports or not all(0 < port < 65536 for port in ports):
        raise LabError(f"a flood needs destination ports from 1 to 65535, not {list(ports)}")
    try:
        return builder(ends, ports, size)
    except (OSError, ValueError) as error:
        raise LabError(f"cannot build {kind} packets from {ends}: {error}") from error


def _udp4(ends: Endpoints, port: int, size: int, source_port: int, vlan: int | None) -> Template:
    s = _scapy()
    ip_at = _ETHERNET + (0 if vlan is None else _VLAN)
    link = _ethernet(s, ends) if vlan is None else _ethernet(s, ends) / s.Dot1Q(vlan=vlan)
    datagram = s.UDP(sport=source_port, dport=port, chksum=0) / s.Raw(bytes(SEQUENCE_BYTES))
    frame = _padded(s, link / _ipv4(s, ends) / datagram, size)
    at = ip_at + _IPV4
    return Template(frame, at + _UDP, at, None, ip_at + 4, ip_at + 10)


def _udp6(ends: Endpoints, port: int, size: int, source_port: int) -> Template:
    s = _scapy()
    packet = _ethernet(s, ends) / s.IPv6(src=ends.source_ip, dst=ends.destination_ip)
    packet = packet / s.UDP(sport=source_port, dport=port) / s.Raw(bytes(SEQUENCE_BYTES))
    at = _ETHERNET + _IPV6
    return Template(_padded(s, packet, size), at + _UDP, at, at + 6)


def _ethernet(s: Any, ends: Endpoints) -> Any:
    return s.Ether(src=ends.source_mac, dst=ends.destination_mac)


def _ipv4(s: Any, ends: Endpoints) -> Any:
    return s.IP(src=ends.source_ip, dst=ends.destination_ip, id=0)


def _padded(s: Any, packet: Any, size: int) -> bytes:
    """The packet with zeros for payload up to `size` bytes; lengths and checksums are scapy's."""
    missing = size - len(bytes(packet))
    if missing <= 0:
        return bytes(packet)
    raw = packet.getlayer(s.Raw)
    if raw is None:
        return bytes(packet / s.Raw(bytes(missing)))
    raw.load += bytes(missing)
    return bytes(packet)


def _filled(frame: bytes, size: int) -> bytes:
    return frame + bytes(max(0, size - len(frame)))


class _Layers:
    """The scapy layers used here, imported without scapy's warnings about the machine it runs on."""

    def __init__(self) -> None:
        for name in ("scapy", "scapy.runtime", "scapy.loading", "scapy.interactive"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from scapy.layers.inet import ICMP, IP, TCP, UDP
        from scapy.layers.inet6 import IPv6
        from scapy.layers.l2 import ARP, Dot1Q, Ether
        from scapy.packet import Raw

        self.ICMP, self.IP, self.TCP, self.UDP, self.IPv6 = ICMP, IP, TCP, UDP, IPv6
        self.ARP, self.Dot1Q, self.Ether, self.Raw = ARP, Dot1Q, Ether, Raw


_layers: list[_Layers] = []


def _scapy() -> Any:
    if not _layers:
        _layers.append(_Layers())
    return _layers[0]
