"""Several zones: where a request looks, what it must leave, and the watermark test for more than one page."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.gfp import (
    ALLOC_HARDER,
    ALLOC_HIGH,
    ALLOC_NO_WATERMARKS,
    ALLOC_OOM,
    ALLOC_WMARK_LOW,
    ALLOC_WMARK_MIN,
    GFP_ATOMIC,
    GFP_DMA,
    GFP_DMA32,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_MEMALLOC,
)
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE, Watermarks
from testbed.mm.zone import Zone, lowered_mark
from testbed.mm.zone_layout import ZoneSpan, ZoneType
from testbed.patches import Switches
from testbed.rules import LINUX_3_6, LINUX_6_1, V9, Rules
from tests.mm.zones import DMA, DMA32, HIGHMEM, NORMAL, allocator, drain, exhaust, zone_of

PLAIN, ENTITLED = Task("plain"), Task("entitled", pf_memalloc=True)
I386 = ((DMA, 0, 1024), (NORMAL, 0, 2048), (HIGHMEM, 0, 4096))
X86_64 = ((DMA, 0, 1024), (DMA32, 0, 2048), (NORMAL, 0, 1024))


@pytest.mark.parametrize(
    ("zones", "gfp_mask", "kinds"),
    [
        (I386, GFP_HIGHUSER_MOVABLE, [HIGHMEM, NORMAL, DMA]),
        (I386, GFP_KERNEL, [NORMAL, DMA]),
        (I386, GFP_KERNEL | GFP_DMA32, [NORMAL, DMA]),
        (I386, GFP_ATOMIC | GFP_DMA, [DMA]),
        (X86_64, GFP_HIGHUSER_MOVABLE, [NORMAL, DMA32, DMA]),
        (X86_64, GFP_KERNEL | GFP_DMA32, [DMA32, DMA]),
        (((NORMAL, 0, 2048),), GFP_KERNEL | GFP_DMA, [NORMAL]),
    ],
)
def test_a_request_looks_in_the_highest_zone_it_may_use_first(
    zones: tuple[tuple[ZoneType, int, int], ...], gfp_mask: int, kinds: list[ZoneType]
) -> None:
    page_alloc = allocator(*zones)
    assert [zone.span.kind for zone in page_alloc.zonelists.of(gfp_mask, PLAIN).zones] == kinds
    order = [page.zone.span.kind for page in exhaust(page_alloc, gfp_mask, ENTITLED)]
    assert set(order) == set(kinds)


@pytest.mark.parametrize("gfp_mask", [GFP_HIGHUSER_MOVABLE, GFP_KERNEL, GFP_KERNEL | GFP_DMA])
def test_a_request_for_a_higher_zone_leaves_lower_ones_their_lowmem_reserve(gfp_mask: int) -> None:
    page_alloc = allocator(*I386)
    exhaust(page_alloc, gfp_mask, PLAIN)
    classzone = page_alloc.zonelists.gfp_zone(gfp_mask)
    for zone in page_alloc.zones:
        untouched = zone.span.kind > classzone
        expected = zone.managed if untouched else zone.watermarks.min + zone.lowmem_reserve[classzone]
        assert zone.nr_free_pages == expected


def test_no_watermarks_takes_the_lowmem_reserve_too() -> None:
    page_alloc = allocator(*I386)
    exhaust(page_alloc, GFP_ATOMIC | GFP_MEMALLOC, PLAIN)
    assert [zone.nr_free_pages for zone in page_alloc.zones] == [0, 0, 4096]


def test_user_pages_leave_the_reserve_of_low_memory_alone_while_there_is_high_memory() -> None:
    page_alloc = allocator(*I386)
    for _ in range(2000):
        assert page_alloc.alloc_page_nowait(GFP_HIGHUSER_MOVABLE, PLAIN) is not None
    assert zone_of(page_alloc, NORMAL).nr_free_pages == 2048
    assert page_alloc.nr_free_min == 1024 + 2048


def zone_with(free: int, singles: int, mark: int, rules: Rules, reserve: int = 0) -> Zone:
    """A zone with `free` pages free, `singles` of them in blocks of one, and a min of `mark`."""
    ram = memoryview(bytearray(4096 * PAGE_SIZE))
    zone = Zone(ram, Watermarks(0, mark, mark, mark), ZoneSpan(NORMAL, 0, 0, 4096), (reserve,) * len(ZoneType), rules)
    pages = zone.free.take(4096)
    zone.free.give([page for page in pages if page.pfn % 2 and page.pfn < 2 * singles])
    zone.free.give([page for page in pages if page.pfn >= 4096 - (free - singles)])
    return zone


RULES = (V9, LINUX_3_6, LINUX_6_1)
A, AN, K = ALLOC_HIGH | ALLOC_HARDER, ALLOC_HIGH, ALLOC_WMARK_MIN
VECTORS: list[tuple[Rules, int, int, int, int, int, int, bool]] = [
    # rules, flags, order, mark, free, of them single, lowmem_reserve, passes
    (V9, K, 0, 256, 257, 0, 0, True),
    (V9, K, 0, 256, 256, 0, 0, False),
    (V9, AN, 0, 256, 129, 0, 0, True),
    (V9, AN, 0, 256, 128, 0, 0, False),
    (V9, A, 0, 256, 97, 0, 0, True),
    (V9, A, 0, 256, 96, 0, 0, False),
    (V9, A, 0, 1448, 544, 0, 0, True),
    (V9, A, 0, 1448, 543, 0, 0, False),
    (V9, K, 0, 256, 357, 0, 100, True),
    (V9, K, 0, 256, 356, 0, 100, False),
    (V9, A, 0, 256, 197, 0, 100, True),
    (V9, A, 0, 256, 196, 0, 100, False),
    (V9, ALLOC_HARDER, 0, 256, 193, 0, 0, True),
    (V9, ALLOC_HARDER, 0, 256, 192, 0, 0, False),
    (V9, K, 1, 256, 400, 250, 0, True),
    (V9, K, 1, 256, 400, 272, 0, False),
    (V9, K, 1, 256, 257, 0, 0, False),
    (V9, K, 1, 256, 258, 0, 0, True),
    (V9, K, 3, 256, 264, 0, 0, True),
    (V9, K, 3, 256, 263, 0, 0, False),
    (V9, K, 1, 256, 500, 250, 200, True),
    (V9, ALLOC_NO_WATERMARKS, 3, 256, 1, 1, 0, True),
    (LINUX_6_1, K, 1, 256, 400, 272, 0, True),
    (LINUX_6_1, K, 1, 256, 400, 400, 0, False),
    (LINUX_6_1, K, 3, 256, 263, 0, 0, False),
    (LINUX_6_1, K, 3, 256, 264, 0, 0, True),
    (LINUX_6_1, A, 0, 256, 97, 0, 0, True),
    (LINUX_6_1, A, 0, 256, 96, 0, 0, False),
    (LINUX_6_1, ALLOC_HARDER, 0, 256, 257, 0, 0, True),
    (LINUX_6_1, ALLOC_HARDER, 0, 256, 256, 0, 0, False),
    (LINUX_6_1, ALLOC_OOM, 0, 256, 129, 0, 0, True),
    (LINUX_6_1, ALLOC_OOM, 0, 256, 128, 0, 0, False),
    (LINUX_6_1, A | ALLOC_OOM, 0, 256, 49, 0, 0, True),
    (LINUX_6_1, A | ALLOC_OOM, 0, 256, 48, 0, 0, False),
]


@pytest.mark.parametrize("vector", VECTORS)
def test_zone_watermark_ok(vector: tuple[Rules, int, int, int, int, int, int, bool]) -> None:
    rules, flags, order, mark, free, singles, reserve, passes = vector
    zone = zone_with(free, singles, mark, rules, reserve)
    assert zone.nr_free_pages == free
    assert zone.free.counts()[0] - singles in (0, 1)
    assert zone.watermark_ok(order, NORMAL, flags) == passes


@given(st.data())
def test_zone_watermark_ok_is_the_kernels(data: st.DataObject) -> None:
    rules, flags = data.draw(st.sampled_from([(r, f) for r in RULES for f in (K, AN, A, ALLOC_HARDER, ALLOC_OOM)]))
    pairs, singles, mark = (data.draw(st.integers(0, 600)) for _ in range(3))
    order, reserve = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 100))
    zone = zone_with(singles + 2 * pairs, singles, mark, rules, reserve)
    counts, free = zone.free.counts(), zone.nr_free_pages - ((1 << order) - 1)
    left = lowered_mark(mark, flags, rules)
    expected = free > left + reserve
    if rules.order_checks_free_area:
        expected = expected and (not order or any(counts[order:]))
    else:
        for lower in range(order):
            free -= counts[lower] << lower
            left >>= 1
            expected = expected and free > left
    assert zone.watermark_ok(order, NORMAL, flags) == expected


@pytest.mark.parametrize(("rules", "blocks"), [(V9, False), (LINUX_6_1, True)])
def test_a_lone_block_among_single_pages_is_found_only_by_todays_rule(rules: Rules, blocks: bool) -> None:
    """order_checks_free_area: what looks like enough memory in total, most of it in single pages."""
    page_alloc = allocator((NORMAL, 0, 2048), switches=Switches(rules=rules))
    zone = page_alloc.zone
    pages = drain(zone, 0)
    zone.free.give([page for page in pages if page.pfn % 2 or page.pfn < 32])
    assert (page_alloc.alloc_order_nowait(3, GFP_KERNEL, PLAIN) is not None) == blocks
    assert page_alloc.alloc_page_nowait(GFP_KERNEL, PLAIN) is not None


def test_a_block_needs_a_watermark_and_takes_all_of_it() -> None:
    page_alloc = allocator((NORMAL, 0, 2048))
    blocks = exhaust(page_alloc, GFP_KERNEL, PLAIN, order=3)
    assert page_alloc.zone.nr_free_pages >= 256
    assert page_alloc.vmstat.pgalloc == 8 * len(blocks)
    for head in blocks:
        page_alloc.free_order([page_alloc.zone.pages[head.pfn + number] for number in range(8)])
    assert page_alloc.zone.free.counts()[10] == 2
    assert page_alloc.vmstat.pgfree == page_alloc.vmstat.pgalloc


def test_the_pages_of_a_reserve_block_are_marked_together() -> None:
    page_alloc = allocator((NORMAL, 0, 2048))
    drain(page_alloc.zone, 60)
    block = page_alloc.alloc_order_nowait(3, GFP_ATOMIC | GFP_MEMALLOC, PLAIN)
    assert block is not None
    assert len(block) == 8
    assert all(page.pfmemalloc and page.from_reserve for page in block)
    page_alloc.free_order(block)
    assert not any(page.pfmemalloc or page.from_reserve for page in block)


def test_the_high_watermark_is_another_row_of_marks() -> None:
    zone = zone_of(allocator(*I386), NORMAL)
    marks = zone.watermarks
    assert zone.floor(HIGHMEM, ALLOC_WMARK_LOW) == marks.low + zone.lowmem_reserve[HIGHMEM]
    zone.set_watermarks(replace(marks, min=7, low=8, high=9))
    assert zone.floor(NORMAL, ALLOC_WMARK_LOW) == 8
