"""What the NIC's driver receives into: what a frame costs, what marks it, and what a failed refill leaves behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.mm.gfp import GFP_ATOMIC
from testbed.mm.slub import KmemCache
from testbed.net.drop_reason import DropReason
from testbed.net.page_frag import PageFrag
from testbed.net.skbuff import Driver, rx_buffer_size, rx_truesize
from testbed.net.sock import Sock
from testbed.patches import Switches
from testbed.rules import LINUX_3_6, LINUX_6_1, V9
from tests.mm.machine import SERIES, without
from tests.net.host import Host

DELIVERED, PFMEMALLOC, RX_MISSED = DropReason.DELIVERED, DropReason.PFMEMALLOC, DropReason.RX_MISSED


def ruled(switches: Switches = SERIES, **rules: Any) -> Switches:
    """The series in a kernel with these rules."""
    return replace(switches, rules=replace(switches.rules, **rules))


def host_of(driver: Driver, switches: Switches = SERIES, *, memalloc: bool = True, **more: Any) -> Host:
    """A host whose slabs have room for some sk_buffs and headers, so that only data needs new memory."""
    host = Host(switches, driver=driver, **more)
    if memalloc:
        host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.warm_heads()
    host.skb_memory.drain()
    return host


def marks(host: Host) -> list[bool]:
    return [skb.pfmemalloc for skb in host.device.ring]


@pytest.mark.parametrize(
    ("driver", "mtu", "rules", "bytes_of_memory"),
    [
        ("linear", 1500, V9, 2048 + 256),
        ("linear", 1500, LINUX_3_6, 1920 + 256),
        ("linear", 3600, V9, 4096 + 256),
        ("linear", 3600, LINUX_6_1, 4032 + 256),
        ("linear", 3700, LINUX_6_1, 8192 + 256),
        ("linear", 9000, V9, 16384 + 256),
        ("linear", 9000, LINUX_6_1, 16384 + 256),
        ("vector", 1500, V9, 2048 + 256),
        ("vector", 1500, LINUX_6_1, 2048 + 256),
        ("vector", 9000, LINUX_6_1, 16384 + 256),
        ("frag", 1500, V9, 512 + 256 + 2048),
        ("frag", 3600, V9, 512 + 256 + 4096),
        ("page", 1500, V9, 512 + 256 + 4096),
        ("page", 1500, LINUX_6_1, 512 + 256 + 4096),
    ],
)
def test_what_one_frame_costs(driver: Driver, mtu: int, rules: Any, bytes_of_memory: int) -> None:
    assert rx_truesize(driver, mtu, rules) == bytes_of_memory


@pytest.mark.parametrize("driver", ["linear", "vector", "frag", "page"])
@pytest.mark.parametrize("rules", [V9, LINUX_3_6])
def test_a_full_ring_takes_the_pages_that_its_frames_cost(driver: Driver, rules: Any) -> None:
    host = Host(replace(SERIES, rules=rules), driver=driver, ring=256)
    before = host.machine.free
    host.device.alloc_rx_buffers()
    taken = before - host.machine.free
    cost = 256 * rx_buffer_size(driver, 1500, rules)
    assert cost <= taken * 4096 + 256 * 128, "but for rounding to whole pages"
    assert taken <= cost / 4096 + 2 + 256 * 128 / 4096
    host.device.close()
    assert host.machine.node.pages_leaked() == 0


@pytest.mark.parametrize(("driver", "fragments"), [("linear", True), ("vector", False)])
def test_what_alloc_skb_gives_is_a_slab_object_in_every_version(driver: Driver, fragments: bool) -> None:
    host = Host(replace(SERIES, rules=LINUX_6_1), driver=driver, ring=256)
    host.device.alloc_rx_buffers()
    assert host.machine.node.kmalloc_cache(2048).inuse == (0 if fragments else 256)
    host.device.close()


# --- fragments (patch 10) ---


@pytest.mark.parametrize(
    ("switches", "marked"),
    [(SERIES, True), (without(skb_frag_pfmemalloc=False), False), (without(slab_pfmemalloc=False), False)],
)
def test_a_fragment_in_the_reserve_marks_its_skb(switches: Switches, marked: bool) -> None:
    """The header's memory is ordinary: without patch 10 nothing says where the data lies."""
    host = host_of("frag", switches, ring=4)
    host.machine.drain(90)
    host.device.alloc_rx_buffers()
    assert marks(host) == [marked] * 4
    assert all(skb.frags[0].page.from_reserve for skb in host.device.ring)
    seen = host.netstat.skb_frag_pfmemalloc, host.netstat.skb_frag_unmarked
    assert seen == ((4, 0) if marked else (0, 4) if switches.slab_pfmemalloc else (0, 0))


def test_without_patch_10_ordinary_sockets_park_the_reserve() -> None:
    received = {}
    for switches in (SERIES, without(skb_frag_pfmemalloc=False)):
        host = host_of("frag", switches, ring=4)
        host.machine.drain(90)
        received[switches] = host.receive(host.udp, 4)
        assert host.udp.rmem_alloc == received[switches].count(DELIVERED) * host.device.ring.truesize
    assert received == {SERIES: [PFMEMALLOC] * 4, without(skb_frag_pfmemalloc=False): [DELIVERED] * 4}


def test_the_head_alone_marks_too() -> None:
    """A header that had to come from the reserve marks an skb whose fragment is ordinary."""
    host = host_of("frag", ring=1)
    assert host.skb_memory.frag_pages is not None
    spare = host.skb_memory.frag_pages.alloc_bulk(1, GFP_ATOMIC, host.softirq)
    host.use_up_data()
    host.machine.drain(100)
    host.device.alloc_rx_buffers()
    assert marks(host) == [True]
    assert not host.device.ring.frags[0].pfmemalloc
    host.skb_memory.frag_pages.free_bulk(spare)


@pytest.mark.parametrize("order", [(True, False), (False, True), (False, False)])
def test_one_fragment_of_the_reserve_marks_and_none_unmarks(order: tuple[bool, ...]) -> None:
    host = host_of("frag")
    skb = host.skb_memory.alloc_skb(64, GFP_ATOMIC, host.softirq)
    assert skb is not None
    truesize = skb.truesize
    for reserve in order:
        host.skb_memory.skb_fill_page_desc(skb, fragment(host, reserve=reserve))
    assert skb.pfmemalloc == any(order)
    assert (len(skb.frags), skb.truesize) == (len(order), truesize + 2048 * len(order))


def test_a_fragment_in_a_mapped_page_does_not_mark() -> None:
    host = host_of("frag")
    skb = host.skb_memory.alloc_skb(64, GFP_ATOMIC, host.softirq)
    assert skb is not None
    page = fragment(host, reserve=True).page
    page.mapping = object()  # type: ignore[assignment]
    assert host.skb_memory.frag_pages is not None
    host.skb_memory.skb_fill_page_desc(skb, PageFrag(host.skb_memory.frag_pages, [page], 0))
    assert not skb.pfmemalloc


def fragment(host: Host, *, reserve: bool) -> PageFrag:
    pages = host.skb_memory.frag_pages
    assert pages is not None
    pages.drain()
    if reserve:
        host.machine.drain(90)
    (frag,) = pages.alloc_bulk(1, GFP_ATOMIC | 0x2000, host.softirq)
    host.machine.give_back()
    assert frag.pfmemalloc == reserve
    return frag


# --- pages (patch 11) ---


@pytest.mark.parametrize("memalloc", [False, True])
def test_a_page_ring_refills_from_the_reserve_whatever_sockets_there_are(memalloc: bool) -> None:
    """And `sk_filter` drops what came from it, also when nobody is SOCK_MEMALLOC."""
    host = host_of("page", ring=4, memalloc=memalloc)
    host.machine.drain(90)
    host.device.alloc_rx_buffers()
    assert marks(host) == [True] * 4
    assert host.receive(host.udp, 4) == [PFMEMALLOC] * 4
    assert host.netstat.netdev_page_pfmemalloc >= 4


def test_without_patch_11_a_page_ring_runs_dry_and_fills_again_with_memory() -> None:
    host = host_of("page", without(netdev_page_pfmemalloc=False), ring=4)
    host.device.alloc_rx_buffers()
    host.machine.drain(96)
    assert host.receive(host.udp, 6) == [DELIVERED] * 4 + [RX_MISSED] * 2
    netstat = host.netstat
    assert len(host.device.ring) == 0
    assert netstat.alloc_rx_page_failed == netstat.netdev_page_reserve_refused > 0
    assert netstat.netdev_page_pfmemalloc == 0
    host.machine.give_back()
    assert host.receive(host.udp, 1) == [DELIVERED]


def test_a_page_marks_its_skb_with_patch_10_off_too() -> None:
    host = host_of("page", without(skb_frag_pfmemalloc=False), ring=4)
    host.machine.drain(90)
    host.device.alloc_rx_buffers()
    assert marks(host) == [True] * 4


@pytest.mark.parametrize("driver", ["frag", "page"])
def test_a_descriptor_without_its_page_keeps_no_skb(driver: Driver) -> None:
    host = host_of(driver, ring=16)
    host.machine.drain(3)
    host.device.alloc_rx_buffers()
    filled = len(host.device.ring)
    assert filled == (6 if driver == "frag" else 3)
    assert host.netstat.alloc_rx_buff_failed == 16 - filled
    assert host.skb_memory.skbuff_head_cache.inuse == host.skb_memory.rx_cache.inuse == filled + 1
    assert bool(host.netstat.alloc_rx_page_failed) == (driver == "page")


# --- a linear buffer from a fragment (3.5) ---


def test_in_3_6_a_linear_buffer_in_the_reserve_is_not_marked() -> None:
    """The leak that 4.1 closed: `build_skb` does not look at the page."""
    host = host_of("linear", ruled(rx_buffer="fragment"), ring=4)
    host.machine.drain(90)
    assert host.receive(host.udp, 4) == [DELIVERED] * 4
    assert all(skb.data.page.pfmemalloc for skb in host.udp.receive_queue)
    assert not any(skb.pfmemalloc for skb in host.udp.receive_queue)


def test_from_4_1_it_is() -> None:
    host = host_of("linear", ruled(rx_buffer="fragment", build_skb_pfmemalloc=True), ring=4)
    host.machine.drain(90)
    assert host.receive(host.udp, 4) == [PFMEMALLOC] * 4


def test_build_skb_marks_nothing_without_patch_09() -> None:
    rules = ruled(without(skb_pfmemalloc=False), rx_buffer="fragment", build_skb_pfmemalloc=True)
    host = host_of("linear", rules, ring=4)
    host.machine.drain(97)
    host.device.alloc_rx_buffers()
    assert marks(host)
    assert not any(marks(host))


@pytest.mark.parametrize(
    ("rx_buffer", "memalloc", "free", "found", "pfmemalloc"),
    [
        ("kmalloc", True, 129, True, False),
        ("kmalloc", True, 128, True, True),
        ("kmalloc", True, 96, True, True),
        ("kmalloc", False, 129, True, False),
        ("kmalloc", False, 128, False, False),
        ("fragment", True, 128, True, False),
        ("fragment", True, 97, True, False),
        ("fragment", True, 96, True, True),
        ("fragment", False, 97, True, False),
        ("fragment", False, 96, False, False),
    ],
)
def test_fragments_have_no_first_attempt_without_the_reserve(
    rx_buffer: str, memalloc: bool, free: int, found: bool, pfmemalloc: bool
) -> None:
    """So their band begins at 3/8 of min, where `kmalloc_reserve` marks from half of min on, or fails there."""
    rules = ruled(rx_buffer=rx_buffer, build_skb_pfmemalloc=True, pfmemalloc_marking="no watermarks")
    host = host_of("linear", rules, memalloc=memalloc)
    if isinstance(host.skb_memory.rx_cache, KmemCache):
        host.use_up_data()
    host.machine.drain(free)
    socks = host.socket_memory.memalloc_socks
    skbs = host.skb_memory.alloc_rx_skbs(1, GFP_ATOMIC, host.softirq, socks)
    assert [skb.pfmemalloc for skb in skbs] == [pfmemalloc] * found


@pytest.mark.parametrize("recovery", [False, True])
def test_a_fragment_ring_of_one_page_stays_in_the_reserve_without_recovery(recovery: bool) -> None:
    """With no more descriptors than a page has fragments, the same page is cut over and over (until 5.11)."""
    rules = ruled(rx_buffer="fragment", build_skb_pfmemalloc=True, page_frag_recovery=recovery)
    host = host_of("linear", rules, ring=2)
    host.machine.drain(90)
    host.device.alloc_rx_buffers()
    assert marks(host) == [True] * 2
    host.machine.give_back()
    verdicts = host.receive(host.udp, 8)
    assert verdicts[:2] == [PFMEMALLOC] * 2
    assert set(verdicts[2:]) == {DELIVERED if recovery else PFMEMALLOC}


# --- copybreak ---


def short_and_long(host: Host, lengths: list[int]) -> list[DropReason]:
    from testbed.net.dev import ETH_P_IP, RxBatch

    batch = RxBatch([ETH_P_IP] * len(lengths), [host.udp] * len(lengths), ["x"] * len(lengths))
    batch.lengths = lengths
    host.device.receive(batch)
    return [DropReason(verdict) for verdict in batch.verdicts]


def test_short_frames_are_copied_and_the_buffers_stay() -> None:
    host = Host(copybreak=256, ring=8)
    host.device.alloc_rx_buffers()
    before = list(host.device.ring.data)
    assert short_and_long(host, [60, 256, 257]) == [DELIVERED] * 3
    sizes = [skb.truesize for skb in host.udp.receive_queue]
    assert sizes == [512 + 256, 1024 + 256, 2048 + 256]
    assert host.device.ring.data[:7] == before[1:]


def test_a_copy_says_what_memory_is_like_now_and_not_when_the_ring_was_filled() -> None:
    host = Host(copybreak=256)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.fill_ring_from_reserve()
    assert short_and_long(host, [60, 1000, 60]) == [DELIVERED, PFMEMALLOC, DELIVERED]


@pytest.mark.parametrize(
    ("switches", "verdict"), [(SERIES, PFMEMALLOC), (without(skb_pfmemalloc=False), DropReason.RX_NOMEM)]
)
def test_a_copy_may_use_the_reserve_with_patch_09_or_fail(switches: Switches, verdict: DropReason) -> None:
    host = Host(switches, copybreak=256, ring=8)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.device.alloc_rx_buffers()
    host.machine.drain(90)
    assert short_and_long(host, [60]) == [verdict]
    assert len(host.device.ring) == 8
    netstat = host.netstat
    assert netstat.rx_dropped == netstat.rx_skb_reserve_refused == (verdict != PFMEMALLOC)
    assert netstat.rx_packets + netstat.rx_dropped == 1


def test_close_gives_everything_back() -> None:
    for driver in ("linear", "frag", "page"):
        for rx_buffer in ("kmalloc", "fragment"):
            host = Host(ruled(rx_buffer=rx_buffer), driver=driver, ring=33)
            tap = Sock("tap", 1 << 20)
            host.device.ptype_all.append(tap)
            host.receive(host.udp, 50)
            host.device.read_datagrams(host.udp, 50)
            host.device.close()
            assert host.machine.node.pages_leaked() == 0
