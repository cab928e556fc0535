"""Where the headers of an Ethernet frame are, as far as effects need to know: IPv4 and IPv6, TCP and UDP."""

from __future__ import annotations

from dataclasses import dataclass

ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
VLAN_TYPES = frozenset({0x8100, 0x88A8})
IPPROTO_TCP, IPPROTO_UDP = 6, 17
_FRAGMENT_OFFSET = 0x1FFF
_IPV6_HEADER, _UDP_HEADER = 40, 8


@dataclass(frozen=True, slots=True)
class Headers:
    """What a frame says it is. `end` is the offset of the first byte after all headers that were understood.

    None where there is no such header, or not all of it; of an IPv4 fragment only the first has ports.
    """

    ethertype: int
    ip_protocol: int | None
    ports: tuple[int, int] | None
    end: int


def parse(frame: bytes) -> Headers:
    """The headers of a frame of at least 14 bytes; VLAN tags are passed over."""
    at = 12
    while (ethertype := int.from_bytes(frame[at : at + 2])) in VLAN_TYPES and len(frame) >= at + 6:
        at += 4
    at += 2
    if ethertype == ETH_P_IP and len(frame) >= at + 20:
        fragment = int.from_bytes(frame[at + 6 : at + 8]) & _FRAGMENT_OFFSET
        end = at + 4 * (frame[at] & 0xF)
        return _transport(frame, ethertype, frame[at + 9], end, fragment=bool(fragment))
    if ethertype == ETH_P_IPV6 and len(frame) >= at + _IPV6_HEADER:
        return _transport(frame, ethertype, frame[at + 6], at + _IPV6_HEADER, fragment=False)
    return Headers(ethertype, None, None, at)


def _transport(frame: bytes, ethertype: int, protocol: int, at: int, *, fragment: bool) -> Headers:
    size = _UDP_HEADER if protocol == IPPROTO_UDP else 20
    if fragment or protocol not in (IPPROTO_TCP, IPPROTO_UDP) or len(frame) < at + size:
        return Headers(ethertype, protocol, None, at)
    ports = int.from_bytes(frame[at : at + 2]), int.from_bytes(frame[at + 2 : at + 4])
    end = at + (4 * (frame[at + 12] >> 4) if protocol == IPPROTO_TCP else size)
    return Headers(ethertype, protocol, ports, end)
