"""What each kernel, and each patch without another, does with one packet more: marks, drops, copies, floors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from testbed.mm.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_MEMALLOC, GFP_NOIO
from testbed.mm.memory import Vma
from testbed.mm.sched import Task
from testbed.net.dev import ETH_P_8021AD, ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ETH_P_IPX, Kind
from testbed.net.drop_reason import DropReason
from testbed.net.page_frag import PageFrag, PageFragCache
from testbed.net.sk_mem import Proto, tcp_mem, udp_mem
from testbed.net.skb_copy import SkbCopier
from testbed.net.skbuff import Driver, SkBuff, rx_sizes, rx_truesize, skb_data_size
from testbed.net.sock import Sock
from testbed.patches import PATCHES, PRESETS, Switches
from testbed.rules import V9
from tests.mm.machine import Machine
from tests.net.host import Host

SERIES = ("v9", "3.6", "6.1")
ETH_P_PAE, ETH_P_LLDP = 0x888E, 0x88CC
DELIVERED, UNHANDLED, PFMEMALLOC = DropReason.DELIVERED, DropReason.UNHANDLED_PROTO, DropReason.PFMEMALLOC


def switches_of(preset: str, *without: int) -> Switches:
    return Switches.of(PRESETS[preset].patches - set(without), PRESETS[preset].rules)


def host_of(preset: str, *without: int, memalloc: bool = True) -> Host:
    """A host whose ring lies in the reserve."""
    host = Host(switches_of(preset, *without))
    if memalloc:
        host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.device.alloc_rx_buffers()
    host.device.ring.pfmemalloc = bytearray(b"\1" * len(host.device.ring))
    return host


# --- sizes and limits ---


@pytest.mark.parametrize(
    ("mtu", "linear", "kmalloc"), [(576, 1024, 1024), (1500, 1920, 2048), (4000, 4416, 8192), (9000, 9408, 16384)]
)
def test_how_large_a_linear_receive_buffer_is(mtu: int, linear: int, kmalloc: int) -> None:
    """With NET_SKB_PAD, Ethernet's 22 bytes, a cache line's rounding, and 320 bytes of skb_shared_info."""
    assert rx_sizes("linear", mtu) == (linear, 0)
    assert rx_truesize("linear", mtu, V9) == kmalloc + 256


@pytest.mark.parametrize(("payload", "size"), [(0, 384), (1, 448), (64, 448), (65, 512), (1522, 1920)])
def test_how_much_kmalloc_is_asked_for(payload: int, size: int) -> None:
    assert skb_data_size(payload) == size


@pytest.mark.parametrize(("preset", "fragments"), [("3.6", 2), ("6.1", 17)])
def test_fragments_of_1920_bytes_of_a_page_or_a_block(preset: str, fragments: int) -> None:
    host = Host(switches_of(preset))
    cache = host.skb_memory.rx_cache
    assert isinstance(cache, PageFragCache)
    frags = cache.alloc_bulk(fragments + 1, GFP_ATOMIC, host.softirq)
    assert [frags.count(frag) for frag in dict.fromkeys(frags)] == [fragments, 1]


@pytest.mark.parametrize(
    ("mib", "udp", "tcp_today"),
    [
        (4, (96, 128, 192), (96, 128, 192)),
        (64, (1536, 2048, 3072), (768, 1024, 1536)),
        (1024, (24576, 32768, 49152), (12288, 16384, 24576)),
    ],
)
def test_udp_mem_and_tcp_mem(mib: int, udp: tuple[int, int, int], tcp_today: tuple[int, int, int]) -> None:
    """An eighth of low memory; TCP's a sixteenth from 4.2 on."""
    assert udp_mem(mib * 256) == tcp_mem(mib * 256, PRESETS["3.6"].rules) == udp
    assert tcp_mem(mib * 256, PRESETS["6.1"].rules) == tcp_today


@pytest.mark.parametrize(("preset", "exempt"), [("v9", False), ("3.6", True), ("6.1", True)])
@pytest.mark.parametrize("pfmemalloc", [False, True])
def test_beyond_tcp_mem_only_the_reserve_gets_in_and_nothing_goes_out(
    preset: str, exempt: bool, pfmemalloc: bool
) -> None:
    prot = Proto("TCP", (1, 1, 1), PRESETS[preset].rules, has_memory_pressure=True)
    prot.memory_allocated = 1
    sk = Sock("swap", 1 << 20, 1 << 20, prot=prot)
    sk.memalloc = True
    assert sk.sk_rmem_schedule(2304, pfmemalloc) == (exempt and pfmemalloc)
    assert not sk.sk_wmem_schedule(2304)


# --- delivery ---


@pytest.mark.parametrize(
    ("protocol", "old", "today"),
    [
        (ETH_P_ARP, DELIVERED, DELIVERED),
        (ETH_P_IP, DELIVERED, DELIVERED),
        (ETH_P_IPV6, DELIVERED, DELIVERED),
        (ETH_P_8021Q, DELIVERED, DELIVERED),
        (ETH_P_8021AD, UNHANDLED, DELIVERED),
        (ETH_P_IPX, UNHANDLED, UNHANDLED),
        (ETH_P_PAE, UNHANDLED, UNHANDLED),
        (ETH_P_LLDP, UNHANDLED, UNHANDLED),
    ],
)
@pytest.mark.parametrize("preset", SERIES)
def test_protocols_in_the_reserve(preset: str, protocol: int, old: DropReason, today: DropReason) -> None:
    """Somebody is bound to each, and gets what is listed: only ETH_P_ALL has the reserve kept from it."""
    host = host_of(preset)
    tap, bound = Sock("tcpdump", 1 << 20), Sock("packet", 1 << 20)
    host.device.ptype_all.append(tap)
    host.device.ptype_base[protocol] = [bound]
    expected = today if preset == "6.1" else old
    assert host.receive(None, protocol=protocol) == [expected]
    assert (len(tap.receive_queue), len(bound.receive_queue)) == (0, expected == DELIVERED)
    assert host.netstat.rx_dropped == (expected == UNHANDLED)


@pytest.mark.parametrize(
    ("preset", "memalloc", "without", "verdict", "tapped", "dropped"),
    [
        ("v9", True, (), PFMEMALLOC, 0, 1),
        ("v9", False, (), PFMEMALLOC, 0, 1),
        ("3.6", False, (), PFMEMALLOC, 1, 1),
        ("6.1", False, (), PFMEMALLOC, 1, 1),
        ("v9", True, (12,), PFMEMALLOC, 1, 1),
        ("v9", True, (9, 13), DELIVERED, 0, 0),
        ("v9", True, (9, 12, 13), DELIVERED, 1, 0),
    ],
)
def test_a_datagram_in_the_reserve_for_an_ordinary_socket(
    *, preset: str, memalloc: bool, without: tuple[int, ...], verdict: DropReason, tapped: int, dropped: int
) -> None:
    """The filter has no test for memalloc sockets; from 3.6 on taps and PF_MEMALLOC have."""
    host = host_of(preset, *without, memalloc=memalloc)
    tap = Sock("tcpdump", 1 << 20)
    host.device.ptype_all.append(tap)
    assert host.receive(host.udp) == [verdict]
    assert (len(tap.receive_queue), host.netstat.PFMemallocDrop) == (tapped, dropped)


@pytest.mark.parametrize("preset", SERIES)
@pytest.mark.parametrize("before", [False, True])
def test_pf_memalloc_is_after_a_packet_what_it_was_before(preset: str, before: bool) -> None:
    host = host_of(preset)
    host.device.softirq.pf_memalloc = before
    seen: list[bool] = []

    def looks(_skb: SkBuff, _kind: Kind) -> None:
        seen.append(host.device.softirq.pf_memalloc)

    host.device.rx_handler = looks
    host.device.copybreak = 1  # so that each frame is received by itself
    host.device.ring.pfmemalloc[1] = 0
    host.receive(host.swap, 2, end_seq=[100, 200])
    assert seen == [True, before]
    assert host.device.softirq.pf_memalloc == before


# --- marks ---


@pytest.mark.parametrize(
    ("linear", "frags", "marked"),
    [
        (False, "", False),
        (False, "0", False),
        (False, "1", True),
        (False, "10", True),
        (False, "01", True),
        (False, "m", False),
        (False, "m1", True),
        (True, "0", True),
        (True, "m", True),
    ],
)
@pytest.mark.parametrize(("without", "propagates"), [((), True), ((10,), False)])
def test_fragments_attached_one_after_the_other(
    *, linear: bool, frags: str, marked: bool, without: tuple[int, ...], propagates: bool
) -> None:
    """1: of the reserve; m: of the reserve, with a mapping. Without patch 10 only linear data decides."""
    host = Host(switches_of("v9", *without), driver="frag")
    pages = host.skb_memory.frag_pages
    skb = host.skb_memory.alloc_skb(100, GFP_ATOMIC, host.softirq)
    assert pages is not None
    assert skb is not None
    skb.pfmemalloc = linear
    for page, kind in zip(Machine().node.zone.pages, frags, strict=False):
        page.pfmemalloc = kind != "0"
        page.mapping = Vma(Task("user"), 1) if kind == "m" else None
        host.skb_memory.skb_fill_page_desc(skb, PageFrag(pages, [page], 1))
    assert skb.pfmemalloc == (marked if propagates else linear)


def _copier(host: Host) -> SkbCopier:
    return SkbCopier(host.skb_memory, host.socket_memory)


def _clone_of_clone(host: Host, skb: SkBuff) -> SkBuff | None:
    clone = host.skb_memory.skb_clone(skb, GFP_ATOMIC, host.softirq)
    assert clone is not None
    return host.skb_memory.skb_clone(clone, GFP_ATOMIC, host.softirq)


Copy = Callable[[Host, SkBuff], SkBuff | None]
COPIES: dict[str, Copy] = {
    "clone": lambda host, skb: host.skb_memory.skb_clone(skb, GFP_ATOMIC, host.softirq),
    "clone of clone": _clone_of_clone,
    "copy": lambda host, skb: _copier(host).skb_copy(skb, 1500, GFP_ATOMIC, host.softirq),
    "copy_expand": lambda host, skb: _copier(host).skb_copy(skb, 3000, GFP_ATOMIC, host.softirq),
    "pskb_copy": lambda host, skb: _copier(host).pskb_copy(skb, GFP_ATOMIC, host.softirq),
    "expand_head": lambda host, skb: skb if _copier(host).pskb_expand_head(skb, 8, GFP_ATOMIC, host.softirq) else None,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("pfmemalloc", [False, True])
@pytest.mark.parametrize("preset", SERIES)
def test_a_copy_has_the_mark_of_its_original(preset: str, how: str, pfmemalloc: bool) -> None:
    host = Host(switches_of(preset))
    skb = host.warm_heads()
    skb.pfmemalloc = pfmemalloc
    made = COPIES[how](host, skb)
    assert made is not None
    assert made.pfmemalloc == skb.pfmemalloc == pfmemalloc


# --- sockets ---


@pytest.mark.parametrize(
    ("without", "flagged", "mask", "data", "count"),
    [
        ((), False, GFP_ATOMIC, GFP_NOIO, 0),
        ((), True, GFP_ATOMIC | GFP_MEMALLOC, GFP_NOIO | GFP_MEMALLOC, 1),
        ((7,), True, GFP_ATOMIC, GFP_NOIO | GFP_MEMALLOC, 1),
        ((8,), True, GFP_ATOMIC, GFP_NOIO, 0),
        ((7, 8), True, GFP_ATOMIC, GFP_NOIO, 0),
    ],
)
def test_masks_of_a_socket(*, without: tuple[int, ...], flagged: bool, mask: int, data: int, count: int) -> None:
    """Of a control packet (sk_allocation()) and of data (sk->sk_allocation)."""
    host = Host(switches_of("v9", *without))
    sk = host.swap.sk
    sk.sk_allocation = GFP_NOIO
    if flagged:
        host.socket_memory.sk_set_memalloc(sk)
    assert host.socket_memory.sk_allocation(sk, GFP_ATOMIC) == mask
    assert (sk.sk_allocation, host.socket_memory.memalloc_socks) == (data, count)


@pytest.mark.parametrize(
    ("calls", "socks", "flag"), [("ss", 2, True), ("sc", 0, False), ("ssc", 1, False), ("scs", 1, True)]
)
def test_setting_and_clearing(calls: str, socks: int, flag: bool) -> None:
    host = Host()
    for call in calls:
        (host.socket_memory.sk_set_memalloc if call == "s" else host.socket_memory.sk_clear_memalloc)(host.udp)
    assert (host.socket_memory.memalloc_socks, host.udp.memalloc) == (socks, flag)
    assert bool(host.udp.sk_allocation & GFP_MEMALLOC) == flag


@pytest.mark.parametrize("without", [(), (9,), (9, 13), (13,)])
@pytest.mark.parametrize("memalloc", [False, True])
def test_slab_keeps_reserve_objects_apart_while_sockets_are_counted(without: tuple[int, ...], memalloc: bool) -> None:
    """Patch 13 looks at how many there are, which without patch 9, too, is known here."""
    host = Host(switches_of("v9", *without), slab="slab")
    if memalloc:
        host.socket_memory.sk_set_memalloc(host.swap.sk)
    cache = host.machine.node.kmem_cache_create("test", 1024)
    host.machine.drain(10)
    assert cache.alloc(GFP_ATOMIC | GFP_MEMALLOC, host.softirq) is not None
    tagged = memalloc or 13 in without
    assert (cache.alloc(GFP_ATOMIC, host.softirq) is None) == tagged


def test_without_patch_05_taps_and_foreign_protocols_are_kept_away_all_the_same() -> None:
    host = host_of("v9", 5)
    tap = Sock("tcpdump", 1 << 20)
    host.device.ptype_all.append(tap)
    assert host.receive(None, protocol=ETH_P_IPX) == [UNHANDLED]
    assert host.receive(host.udp) == [PFMEMALLOC]
    assert len(tap.receive_queue) == 0


# --- receive memory, patch by patch ---

FLOORS: list[tuple[Driver, tuple[int, ...], bool, int, int]] = [
    # driver, patches off, is there a memalloc socket, the fewest free pages to receive with, those up to which it marks
    ("linear", (), True, 1, 128),
    ("linear", (), False, 129, 0),
    ("linear", (4,), True, 129, 0),
    ("linear", (8,), True, 129, 0),
    ("linear", (9,), True, 97, 0),
    ("linear", (9,), False, 97, 0),
    ("linear", (2, 3), True, 1, 128),
    ("linear", (5, 12), True, 1, 128),
    ("linear", (4, 9), True, 97, 0),
    ("linear", tuple(PATCHES), True, 97, 0),
    ("page", (), True, 1, 320),
    ("page", (), False, 1, 320),
    ("page", (11,), True, 97, 0),
    ("page", (4,), True, 97, 0),
    ("page", (10,), True, 1, 320),
    ("page", (10, 11), True, 97, 0),
    ("page", (2, 3), True, 1, 0),
]


@pytest.mark.parametrize(("driver", "without", "memalloc", "floor", "marks"), FLOORS)
def test_how_far_down_receive_memory_goes(
    *, driver: Driver, without: tuple[int, ...], memalloc: bool, floor: int, marks: int
) -> None:
    """3.4's rules, min 256, low 320. One page is wanted: what else an skb is made of lies in slabs that are there.

    A driver's page is marked if the slow path found it, linear data only at the second attempt.
    """

    def receive(free: int) -> list[bool]:
        host = Host(switches_of("v9", *without), driver=driver)
        if memalloc:
            host.socket_memory.sk_set_memalloc(host.swap.sk)
        host.warm_heads()
        if driver == "linear":
            host.use_up_data()
        host.machine.drain(free)
        socks = host.socket_memory.memalloc_socks
        return [skb.pfmemalloc for skb in host.skb_memory.alloc_rx_skbs(1, GFP_ATOMIC, host.softirq, socks)]

    assert len(receive(floor)) == 1
    assert receive(floor - 1) == []
    if marks:
        assert receive(max(floor, marks)) == [True]
    assert receive(max(floor, marks + 1)) == [False]


@pytest.mark.parametrize(
    ("without", "floors", "marked"),
    [
        ((), (1, 1, 1), (True, True, True)),
        ((4,), (97, 1, 1), (False, True, True)),
        ((5,), (1, 97, 1), (True, False, True)),
        ((4, 5), (97, 97, 1), (False, True, True)),
        ((2,), (1, 1, 1), (False, False, False)),
        (tuple(PATCHES), (97, 97, 1), (False, False, False)),
    ],
)
def test_what_lets_a_request_below_the_marks(
    without: tuple[int, ...], floors: tuple[int, int, int], marked: tuple[bool, bool, bool]
) -> None:
    """The fewest free pages for __GFP_MEMALLOC, for a softirq with PF_MEMALLOC, for a task with it.

    Patch 02 as posted, alone, marks for whoever has PF_MEMALLOC, wherever it runs and whatever the flag is good for.
    """
    softirq, task = Task("softirq", pf_memalloc=True), Task("task", pf_memalloc=True)
    softirq.serving_softirq = True
    cases = ((GFP_ATOMIC | GFP_MEMALLOC, Task("plain")), (GFP_ATOMIC, softirq), (GFP_KERNEL, task))
    for (gfp_mask, current), floor, mark in zip(cases, floors, marked, strict=True):
        host = Host(switches_of("v9", *without))
        host.machine.drain(floor)
        page = host.machine.node.page_alloc.alloc_page_nowait(gfp_mask, current)
        assert page is not None
        assert page.pfmemalloc == mark
        host.machine.node.page_alloc.drain_all_pages()
        assert host.machine.node.page_alloc.alloc_page_nowait(gfp_mask, current) is None
