"""The model beside the kernel's own arithmetic, written down here a second time: random inputs, every preset."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.gfp import (
    ALLOC_CPUSET,
    ALLOC_HARDER,
    ALLOC_HIGH,
    ALLOC_NO_WATERMARKS,
    ALLOC_OOM,
    GFP_HIGH,
    GFP_MEMALLOC,
    GFP_NOMEMALLOC,
    GFP_WAIT,
    gfp_pfmemalloc_allowed,
    gfp_to_alloc_flags,
)
from testbed.mm.pgdat import Pgdat
from testbed.mm.readahead import cluster_window, swapin_nr_pages
from testbed.mm.sched import Task
from testbed.mm.swapfile import SwapInfo
from testbed.mm.throttle import Throttle
from testbed.mm.watermarks import PAGE_SIZE, Watermarks, setup_per_zone_wmarks
from testbed.mm.zone import Zone
from testbed.mm.zone_layout import ZoneSpan, ZoneType
from testbed.patches import PATCHES, PRESETS, Switches
from testbed.rules import V9
from tests.mm.zones import DMA, DMA32, HIGHMEM, NORMAL, allocator, drain, spans_of

PRESET_SWITCHES = {name: Switches.of(preset.patches, preset.rules) for name, preset in PRESETS.items()}
presets = st.sampled_from(sorted(PRESETS))
bits = st.booleans()


@dataclass(frozen=True)
class Context:
    """Who asks: bits of the task and of the preempt count."""

    pf_memalloc: bool
    memdie: bool
    rt_task: bool
    hardirq: bool
    serving_softirq: bool
    bh_disabled: bool

    @property
    def in_interrupt(self) -> bool:
        return self.hardirq or self.serving_softirq or self.bh_disabled

    def task(self) -> Task:
        task = Task("any", pf_memalloc=self.pf_memalloc)
        task.memdie, task.rt_task, task.hardirq = self.memdie, self.rt_task, self.hardirq
        task.serving_softirq, task.bh_disabled = self.serving_softirq, self.bh_disabled
        return task


contexts = st.builds(Context, bits, bits, bits, bits, bits, bits)
gfp_masks = st.sets(st.sampled_from([GFP_WAIT, GFP_HIGH, GFP_MEMALLOC, GFP_NOMEMALLOC, 0x40, 0x80, 0x200])).map(sum)


def entitled(gfp_mask: int, context: Context, patch_04: bool, patch_05: bool) -> bool:
    """`gfp_pfmemalloc_allowed` of 3.6, line by line; without patches 04 and 05 the line each of them added is gone."""
    if gfp_mask & GFP_NOMEMALLOC:
        return False
    if patch_04 and gfp_mask & GFP_MEMALLOC:
        return True
    if patch_05 and context.serving_softirq and context.pf_memalloc:
        return True
    return not context.in_interrupt and (context.pf_memalloc or context.memdie)


@given(st.sets(st.sampled_from(sorted(PATCHES))), gfp_masks, contexts)
def test_who_is_entitled_with_any_set_of_patches(patches: set[int], gfp_mask: int, context: Context) -> None:
    expected = entitled(gfp_mask, context, 4 in patches, 5 in patches)
    if 2 in patches and not patches & {4, 5}:
        expected = context.pf_memalloc or context.memdie
    assert gfp_pfmemalloc_allowed(gfp_mask, context.task(), Switches.of(patches, V9)) is expected


def alloc_flags(preset: str, gfp_mask: int, context: Context) -> int:
    """`gfp_to_alloc_flags`: 3.6's, and what is different in 6.1."""
    today, series = preset == "6.1", preset != "vanilla"
    flags = ALLOC_CPUSET
    if gfp_mask & GFP_HIGH:
        flags += ALLOC_HIGH
    if not gfp_mask & GFP_WAIT:
        if not gfp_mask & GFP_NOMEMALLOC:
            flags += ALLOC_HARDER
        if gfp_mask & GFP_HIGH or not today:
            flags -= ALLOC_CPUSET
    elif context.rt_task and today and not context.hardirq and not context.serving_softirq:
        flags |= ALLOC_HIGH
    elif context.rt_task and not today and not context.in_interrupt:
        flags |= ALLOC_HARDER
    if entitled(gfp_mask, context, series, series):
        by_oom_only = not entitled(gfp_mask, Context(**(vars(context) | {"memdie": False})), series, series)
        flags += ALLOC_OOM if by_oom_only and today else ALLOC_NO_WATERMARKS
    return flags


@given(presets, gfp_masks, contexts)
def test_alloc_flags(preset: str, gfp_mask: int, context: Context) -> None:
    assert gfp_to_alloc_flags(gfp_mask, context.task(), PRESET_SWITCHES[preset]) == alloc_flags(
        preset, gfp_mask, context
    )


def zone_marks(preset: str, pages: int, high: bool, lowmem: int, min_free_kbytes: int) -> tuple[int, int, int]:
    """Min, low and high of a zone."""
    share = (min_free_kbytes >> 2) * pages // lowmem
    least = min(max(pages // 1024, 32), 128) if high else share
    if preset == "6.1":
        gap = max(share // 4, pages * 10 // 10000)
        return least, least + gap, least + gap + gap
    return least, least + share // 4, least + share // 2


@given(
    presets, st.integers(2048, 1 << 22), st.integers(0, 4096), st.integers(0, 1 << 20), st.none() | st.integers(0, 64)
)
def test_watermarks_of_zones(preset: str, normal: int, dma: int, high: int, share: int | None) -> None:
    sizes = [(kind, 0, pages) for kind, pages in ((DMA, dma), (NORMAL, normal), (HIGHMEM, high)) if pages > 512]
    lowmem = sum(pages for kind, _node, pages in sizes if kind != HIGHMEM)
    wanted = lowmem // 8 * 4 * (share + 1) // 65 // 4 if share is not None else None
    if wanted is not None and wanted < 1:
        return
    ceiling = 262144 if preset == "6.1" else 65536
    min_free_kbytes = wanted or min(max(isqrt(16 * 4 * lowmem), 128), ceiling)
    marks = setup_per_zone_wmarks(spans_of(*sizes), wanted, PRESETS[preset].rules)
    assert [(mark.min, mark.low, mark.high) for mark in marks] == [
        zone_marks(preset, pages, kind == HIGHMEM, lowmem, min_free_kbytes) for kind, _node, pages in sizes
    ]
    assert {mark.min_free_kbytes for mark in marks} == {min_free_kbytes}


def ok_36(nr_free: list[int], order: int, mark: int, reserve: int, flags: int) -> bool:
    """`zone_watermark_ok` of 3.6."""
    free = sum(count << index for index, count in enumerate(nr_free)) - ((1 << order) - 1)
    if flags & ALLOC_HIGH:
        mark -= mark // 2
    if flags & ALLOC_HARDER:
        mark -= mark // 4
    if free <= mark + reserve:
        return False
    for lower in range(order):
        free -= nr_free[lower] << lower
        mark >>= 1
        if free <= mark:
            return False
    return True


def ok_61(nr_free: list[int], order: int, mark: int, reserve: int, flags: int) -> bool:
    """`zone_watermark_ok` of 6.1, without high-order atomic reserves."""
    free = sum(count << index for index, count in enumerate(nr_free)) - ((1 << order) - 1)
    if flags & ALLOC_HIGH:
        mark -= mark // 2
        if flags & ALLOC_HARDER:
            mark -= mark // 4
    if flags & ALLOC_OOM:
        mark -= mark // 2
    return free > mark + reserve and (order == 0 or any(nr_free[order:]))


SPAN = ZoneSpan(NORMAL, 0, 0, 512)
RAM = memoryview(bytearray(512 * PAGE_SIZE))


@given(
    presets,
    st.integers(0, 3),
    st.tuples(st.integers(0, 400), st.integers(0, 100)),
    st.sets(st.sampled_from([ALLOC_HIGH, ALLOC_HARDER, ALLOC_CPUSET, ALLOC_OOM])).map(sum),
    st.tuples(st.integers(0, 512), st.integers(1, 5)),
)
def test_the_watermark_test(
    preset: str, order: int, marks: tuple[int, int], flags: int, layout: tuple[int, int]
) -> None:
    """Free memory is whole up to page `blocks`, and beyond that one page in `step`."""
    (mark, reserve), (blocks, step) = marks, layout
    rules = PRESETS[preset].rules
    zone = Zone(RAM, Watermarks(0, mark, mark, mark), SPAN, (reserve,) * len(ZoneType), rules)
    zone.free.give([page for page in zone.free.take(512) if page.pfn < blocks or not page.pfn % step])
    today = preset == "6.1"
    flags &= ~0 if today else ~ALLOC_OOM
    expected = (ok_61 if today else ok_36)(list(zone.free.counts()), order, mark, reserve, flags)
    assert zone.watermark_ok(order, NORMAL, flags) == expected


def watermark_ok(preset: str, zones: list[tuple[ZoneType, int, int, int]], failures: int) -> bool:
    """`pfmemalloc_watermark_ok` (6.1: `allow_direct_reclaim`) for zones of (kind, min, free, reclaimable)."""
    today = preset == "6.1"
    if today and failures >= 16:
        return True
    low = [zone for zone in zones if zone[0] != HIGHMEM]
    if today:
        low = [zone for zone in low if zone[2] or zone[3]]
    reserve, free = sum(zone[1] for zone in low), sum(zone[2] for zone in low)
    return (today and not reserve) or free > reserve // 2


@given(
    presets,
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=3, max_size=3),
    st.integers(0, 40),
    st.integers(1, 3),
)
def test_the_test_of_the_reserve(preset: str, wanted: list[tuple[int, bool]], failures: int, kinds: int) -> None:
    sizes = [(DMA32, 0, 64), (NORMAL, 0, 96), (HIGHMEM, 0, 80)][:kinds]
    page_alloc = allocator(*sizes, switches=PRESET_SWITCHES[preset], min_free_kbytes=128)
    pgdat = Pgdat(page_alloc.zones, SwapInfo(64), page_alloc.switches.rules)
    pgdat.kswapd_failures = failures
    facts = []
    for zone, (free, reclaimable) in zip(page_alloc.zones, wanted, strict=False):
        taken = drain(zone, free)
        if reclaimable:
            zone.file[taken[0]] = None
        facts.append((zone.span.kind, zone.watermarks.min, free, int(reclaimable)))
    assert Throttle(page_alloc, pgdat).pfmemalloc_watermark_ok() == watermark_ok(preset, facts, failures)


def pages_to_read(previous: int, offset: int, hits: int, most: int, prev_win: int) -> int:
    """`__swapin_nr_pages` of 6.1."""
    pages = hits + 2
    if pages == 2:
        if offset not in (previous + 1, previous - 1):
            pages = 1
    else:
        roundup = 4
        while roundup < pages:
            roundup <<= 1
        pages = roundup
    pages = min(pages, most)
    return max(pages, prev_win // 2)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 64), st.sampled_from([1, 2, 4, 8]), st.integers(0, 8))
def test_adaptive_readahead(previous: int, offset: int, hits: int, most: int, prev_win: int) -> None:
    assert swapin_nr_pages(previous, offset, hits, most, prev_win) == pages_to_read(
        previous, offset, hits, most, prev_win
    )


@pytest.mark.parametrize(
    ("offset", "hits", "prev_win", "pages"),
    [(101, 0, 0, 2), (500, 0, 0, 1), (500, 1, 0, 4), (500, 3, 0, 8), (500, 7, 0, 8), (500, 0, 8, 4)],
)
def test_adaptive_readahead_by_hand(offset: int, hits: int, prev_win: int, pages: int) -> None:
    assert swapin_nr_pages(100, offset, hits, 8, prev_win) == pages


@given(st.integers(2, 400), st.data())
def test_the_cluster_is_the_aligned_window_without_the_header(slots: int, data: st.DataObject) -> None:
    entry = data.draw(st.integers(1, slots - 1))
    window = {slot for slot in range(entry & ~7, (entry | 7) + 1) if 0 < slot < slots}
    assert set(cluster_window(entry, slots)) == window
