"""Copies and merges: who inherits the mark, and who may use the reserve for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from testbed.mm.gfp import GFP_ATOMIC
from testbed.net.dev import ETH_P_IP, RxBatch
from testbed.net.drop_reason import DropReason
from testbed.net.gro import merge
from testbed.net.skb_copy import SkbCopier
from testbed.net.skbuff import Driver, SkBuff
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.patches import Switches
from tests.mm.machine import SERIES, without
from tests.net.host import Host

Copy = Callable[[Host, SkBuff], SkBuff | bool | None]


def clone(host: Host, skb: SkBuff) -> SkBuff | None:
    return host.skb_memory.skb_clone(skb, GFP_ATOMIC, host.softirq)


def copy(host: Host, skb: SkBuff) -> SkBuff | None:
    return copier(host).skb_copy(skb, 1500, GFP_ATOMIC, host.softirq)


def pskb_copy(host: Host, skb: SkBuff) -> SkBuff | None:
    return copier(host).pskb_copy(skb, GFP_ATOMIC, host.softirq)


def expand(host: Host, skb: SkBuff) -> bool:
    return copier(host).pskb_expand_head(skb, 0, GFP_ATOMIC, host.softirq)


def copier(host: Host) -> SkbCopier:
    return SkbCopier(host.skb_memory, host.socket_memory)


def in_shortage(switches: Switches, *, pfmemalloc: bool, memalloc: bool = True) -> tuple[Host, SkBuff]:
    """A host with an skb whose every further need for memory must be met from the reserve."""
    host = Host(switches)
    if memalloc:
        host.socket_memory.sk_set_memalloc(host.swap.sk)
    skb = host.warm_heads()
    skb.pfmemalloc = pfmemalloc
    cache = host.skb_memory.skbuff_head_cache
    while cache.inuse < cache.nr_slabs * cache.objects_per_slab:
        host.padding.append(cache.alloc(GFP_ATOMIC, host.softirq))
    host.use_up_data()
    host.machine.drain(90)
    return host, skb


@pytest.mark.parametrize("make", [clone, copy, pskb_copy, expand])
@pytest.mark.parametrize(
    ("switches", "pfmemalloc", "works"),
    [
        (SERIES, True, True),
        (SERIES, False, False),
        (without(skb_pfmemalloc=False), True, False),
        (without(gfp_memalloc=False), True, False),
    ],
)
def test_only_a_copy_of_what_lies_in_the_reserve_may_use_it(
    make: Copy, switches: Switches, pfmemalloc: bool, works: bool
) -> None:
    host, skb = in_shortage(switches, pfmemalloc=pfmemalloc)
    assert bool(make(host, skb)) == works
    assert skb.pfmemalloc == pfmemalloc


@pytest.mark.parametrize(("make", "works"), [(clone, True), (expand, True), (copy, False), (pskb_copy, False)])
def test_whole_copies_are_receive_memory_and_need_a_memalloc_socket(make: Copy, works: bool) -> None:
    host, skb = in_shortage(SERIES, pfmemalloc=True, memalloc=False)
    assert bool(make(host, skb)) == works


@pytest.mark.parametrize("make", [clone, copy, pskb_copy])
@pytest.mark.parametrize("pfmemalloc", [False, True])
def test_a_copy_is_marked_as_its_original_wherever_it_lies(make: Copy, pfmemalloc: bool) -> None:
    host = Host()
    skb = host.warm_heads()
    skb.pfmemalloc = pfmemalloc
    made = make(host, skb)
    assert isinstance(made, SkBuff)
    assert made.pfmemalloc == pfmemalloc


def test_a_copy_in_the_reserve_of_an_ordinary_skb_is_not_marked() -> None:
    """The header copy overwrites what the allocation said."""
    host, skb = in_shortage(SERIES, pfmemalloc=False)
    host.softirq.pf_memalloc = True
    made = copy(host, skb)
    assert made is not None
    assert made.data.page.pfmemalloc
    assert not made.pfmemalloc


def test_expanding_keeps_the_mark_and_leaves_clones_their_data() -> None:
    host = Host(driver="frag")
    skb = host.warm_heads()
    skb.pfmemalloc = True
    second = clone(host, skb)
    assert second is not None
    data, frag = skb.data, skb.frags[0]
    assert copier(host).pskb_expand_head(skb, 600, GFP_ATOMIC, host.softirq)
    assert (skb.pfmemalloc, second.data, skb.data.cache.object_size) == (True, data, 2048)
    assert skb.data is not data
    assert list(skb.frags) == list(second.frags) == [frag]
    assert frag.users == 2
    assert skb.truesize == host.skb_memory.rx_truesize + 2048 - 512
    host.skb_memory.kfree_skb(second)
    host.skb_memory.kfree_skb(skb)
    host.device.close()
    assert host.machine.node.pages_leaked() == 0


@pytest.mark.parametrize("first", [0, 1])
def test_a_pskb_copy_shares_fragments_until_both_are_gone(first: int) -> None:
    host = Host(driver="page")
    skb = host.warm_heads()
    made = pskb_copy(host, skb)
    assert made is not None
    assert host.skb_memory.frag_pages is not None
    assert host.skb_memory.frag_pages.inuse == 2
    pair = [skb, made]
    free = host.machine.free
    host.skb_memory.kfree_skb(pair[first])
    assert host.machine.free == free
    host.skb_memory.kfree_skb(pair[1 - first])
    assert host.machine.free == free + 1
    assert host.machine.node.pages_leaked() == 0


# --- GRO ---


@pytest.mark.parametrize("driver", ["linear", "frag", "page"])
@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_a_merged_skb_is_marked_as_its_first_segment(driver: Driver, order: tuple[bool, bool]) -> None:
    host = Host(driver=driver)
    skbs = list(host.skb_memory.alloc_rx_skbs(2, GFP_ATOMIC, host.softirq, 1))
    for skb, pfmemalloc in zip(skbs, order, strict=True):
        skb.pfmemalloc = pfmemalloc
    merged = merge(host.skb_memory, skbs)
    assert merged is skbs[0]
    assert merged.pfmemalloc == order[0]
    held = host.skb_memory.rx_truesize * 2 if driver == "linear" else host.skb_memory.rx_truesize + merged_frag(host)
    assert merged.truesize == held
    assert host.skb_memory.skbuff_head_cache.inuse == (2 if driver == "linear" else 1)
    host.skb_memory.kfree_skb(merged)
    host.device.close()
    assert host.machine.node.pages_leaked() == 0


def merged_frag(host: Host) -> int:
    assert host.skb_memory.frag_pages is not None
    return host.skb_memory.frag_pages.object_size


def gso_frame(host: Host, receiver: TcpReceiveQueue, segments: int) -> RxBatch:
    batch = RxBatch([ETH_P_IP], [receiver], ["tcp"], [segments], [segments * 1000], [1000])
    host.device.receive(batch)
    return batch


@pytest.mark.parametrize(
    ("gro", "verdicts", "cut"), [(True, "DELIVERED", {}), (False, "DELIVERED", {0: [True, False]})]
)
def test_with_gro_a_segment_in_the_reserve_rides_behind_an_ordinary_one(
    gro: bool, verdicts: str, cut: dict[int, Any]
) -> None:
    """An ordinary TCP socket gets reserve memory that way, and the filter does not see it."""
    host = Host(ring=2, gro=gro)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.device.alloc_rx_buffers()
    host.device.ring.pfmemalloc[1] = 1
    ordinary = TcpReceiveQueue(Sock("web", 1 << 20), host.skb_memory)
    batch = gso_frame(host, ordinary, 2)
    assert [DropReason(verdict).name for verdict in batch.verdicts] == [verdicts]
    assert batch.cut == cut
    assert sum(host.tally.values()) == host.netstat.rx_packets == 2


def test_with_gro_a_frame_that_starts_in_the_reserve_is_lost_whole() -> None:
    host = Host(ring=4, gro=True)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.device.alloc_rx_buffers()
    host.device.ring.pfmemalloc[0] = 1
    ordinary = TcpReceiveQueue(Sock("web", 1 << 20), host.skb_memory)
    batch = gso_frame(host, ordinary, 3)
    assert batch.verdicts == [DropReason.PFMEMALLOC]
    assert host.tally == {(DropReason.PFMEMALLOC, "tcp", True): 3}


@pytest.mark.parametrize("driver", ["linear", "frag"])
def test_a_merged_skb_lives_until_its_last_byte_is_read(driver: Driver) -> None:
    host = Host(ring=4, gro=True, driver=driver)
    gso_frame(host, host.swap, 4)
    assert host.swap.sk.rmem_alloc > 4 * 2048
    host.swap.copied(3999)
    assert host.swap.sk.rmem_alloc > 4 * 2048
    host.swap.copied(1)
    assert host.swap.sk.rmem_alloc == 0
    host.device.close()
    assert host.machine.node.pages_leaked() == 0
