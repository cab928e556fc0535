"""What patch 12 and the kernel's version make of an skb in reserve memory on its way through the receive path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.net.dev import ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPX, Kind
from testbed.net.drop_reason import DropReason
from testbed.net.skbuff import SkBuff
from testbed.net.sock import Sock
from testbed.patches import Switches
from testbed.rules import LINUX_3_6, LINUX_6_1, V9, Rules
from tests.mm.machine import SERIES, without
from tests.net.host import Host

DELIVERED, PFMEMALLOC, UNHANDLED = DropReason.DELIVERED, DropReason.PFMEMALLOC, DropReason.UNHANDLED_PROTO
WITHOUT_12 = without(receive_pf_memalloc=False)


def ruled(switches: Switches = SERIES, **rules: Any) -> Switches:
    return replace(switches, rules=replace(switches.rules, **rules))


def host_with(switches: Switches = SERIES, *, reserve: bool = True, memalloc: bool = True, ring: int = 4) -> Host:
    """A host whose ring is filled, from the reserve or not."""
    host = Host(switches, ring=ring)
    if memalloc:
        host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.device.alloc_rx_buffers()
    host.device.ring.pfmemalloc = bytearray([reserve] * ring)
    return host


def tapped(host: Host, protocol: int | None = None) -> Sock:
    """A packet socket for everything, or bound to one protocol."""
    sk = Sock("tcpdump", 1 << 20)
    if protocol is None:
        host.device.ptype_all.append(sk)
    else:
        host.device.ptype_base[protocol] = [sk]
    return sk


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("switches", "reserve", "during"),
    [(SERIES, True, True), (SERIES, False, False), (WITHOUT_12, True, False), (WITHOUT_12, False, False)],
)
def test_pf_memalloc_is_set_for_the_whole_call_and_then_what_it_was(
    switches: Switches, reserve: bool, during: bool, before: bool
) -> None:
    host = host_with(switches, reserve=reserve)
    softirq = host.device.softirq
    seen: list[bool] = []

    def handler(_skb: SkBuff, _kind: Kind) -> None:
        seen.append(softirq.pf_memalloc)

    host.device.rx_handler = handler
    host.device.copybreak = 1  # so that each frame is received by itself
    softirq.pf_memalloc = before
    assert host.receive(host.swap, end_seq=[100]) == [DELIVERED]
    assert seen == [during or before]
    assert softirq.pf_memalloc == before


@pytest.mark.parametrize(
    ("rules", "memalloc", "skipped"),
    [
        (V9, True, True),
        (V9, False, True),
        (LINUX_3_6, True, True),
        (LINUX_3_6, False, False),
        (LINUX_6_1, False, False),
    ],
)
def test_the_series_asked_only_the_skb_3_6_also_for_a_memalloc_socket(
    rules: Rules, memalloc: bool, skipped: bool
) -> None:
    """Without one neither taps nor the protocol list care; the socket filter does all the same."""
    host = host_with(replace(SERIES, rules=rules), memalloc=memalloc)
    tap, bound = tapped(host), tapped(host, ETH_P_IPX)
    assert host.receive(host.udp) == [PFMEMALLOC]
    assert len(tap.receive_queue) == (not skipped)
    assert host.netstat.receive_pf_memalloc == skipped
    assert host.receive(None, protocol=ETH_P_IPX) == [UNHANDLED if skipped else DELIVERED]
    assert len(bound.receive_queue) == (not skipped)


@pytest.mark.parametrize(
    ("reserve", "switches", "verdict"),
    [(True, SERIES, UNHANDLED), (True, WITHOUT_12, DELIVERED), (False, SERIES, DELIVERED)],
)
def test_dropped_if_and_only_if_in_the_reserve_and_not_listed(
    reserve: bool, switches: Switches, verdict: DropReason
) -> None:
    """The list matters where somebody would have taken the frame: a packet socket bound to IPX."""
    host = host_with(switches, reserve=reserve)
    bound = tapped(host, ETH_P_IPX)
    assert host.receive(None, protocol=ETH_P_IPX) == [verdict]
    assert host.netstat.rx_dropped == (verdict == UNHANDLED)
    assert [skb.pfmemalloc for skb in bound.receive_queue] == [reserve] * (verdict == DELIVERED)


def test_a_packet_socket_bound_to_a_listed_protocol_gets_the_reserve() -> None:
    """The hole in patch 12: only taps are skipped, and packet sockets have no test of their own."""
    host = host_with()
    tap, bound = tapped(host), tapped(host, ETH_P_IP)
    assert host.receive(host.udp, 2) == [PFMEMALLOC] * 2
    assert len(tap.receive_queue) == 0
    assert [skb.pfmemalloc for skb in bound.receive_queue] == [True] * 2
    assert host.skb_memory.rx_cache.inuse == 2 + len(host.device.ring), "its queue holds the data"
    host.device.close()
    assert host.machine.node.pages_leaked() == 0


def test_its_clones_may_use_the_reserve_too() -> None:
    host = host_with(ring=16)
    cache = host.skb_memory.skbuff_head_cache
    while cache.inuse < cache.nr_slabs * cache.objects_per_slab:
        cache.alloc(0x20, host.softirq)
    host.machine.drain(50)
    bound = tapped(host, ETH_P_IP)
    host.receive(None, 4)
    assert len(bound.receive_queue) == 4


@pytest.mark.parametrize("protocol", [ETH_P_8021Q, ETH_P_8021AD])
@pytest.mark.parametrize("rule", [False, True])
@pytest.mark.parametrize("reserve", [False, True])
def test_a_second_vlan_tag_is_a_protocol_of_later_kernels(protocol: int, rule: bool, reserve: bool) -> None:
    host = host_with(ruled(protocol_8021ad=rule), reserve=reserve)
    listed = rule or protocol == ETH_P_8021Q
    assert host.receive(None, protocol=protocol) == [DELIVERED if listed else UNHANDLED]


@pytest.mark.parametrize("rule", [False, True])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_dropped_datagram_looked_like_a_full_buffer(rule: bool, one_by_one: bool) -> None:
    host = host_with(ruled(pfmemalloc_drop_is_rcvbuf_error=rule))
    if one_by_one:
        tapped(host)
    assert host.receive(host.udp, 3) == [PFMEMALLOC] * 3
    netstat = host.netstat
    assert (netstat.PFMemallocDrop, netstat.InErrors, netstat.RcvbufErrors) == (3, 3, 3 * rule)
    assert host.receive(host.swap, end_seq=[10]) == [DELIVERED]


def test_a_segment_for_an_ordinary_tcp_socket_is_dropped_without_a_udp_error() -> None:
    host = host_with()
    host.socket_memory.sk_clear_memalloc(host.swap.sk)
    assert host.receive(host.swap, end_seq=[100]) == [PFMEMALLOC]
    netstat = host.netstat
    assert (netstat.PFMemallocDrop, netstat.InErrors, netstat.RcvbufErrors) == (1, 0, 0)
