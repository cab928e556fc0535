"""skb memory: when a receive buffer comes from the reserve, what it costs, and who inherits the mark."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab
from testbed.net.skbuff import skb_data_size
from testbed.patches import Switches
from testbed.rules import LINUX_3_6, V9, Rules
from tests.mm.machine import SERIES, VANILLA, without
from tests.net.host import FRAME_TRUESIZE, Host


@pytest.mark.parametrize(("payload", "size"), [(1522, 1920), (0, 384), (192, 576), (1, 448), (64, 448), (65, 512)])
def test_linear_data_is_padded_aligned_and_followed_by_the_shared_info(payload: int, size: int) -> None:
    assert skb_data_size(payload) == size


@pytest.mark.parametrize(
    ("free", "switches", "memalloc_socks", "pfmemalloc"),
    [
        (129, SERIES, 1, [False]),
        (128, SERIES, 1, [True]),
        (97, SERIES, 1, [True]),
        (1, SERIES, 1, [True]),
        (0, SERIES, 1, []),
        (129, SERIES, 0, [False]),
        (128, SERIES, 0, []),
        (97, VANILLA, 1, [False]),
        (96, VANILLA, 1, []),
        (97, without(gfp_memalloc=False), 1, []),
        (97, without(skb_pfmemalloc=False), 1, [False]),
        (96, without(skb_pfmemalloc=False), 1, []),
    ],
)
def test_where_a_receive_buffer_comes_from(
    free: int, switches: Switches, memalloc_socks: int, pfmemalloc: list[bool]
) -> None:
    host = Host(switches)
    host.warm_heads()
    host.use_up_data()
    host.machine.drain(free)
    skbs = host.skb_memory.alloc_rx_skbs(1, GFP_ATOMIC, host.softirq, memalloc_socks)
    assert [skb.pfmemalloc for skb in skbs] == pfmemalloc
    assert host.netstat.alloc_rx_buff_failed == 1 - len(pfmemalloc)
    assert host.netstat.rx_skb_pfmemalloc == sum(pfmemalloc)
    assert all(skb.truesize == FRAME_TRUESIZE for skb in skbs)


@pytest.mark.parametrize(("rules", "marked"), [(V9, True), (replace(LINUX_3_6, rx_buffer="kmalloc"), False)])
def test_between_the_throttle_point_and_the_atomic_floor_the_skb_is_marked_and_its_page_is_by_v9_only(
    rules: Rules, marked: bool
) -> None:
    host = Host(replace(SERIES, rules=rules))
    kept = host.warm_heads()
    assert not kept.pfmemalloc
    host.use_up_data()
    host.machine.drain(110)
    (skb,) = host.skb_memory.alloc_rx_skbs(1, GFP_ATOMIC, host.softirq, 1)
    assert (skb.pfmemalloc, skb.data.page.pfmemalloc) == (True, marked)
    assert host.machine.node.vmstat.no_watermark_allocs == 0


def test_a_refill_gets_what_there_is_ordinary_buffers_first() -> None:
    host = Host(ring=400)
    host.warm_heads()
    host.machine.drain(150)
    skbs = host.skb_memory.alloc_rx_skbs(400, GFP_ATOMIC, host.softirq, 1)
    marks = [skb.pfmemalloc for skb in skbs]
    assert (marks[0], marks[-1]) == (False, True)
    assert len(marks) < 400
    assert host.machine.free <= 1
    assert host.netstat.alloc_rx_buff_failed == 400 - len(marks)


@pytest.mark.parametrize(("free", "memalloc_socks", "buffers"), [(140, 0, 16), (20, 1, 30), (140, 1, 240)])
def test_heads_do_not_crowd_out_data(free: int, memalloc_socks: int, buffers: int) -> None:
    """One buffer in a shortage takes half a page of data and a sixteenth of a page for its head."""
    host = Host()
    host.warm_heads()
    host.use_up_data()
    host.machine.drain(free)
    assert len(host.skb_memory.alloc_rx_skbs(500, GFP_ATOMIC, host.softirq, memalloc_socks)) >= buffers


@pytest.mark.parametrize("memalloc_socks", [0, 1])
def test_all_memory_comes_back(memalloc_socks: int) -> None:
    host = Host(pages=1024)
    host.machine.drain(40)
    skbs = host.skb_memory.alloc_rx_skbs(300, GFP_ATOMIC, host.softirq, memalloc_socks)
    assert skbs
    assert host.machine.free < 40
    received = list(skbs)
    clones = [host.skb_memory.skb_clone(skb, GFP_ATOMIC, host.softirq) for skb in received[:8]]
    host.skb_memory.kfree_skbs(received)
    host.skb_memory.kfree_skbs([clone for clone in clones if clone is not None])
    host.machine.give_back()
    assert host.machine.node.pages_leaked() == 0


@pytest.mark.parametrize("first", ["original", "clone"])
def test_data_lives_as_long_as_its_last_user(first: str) -> None:
    host = Host()
    original = host.warm_heads()
    clone = host.skb_memory.skb_clone(original, GFP_ATOMIC, host.softirq)
    assert clone is not None
    again = host.skb_memory.skb_clone(clone, GFP_ATOMIC, host.softirq)
    assert again is not None
    cache = host.skb_memory.rx_cache
    order = [original, clone, again] if first == "original" else [again, clone, original]
    for skb in order:
        assert cache.inuse == 1
        host.skb_memory.kfree_skb(skb)
    assert (cache.inuse, host.skb_memory.skbuff_head_cache.inuse) == (0, 0)


@pytest.mark.parametrize(("switches", "cloned"), [(SERIES, True), (without(gfp_memalloc=False), False)])
def test_a_clone_of_a_reserve_skb_may_use_the_reserve_and_is_marked(switches: Switches, cloned: bool) -> None:
    host = Host(switches)
    original = host.warm_heads()
    original.pfmemalloc = True
    while host.skb_memory.skbuff_head_cache.alloc(GFP_ATOMIC, host.softirq):
        host.machine.drain(max(96, host.machine.free - 500))
    clone = host.skb_memory.skb_clone(original, GFP_ATOMIC, host.softirq)
    assert (clone is not None and clone.pfmemalloc) == cloned


def test_a_clone_of_an_ordinary_skb_may_not() -> None:
    host = Host()
    original = host.warm_heads()
    while host.skb_memory.skbuff_head_cache.alloc(GFP_ATOMIC | GFP_MEMALLOC, host.softirq):
        host.machine.drain(max(0, host.machine.free - 500))
    host.machine.give_back(90)
    assert host.skb_memory.skb_clone(original, GFP_ATOMIC, host.softirq) is None


def test_an_skb_without_data_memory_gives_its_head_back() -> None:
    host = Host()
    host.warm_heads()
    host.use_up_data()
    host.machine.drain(96)
    assert host.skb_memory.alloc_skb(1500, GFP_ATOMIC, host.softirq) is None
    assert host.skb_memory.skbuff_head_cache.inuse == 1


@pytest.mark.parametrize("memalloc_socks", [0, 1])
def test_a_second_attempt_that_patch_04_would_have_allowed_is_counted(memalloc_socks: int) -> None:
    host = Host(without(gfp_memalloc=False))
    host.warm_heads()
    host.use_up_data()
    host.machine.drain(110)
    assert not host.skb_memory.alloc_rx_skbs(1, GFP_ATOMIC, host.softirq, memalloc_socks)
    assert host.machine.node.vmstat.gfp_memalloc_refused == memalloc_socks


@pytest.mark.parametrize(("count", "chunks"), [(20, [20]), (60, [16, 16, 16, 12])])
def test_only_skbs_that_may_need_pages_are_made_a_slab_at_a_time(
    monkeypatch: pytest.MonkeyPatch, count: int, chunks: list[int]
) -> None:
    host = Host()
    memory = host.skb_memory
    skbs = list(memory.alloc_rx_skbs(640, GFP_ATOMIC, host.softirq, 1))
    memory.kfree_skbs(skbs[::2])
    host.machine.drain(64)
    asked: list[int] = []
    heads = memory.skbuff_head_cache
    alloc_bulk = heads.alloc_bulk

    def noted(count: int, gfp_mask: int, current: Task) -> list[Slab]:
        asked.append(count)
        return alloc_bulk(count, gfp_mask, current)

    monkeypatch.setattr(heads, "alloc_bulk", noted)
    assert len(memory.alloc_rx_skbs(count, GFP_ATOMIC, host.softirq, 1)) == count
    assert asked == chunks
