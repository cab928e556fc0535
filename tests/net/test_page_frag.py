"""Fragments: how many a page gives, when it goes back, and what of the reserve sticks to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC, GFP_NOMEMALLOC
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.net.page_frag import NetdevPages, PageFrag, PageFragCache
from testbed.net.snmp import NetStat
from tests.mm.machine import SERIES, Machine, machine_64m, without

SOFTIRQ = Task("softirq")
SOFTIRQ.serving_softirq = True
RESERVE = GFP_ATOMIC | GFP_MEMALLOC


def machine(**rules: Any) -> Machine:
    return machine_64m(replace(SERIES, rules=replace(SERIES.rules, **rules)))


def cache_on(host: Machine, size: int = 1920) -> PageFragCache:
    return PageFragCache(size, host.node.page_alloc)


@pytest.mark.parametrize(("size", "pages"), [(1920, 50), (2048, 50), (2049, 100), (4096, 100), (512, 13)])
def test_as_many_fragments_as_fit_are_cut_from_each_page(size: int, pages: int) -> None:
    host = machine()
    cache = cache_on(host, size)
    before = host.free
    frags = cache.alloc_bulk(100, GFP_ATOMIC, SOFTIRQ)
    assert (len(frags), before - host.free, cache.inuse) == (100, pages, 100)
    cache.free_bulk(frags)
    cache.drain()
    assert (host.free, cache.inuse) == (before, 0)


def test_a_fragment_is_never_more_than_a_page() -> None:
    with pytest.raises(ValueError, match="4097 bytes"):
        cache_on(machine(), 4097)


def test_a_page_goes_back_with_its_last_fragment() -> None:
    host = machine()
    cache = cache_on(host)
    first, second, third = cache.alloc_bulk(3, GFP_ATOMIC, SOFTIRQ)
    assert first is second is not third
    free = host.free
    cache.free(first)
    assert host.free == free
    cache.free(second)
    assert host.free == free + 1


def test_a_fragment_with_another_user_stays() -> None:
    host = machine()
    cache = cache_on(host)
    first, second, _third = cache.alloc_bulk(3, GFP_ATOMIC, SOFTIRQ)
    free = host.free
    cache.get(first)
    cache.free_bulk([first, second])
    assert host.free == free
    cache.free(first)
    assert host.free == free + 1


def test_a_page_whose_fragments_have_all_come_back_is_cut_again() -> None:
    host = machine()
    cache = cache_on(host)
    frags = cache.alloc_bulk(2, GFP_ATOMIC, SOFTIRQ)
    cache.free_bulk(frags)
    free = host.free
    assert cache.alloc_bulk(2, GFP_ATOMIC, SOFTIRQ) == frags
    assert host.free == free


@pytest.mark.parametrize("recovery", [False, True])
def test_a_reserve_page_is_stuck_in_the_cache_until_5_11(recovery: bool) -> None:
    """Memory is plentiful again, and with no frame left in flight the page is still the one from the shortage."""
    host = machine(page_frag_recovery=recovery)
    cache = cache_on(host)
    host.drain(90)
    frags = cache.alloc_bulk(2, RESERVE, SOFTIRQ)
    assert all(frag.pfmemalloc for frag in frags)
    host.give_back()
    for _ in range(3):
        cache.free_bulk(frags)
        frags = cache.alloc_bulk(2, RESERVE, SOFTIRQ)
        assert all(frag.pfmemalloc != recovery for frag in frags)
    cache.free_bulk(frags)
    cache.drain()
    assert host.node.pages_leaked() == 0


def test_recovery_leaves_ordinary_pages_where_they_are() -> None:
    cache = cache_on(machine(page_frag_recovery=True))
    frags = cache.alloc_bulk(2, GFP_ATOMIC, SOFTIRQ)
    cache.free_bulk(frags)
    assert cache.alloc_bulk(2, GFP_ATOMIC, SOFTIRQ) == frags


class Blocks:
    """Hands out at most `left` larger blocks of a host's allocator, and notes what it was asked for."""

    def __init__(self, host: Machine, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self.asked: list[tuple[int, int]] = []
        self._alloc = host.node.page_alloc.alloc_order_nowait
        monkeypatch.setattr(host.node.page_alloc, "alloc_order_nowait", self.alloc)

    def alloc(self, order: int, gfp_mask: int, current: Task) -> list[Page] | None:
        self.asked.append((order, gfp_mask))
        if not self.left:
            return None
        self.left -= 1
        return self._alloc(order, gfp_mask, current)


def test_a_large_block_is_tried_first_and_never_from_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine(page_frag_order=3)
    blocks = Blocks(host, monkeypatch, left=1)
    cache = cache_on(host)
    frags = cache.alloc_bulk(21, RESERVE, SOFTIRQ)
    assert [order for order, _ in blocks.asked] == [3, 3]
    assert all(gfp_mask & GFP_NOMEMALLOC for _, gfp_mask in blocks.asked)
    sizes = [len(frag.pages) for frag in frags]
    assert sizes == [8] * 17 + [1] * 4
    free = host.free
    cache.free_bulk(frags)
    assert host.free == free + 9, "all but the page at hand"
    cache.drain()
    assert host.free == free + 10


def test_the_order_0_fallback_may_use_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine(page_frag_order=3)
    Blocks(host, monkeypatch, left=0)
    host.drain(90)
    assert cache_on(host).alloc_bulk(1, RESERVE, SOFTIRQ)[0].pfmemalloc


def test_without_the_rule_no_block_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine()
    blocks = Blocks(host, monkeypatch, left=9)
    cache_on(host).alloc_bulk(50, RESERVE, SOFTIRQ)
    assert not blocks.asked


def one_by_one(cache: PageFragCache, count: int, gfp_mask: int) -> list[PageFrag]:
    taken: list[PageFrag] = []
    while len(taken) < count and (frag := cache.alloc_bulk(1, gfp_mask | 0x200, SOFTIRQ)):
        taken += frag
    return taken


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12), st.sampled_from([0, 3, 90, 97, 400])), max_size=20),
    size=st.sampled_from([512, 1920, 4096]),
    recovery=st.booleans(),
)
def test_fragments_in_bulk_are_fragments_one_by_one(
    steps: list[tuple[int, int, int]], size: int, recovery: bool
) -> None:
    hosts = [machine(page_frag_recovery=recovery) for _ in range(2)]
    caches = [cache_on(host, size) for host in hosts]
    held: list[list[PageFrag]] = [[], []]
    for want, give, free in steps:
        for host in hosts:
            host.give_back()
            host.drain(free)
        held[0] += caches[0].alloc_bulk(want, RESERVE | 0x200, SOFTIRQ)
        held[1] += one_by_one(caches[1], want, RESERVE)
        assert [frag.pfmemalloc for frag in held[0]] == [frag.pfmemalloc for frag in held[1]]
        assert hosts[0].free == hosts[1].free
        for cache, frags in zip(caches, held, strict=True):
            cache.free_bulk(frags[:give])
            del frags[:give]
            assert cache.inuse == len(frags)
    for host, cache, frags in zip(hosts, caches, held, strict=True):
        cache.free_bulk(frags)
        cache.drain()
        host.give_back()
        assert host.node.pages_leaked() == 0


@pytest.mark.parametrize(
    ("gfp_mask", "patched", "found"),
    [(GFP_ATOMIC, True, 5), (GFP_ATOMIC | GFP_NOMEMALLOC, True, 0), (GFP_ATOMIC, False, 0)],
)
def test_a_drivers_page_may_come_from_the_reserve_unless_it_forbids_that(
    gfp_mask: int, patched: bool, found: int
) -> None:
    """Patch 11 asks whatever sockets there are; phonet's drivers forbid it."""
    host = machine_64m(SERIES if patched else without(netdev_page_pfmemalloc=False))
    host.drain(96)
    netstat = NetStat()
    pages = NetdevPages(host.node.page_alloc, netstat)
    frags = pages.alloc_bulk(5, gfp_mask, SOFTIRQ)
    assert [frag.pfmemalloc for frag in frags] == [True] * found
    assert (netstat.netdev_page_pfmemalloc, netstat.alloc_rx_page_failed) == (found, not found)
    assert netstat.netdev_page_reserve_refused == (not patched)
    pages.free_bulk(frags)
    assert host.free == 96


@pytest.mark.parametrize("mapped", [False, True])
def test_a_page_with_a_mapping_marks_nothing(mapped: bool) -> None:
    """Where `pfmemalloc` is one page cache pages have their index (V8)."""
    host = machine()
    host.drain(90)
    page = host.node.page_alloc.alloc_page_nowait(RESERVE, SOFTIRQ)
    assert page is not None
    page.mapping = object() if mapped else None  # type: ignore[assignment]
    assert PageFrag(cache_on(host), [page], 0).pfmemalloc is not mapped
