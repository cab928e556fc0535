"""The receive path: each frame ends in one place, and what the reserve changes about which."""

from __future__ import annotations

import pytest

from testbed.net.dev import ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ETH_P_IPX, RxBatch
from testbed.net.drop_reason import DropReason
from testbed.net.sock import Sock
from testbed.patches import Switches
from tests.mm.machine import SERIES, VANILLA, without
from tests.net.host import FRAME_TRUESIZE, Host

DELIVERED, PFMEMALLOC = DropReason.DELIVERED, DropReason.PFMEMALLOC


def in_shortage(switches: Switches = SERIES, *, ring: int = 16, recover: bool = True) -> Host:
    """A host with a SOCK_MEMALLOC swap socket whose ring was filled from the reserve."""
    host = Host(switches, ring=ring)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.fill_ring_from_reserve(recover=recover)
    return host


def below_the_atomic_floor(switches: Switches) -> Host:
    """A host with an empty ring on which every further page comes from the reserve."""
    host = Host(switches)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.warm_heads()
    host.use_up_data()
    host.machine.drain(90)
    return host


def test_a_reserve_skb_for_an_ordinary_socket_is_dropped_by_the_filter() -> None:
    host = in_shortage()
    assert host.receive(host.udp) == [PFMEMALLOC]
    netstat = host.netstat
    assert (netstat.PFMemallocDrop, netstat.InErrors, netstat.InDatagrams, host.udp.rmem_alloc) == (1, 1, 0, 0)
    assert host.tally == {(PFMEMALLOC, "x", True): 1}


def test_a_reserve_skb_for_the_swap_socket_is_delivered_with_pf_memalloc() -> None:
    host = in_shortage()
    assert host.receive(host.swap, end_seq=[100]) == [DELIVERED]
    assert (host.netstat.receive_pf_memalloc, host.netstat.PFMemallocDrop) == (1, 0)
    assert host.swap.sk.rmem_alloc == FRAME_TRUESIZE
    assert host.device.last_pfmemalloc
    assert not host.device.softirq.pf_memalloc
    host.swap.copied(100)
    assert host.swap.sk.rmem_alloc == 0


def test_without_patch_12_it_is_delivered_without() -> None:
    host = in_shortage(without(receive_pf_memalloc=False))
    assert host.receive(host.swap, end_seq=[100]) == [DELIVERED]
    assert (host.netstat.receive_pf_memalloc, host.netstat.receive_pf_memalloc_skipped) == (0, 1)


@pytest.mark.parametrize(
    ("protocol", "verdict"),
    [
        (ETH_P_IP, DELIVERED),
        (ETH_P_IPV6, DELIVERED),
        (ETH_P_ARP, DELIVERED),
        (ETH_P_8021Q, DELIVERED),
        (ETH_P_IPX, DropReason.UNHANDLED_PROTO),
    ],
)
def test_protocols_that_may_use_the_reserve(protocol: int, verdict: DropReason) -> None:
    host = in_shortage()
    host.device.ptype_all.append(Sock("tcpdump", 1 << 20))
    assert host.receive(None, protocol=protocol) == [verdict]
    assert host.netstat.rx_dropped == (verdict != DELIVERED)
    assert not host.device.ptype_all[0].receive_queue


@pytest.mark.parametrize(
    ("switches", "reserve", "seen"),
    [(SERIES, False, 1), (SERIES, True, 0), (without(receive_pf_memalloc=False), True, 1), (VANILLA, False, 1)],
)
def test_taps_see_everything_but_the_reserve(switches: Switches, reserve: bool, seen: int) -> None:
    host = in_shortage(switches) if reserve else Host(switches)
    tap = Sock("tcpdump", 1 << 20)
    host.device.ptype_all.append(tap)
    host.receive(None)
    assert len(tap.receive_queue) == seen
    assert tap.rmem_alloc == seen * FRAME_TRUESIZE
    assert host.netstat.tap_skipped == (1 - seen)


def test_a_tap_with_a_full_buffer_sees_no_more() -> None:
    host = Host()
    tap = Sock("tcpdump", 3 * FRAME_TRUESIZE)
    host.device.ptype_all.append(tap)
    host.receive(None, 10)
    assert len(tap.receive_queue) == 3


def test_a_ring_filled_in_shortage_goes_on_dropping_after_it_and_not_longer() -> None:
    host = in_shortage(ring=64)
    verdicts = host.receive(host.udp, 200)
    assert verdicts == [PFMEMALLOC] * 64 + [DELIVERED] * 136


def test_a_ring_filled_in_good_times_delivers_in_shortage() -> None:
    host = Host(ring=64)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.device.alloc_rx_buffers()
    host.machine.drain(100)
    assert host.receive(host.udp, 64) == [DELIVERED] * 64


def test_without_memory_frames_are_lost_in_the_nic() -> None:
    host = Host(ring=16)
    host.device.alloc_rx_buffers()
    host.machine.drain(0)
    assert host.receive(host.udp, 40) == [DELIVERED] * 16 + [DropReason.RX_MISSED] * 24
    assert (host.netstat.rx_packets, host.netstat.rx_missed) == (16, 24)
    host.machine.give_back()
    assert host.receive(host.udp, 5) == [DELIVERED] * 5


def test_in_shortage_the_reserve_serves_one_frame_after_the_other() -> None:
    host = below_the_atomic_floor(without(slub_unchecked_fast_path=False))
    assert host.receive(host.udp, 1000) == [PFMEMALLOC] * 1000


def test_patch_03_lets_some_reserve_buffers_go_unmarked() -> None:
    """The fast path serves a request without the reserve from the reserve slab that is the CPU slab just then."""
    host = below_the_atomic_floor(SERIES)
    delivered = host.receive(host.udp, 300).count(DELIVERED)
    assert 0 < delivered < 300
    assert host.machine.node.vmstat.slab_pfmemalloc_leaked >= delivered
    in_reserve = [skb for skb in host.udp.receive_queue if skb.data.page.pfmemalloc]
    assert len(in_reserve) == delivered
    assert not any(skb.pfmemalloc for skb in in_reserve)


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize(
    ("rcvbuf", "taken"), [(0, 0), (1, 1), (2 * FRAME_TRUESIZE, 2), (2 * FRAME_TRUESIZE + 1, 3)]
)
def test_a_buffer_that_is_not_full_takes_a_datagram_of_any_size(rcvbuf: int, taken: int, tapped: bool) -> None:
    """`sock_queue_rcv_skb` and `packet_rcv` do not count the skb itself, whether frames are settled together or not."""
    host = Host(rcvbuf=rcvbuf)
    tap = Sock("tcpdump", rcvbuf)
    if tapped:
        host.device.ptype_all.append(tap)
    assert host.receive(host.udp, 5) == [DELIVERED] * taken + [DropReason.SOCKET_RCVBUFF] * (5 - taken)
    assert len(tap.receive_queue) == taken * tapped


def test_the_receive_buffer_limits_the_queue() -> None:
    host = Host(rcvbuf=5 * FRAME_TRUESIZE)
    assert host.receive(host.udp, 8) == [DELIVERED] * 5 + [DropReason.SOCKET_RCVBUFF] * 3
    netstat = host.netstat
    assert (netstat.InDatagrams, netstat.RcvbufErrors, netstat.InErrors) == (5, 3, 3)
    host.device.read_datagrams(host.udp, 2)
    assert host.receive(host.udp, 3) == [DELIVERED] * 2 + [DropReason.SOCKET_RCVBUFF]


def test_without_patch_09_nothing_is_marked_and_nothing_filtered() -> None:
    host = in_shortage(without(skb_pfmemalloc=False))
    assert host.receive(host.udp, 16) == [DELIVERED] * 16
    assert host.netstat.rx_skb_pfmemalloc == 0


def test_a_gso_frame_takes_a_descriptor_for_each_segment() -> None:
    host = Host(ring=8)
    host.device.alloc_rx_buffers()
    host.machine.drain(0)
    batch = RxBatch([ETH_P_IP] * 2, [host.swap] * 2, ["swap"] * 2, [5, 5], [5000, 10000], [1000, 1000])
    host.device.receive(batch)
    assert batch.verdicts == [DELIVERED, DELIVERED]
    assert batch.cut == {1: [True, True, True, False, False]}
    assert sum(host.tally.values()) == host.netstat.rx_packets + host.netstat.rx_missed == 10
    host.swap.copied(6000)
    assert host.swap.sk.rmem_alloc == 2 * FRAME_TRUESIZE


def test_closing_frees_the_ring_and_the_taps() -> None:
    host = Host()
    tap = Sock("tcpdump", 1 << 20)
    host.device.ptype_all.append(tap)
    host.receive(None, 20)
    assert tap.rmem_alloc
    host.device.close()
    assert (tap.rmem_alloc, len(tap.receive_queue)) == (0, 0)
    assert host.machine.node.pages_leaked() == 0
