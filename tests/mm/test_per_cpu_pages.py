"""Per-cpu lists: their size, and that the pages on them are neither free nor anybody's."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_MEMALLOC
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.per_cpu_pages import PerCpuPages
from testbed.mm.sched import Task
from testbed.patches import PATCHES, Switches
from testbed.rules import LINUX_6_1, V9, Rules
from tests.mm.machine import machine_64m
from tests.mm.zones import NORMAL, allocator, drain
from tests.virtual_time import is_blocked, simulate

PLAIN, ENTITLED = Task("plain"), Task("entitled", pf_memalloc=True)
PAGES = 16384
OF_6_1 = Switches.of(PATCHES, LINUX_6_1)


@pytest.mark.parametrize(
    ("managed", "rules", "batch", "high"),
    [
        (2048, V9, 1, 0),
        (8192, V9, 1, 6),
        (16384, V9, 3, 18),
        (65536, V9, 15, 90),
        (131072, V9, 31, 186),
        (524288, V9, 31, 186),
        (65536, LINUX_6_1, 15, 60),
        (524288, LINUX_6_1, 63, 252),
    ],
)
def test_batch_and_high(managed: int, rules: Rules, batch: int, high: int) -> None:
    pcp = PerCpuPages(managed, rules)
    assert (pcp.batch, pcp.high) == (batch, high)


def test_a_list_is_filled_a_batch_at_a_time_and_its_pages_are_not_free() -> None:
    page_alloc = allocator((NORMAL, 0, PAGES))
    zone = page_alloc.zone
    seen = []
    for _ in range(7):
        page_alloc.alloc_page_nowait(GFP_KERNEL, PLAIN)
        seen.append((PAGES - zone.nr_free_pages, len(zone.pcp.pages)))
    assert seen == [(3, 2), (3, 1), (3, 0), (6, 2), (6, 1), (6, 0), (9, 2)]


def test_whoever_may_not_pass_the_watermark_gets_no_page_of_the_list_either() -> None:
    page_alloc = allocator((NORMAL, 0, PAGES))
    zone = page_alloc.zone
    drain(zone, 257)
    assert page_alloc.alloc_page_nowait(GFP_KERNEL, PLAIN) is not None
    assert (zone.nr_free_pages, len(zone.pcp.pages)) == (254, 2)
    assert page_alloc.alloc_page_nowait(GFP_KERNEL, PLAIN) is None
    assert page_alloc.alloc_page_nowait(GFP_KERNEL, ENTITLED) is not None
    assert (zone.nr_free_pages, len(zone.pcp.pages)) == (254, 1)


def test_with_nothing_free_the_list_still_serves_those_without_watermarks() -> None:
    page_alloc = allocator((NORMAL, 0, PAGES))
    page_alloc.alloc_page_nowait(GFP_KERNEL, PLAIN)
    drain(page_alloc.zone, 0)
    assert len(page_alloc.alloc_pages_nowait(5, GFP_ATOMIC | GFP_MEMALLOC, PLAIN)) == 2
    assert page_alloc.alloc_page_nowait(GFP_ATOMIC | GFP_MEMALLOC, PLAIN) is None


@pytest.mark.parametrize("rules", [V9, LINUX_6_1], ids=["v9", "6.1"])
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=30),
    free=st.integers(0, 300),
    low=st.integers(0, 100),
)
def test_many_at_once_are_many_one_by_one(
    rules: Rules, steps: list[tuple[bool, int]], free: int, low: int
) -> None:
    one, many = allocator((NORMAL, 0, 512), min_free_kbytes=256), allocator((NORMAL, 0, 512), min_free_kbytes=256)
    for each in (one, many):
        each.zone.pcp = PerCpuPages(PAGES, rules)
        each.zone.pcp.set_low_watermark(low)
    held_one, held_many = drain(one.zone, free), drain(many.zone, free)
    for give, count in steps:
        if give:
            for page in held_one[:count]:
                one.free_page(page)
            many.free_slab_pages(held_many[:count])
            del held_one[:count], held_many[:count]
        else:
            held_one += [got for _ in range(count) if (got := one.alloc_page_nowait(GFP_ATOMIC, PLAIN))]
            held_many += many.alloc_pages_nowait(count, GFP_ATOMIC, PLAIN)
        assert state(one) == state(many)
        assert [page.pfn for page in held_one] == [page.pfn for page in held_many]


def state(page_alloc: PageAllocator) -> tuple[int, int, int, int]:
    vmstat, zone = page_alloc.vmstat, page_alloc.zone
    return zone.nr_free_pages, len(zone.pcp.pages), vmstat.pgalloc, vmstat.pgfree


def test_freed_pages_go_back_in_batches_once_the_list_is_full() -> None:
    page_alloc = allocator((NORMAL, 0, PAGES))
    zone = page_alloc.zone
    pages = drain(zone, 1000)
    for page in pages[:17]:
        page_alloc.free_page(page)
    assert (zone.nr_free_pages, len(zone.pcp.pages)) == (1000, 17)
    page_alloc.free_page(pages[17])
    assert (zone.nr_free_pages, len(zone.pcp.pages)) == (1003, 15)
    assert zone.pcp.pages[-1] is pages[17]
    page_alloc.drain_all_pages()
    assert (zone.nr_free_pages, len(zone.pcp.pages)) == (1018, 0)


LOW = 320
"""Pages of the low watermark in `list_of_6_1`, whose batch is 3."""


def list_of_6_1(count: int = 0, free_factor: int = 0) -> PerCpuPages:
    """A per-cpu list of 64 MiB with so many pages on it."""
    pcp = PerCpuPages(PAGES, LINUX_6_1)
    pcp.set_low_watermark(LOW)
    pcp.add(pages_of_zone(count))
    pcp.free_factor = free_factor
    return pcp


def pages_of_zone(count: int) -> list[Page]:
    return drain(allocator((NORMAL, 0, 512)).zone, 512 - count)


@pytest.mark.parametrize(
    ("rules", "reclaim_active", "high"),
    [(V9, False, 18), (V9, True, 18), (LINUX_6_1, False, 320), (LINUX_6_1, True, 12)],
)
def test_a_list_may_grow_to_the_low_watermark_while_kswapd_rests(
    rules: Rules, reclaim_active: bool, high: int
) -> None:
    pcp = PerCpuPages(PAGES, rules)
    pcp.set_low_watermark(LOW)
    pcp.reclaim_active = reclaim_active
    assert pcp.high == high


def test_a_list_holds_four_batches_however_low_the_watermark() -> None:
    pcp = PerCpuPages(PAGES, LINUX_6_1)
    pcp.set_low_watermark(11)
    assert pcp.high == 12


@pytest.mark.parametrize(
    ("count", "free_factor", "given_back", "next_factor"),
    [
        (318, 0, 0, 0),
        (319, 0, 3, 1),
        (319, 1, 6, 2),
        (319, 4, 48, 5),
        (319, 5, 96, 5),
        (319, 7, 317, 7),
    ],
)
def test_each_surplus_is_twice_the_one_before(
    count: int, free_factor: int, given_back: int, next_factor: int
) -> None:
    pcp = list_of_6_1(count, free_factor)
    oldest = pcp.pages[:given_back]
    surplus = pcp.add(pages_of_zone(1))
    assert (surplus, len(pcp.pages), pcp.free_factor) == (oldest, count + 1 - given_back, next_factor)


def test_to_take_a_page_halves_the_next_surplus() -> None:
    page_alloc = allocator((NORMAL, 0, PAGES), switches=OF_6_1)
    pcp = page_alloc.zone.pcp
    pcp.free_factor = 5
    page_alloc.alloc_page_nowait(GFP_KERNEL, PLAIN)
    assert pcp.free_factor == 2
    page_alloc.alloc_pages_nowait(2, GFP_ATOMIC, PLAIN)
    assert pcp.free_factor == 0


def test_what_is_freed_does_not_stay_on_the_list_while_kswapd_is_at_work() -> None:
    async def main() -> None:
        machine = machine_64m(OF_6_1)
        pcp = machine.node.zone.pcp
        highs = [pcp.high]

        async def balance_pgdat(order: int) -> int:
            highs.append(pcp.high)
            machine.give_back()
            return order

        machine.node.kswapd.balance_pgdat = balance_pgdat  # type: ignore[method-assign, assignment]
        running = asyncio.create_task(machine.node.kswapd.run())
        machine.drain(100)
        machine.node.kswapd.wakeup_kswapd()
        assert await is_blocked(running, 1)
        assert [*highs, pcp.high] == [320, 4, 320]
        running.cancel()

    simulate(main())


def test_direct_reclaim_drains_the_lists_before_it_gives_up() -> None:
    async def main() -> None:
        page_alloc = allocator((NORMAL, 0, PAGES))
        zone = page_alloc.zone
        pages = drain(zone, 250)
        reclaims = 0

        async def reclaim(_gfp_mask: int, _current: Task) -> int:
            nonlocal reclaims
            reclaims += 1
            page_alloc.free_pages(pages[:8])
            return 8

        page_alloc.try_to_free_pages = reclaim
        assert await page_alloc.alloc_page(GFP_KERNEL, PLAIN) is not None
        assert (reclaims, zone.nr_free_pages, len(zone.pcp.pages)) == (1, 255, 2)

    simulate(main())
