"""A balloon takes what reclaim gives it, leaves the reserve alone, and gives everything back."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.balloon import Balloon
from testbed.mm.gfp import GFP_HIGHUSER_MOVABLE
from testbed.mm.sched import Task
from tests.mm.zones import DMA32, NORMAL, allocator
from tests.virtual_time import simulate

PAGES = 256


@given(st.integers(1, 2 * PAGES))
def test_it_takes_as_many_as_it_wants_or_can_and_never_from_the_reserve(target: int) -> None:
    async def play() -> None:
        page_alloc = allocator((NORMAL, 0, PAGES), min_free_kbytes=128)
        floor = page_alloc.zone.watermarks.min
        balloon = Balloon(page_alloc, target)
        await asyncio.sleep(2.0)
        spare = page_alloc.managed - floor
        assert len(balloon.pages) == min(target, spare)
        assert page_alloc.nr_free_pages >= floor
        assert page_alloc.vmstat.no_watermark_allocs == 0
        assert page_alloc.vmstat.page_allocation_failure == 0, "it fails without a word (__GFP_NOWARN)"
        assert balloon.leak_balloon() == min(target, spare)
        page_alloc.drain_all_pages()
        assert page_alloc.nr_free_pages == page_alloc.managed

    simulate(play())


def test_it_goes_on_when_memory_comes_back_and_stops_when_it_leaks() -> None:
    async def play() -> None:
        page_alloc = allocator((DMA32, 0, 64), (NORMAL, 0, 128), min_free_kbytes=128)
        task = Task("holder")
        held = [page for _ in range(100) if (page := await page_alloc.alloc_page(GFP_HIGHUSER_MOVABLE, task))]
        balloon = Balloon(page_alloc, 120)
        await asyncio.sleep(1.0)
        before = len(balloon.pages)
        assert before < 120
        page_alloc.free_pages(held)
        await asyncio.sleep(1.0)
        assert len(balloon.pages) == 120
        balloon.leak_balloon()
        await asyncio.sleep(1.0)
        page_alloc.drain_all_pages()
        assert page_alloc.nr_free_pages == page_alloc.managed

    simulate(play())
