"""The slow path: who tries again, who fails, who kills, and what reclaim's progress has to do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from testbed.mm.gfp import (
    GFP_DMA32,
    GFP_KERNEL,
    GFP_MEMALLOC,
    GFP_NOFAIL,
    GFP_NOFS,
    GFP_NOIO,
    GFP_NORETRY,
    GFP_REPEAT,
)
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.rules import LINUX_3_6, LINUX_6_1, V9, Rules
from tests.mm.machine import SERIES
from tests.mm.zones import DMA32, NORMAL, allocator, drain
from tests.virtual_time import is_blocked, now, simulate

ENTITLED = Task("entitled", pf_memalloc=True)


class Host:
    """An allocator that is out of memory, with a reclaim that does what the test says."""

    def __init__(self, rules: Rules = V9, *, free: int = 90, progress: int = 0, frees: int = 0) -> None:
        self.page_alloc: PageAllocator = allocator((NORMAL, 0, 2048), switches=replace(SERIES, rules=rules))
        self.held = drain(self.page_alloc.zone, free)
        self.progress = progress
        self.frees = frees
        self.reclaims = self.kills = 0
        self.killed_at = 0
        self.on_kill: Callable[[], None] | None = None
        self.page_alloc.try_to_free_pages = self._reclaim
        self.page_alloc.out_of_memory = self._kill

    async def _reclaim(self, _gfp_mask: int, _current: Task) -> int:
        self.reclaims += 1
        self.give_back(self.frees)
        return self.progress

    def _kill(self, _current: Task) -> None:
        self.kills += 1
        self.killed_at = self.reclaims
        if self.on_kill is not None:
            self.on_kill()

    def give_back(self, count: int) -> None:
        self.page_alloc.free_pages([self.held.pop() for _ in range(count)])

    async def request(self, gfp_mask: int, order: int = 0, task: Task | None = None) -> list[Page] | str | None:
        """What comes of a request within 20 simulated seconds: "waits" if nothing."""
        work = asyncio.create_task(self.page_alloc.alloc_order(order, gfp_mask, task or Task("plain")))
        if await is_blocked(work, 20):
            work.cancel()
            return "waits"
        return await work


@pytest.mark.parametrize("rules", [V9, LINUX_3_6, LINUX_6_1])
@pytest.mark.parametrize("progress", [0, 1])
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("gfp_mask", [GFP_NOIO, GFP_NOFS])
def test_a_small_request_without_fs_neither_returns_nor_kills(
    gfp_mask: int, order: int, progress: int, rules: Rules
) -> None:
    async def main() -> None:
        host = Host(rules, progress=progress)
        assert await host.request(gfp_mask, order) == "waits"
        assert host.kills == 0
        assert host.reclaims > 100

    simulate(main())


COSTLY = [
    # gfp, progress of each reclaim, outcome, reclaims, kills
    (GFP_NOIO, 0, None, 1, 0),
    (GFP_KERNEL, 0, None, 1, 0),
    (GFP_KERNEL, 5, None, 1, 0),
    (GFP_KERNEL | GFP_REPEAT, 5, None, 4, 0),
    (GFP_KERNEL | GFP_REPEAT, 16, None, 1, 0),
    (GFP_KERNEL | GFP_NORETRY | GFP_REPEAT, 5, None, 1, 0),
]


@pytest.mark.parametrize(("gfp_mask", "progress", "outcome", "reclaims", "kills"), COSTLY)
def test_a_costly_request_gives_up(gfp_mask: int, progress: int, outcome: None, reclaims: int, kills: int) -> None:
    async def main() -> None:
        host = Host(progress=progress)
        assert await host.request(gfp_mask, order=4) is outcome
        assert (host.reclaims, host.kills) == (reclaims, kills)
        assert host.page_alloc.vmstat.page_allocation_failure == 1

    simulate(main())


def test_nofail_goes_on_where_others_give_up_and_kills_even_for_a_costly_request() -> None:
    async def main() -> None:
        host = Host()
        assert await host.request(GFP_KERNEL | GFP_NOFAIL, order=4) == "waits"
        assert host.kills > 0
        host = Host(free=0)
        assert await host.request(GFP_KERNEL | GFP_NOFAIL, task=ENTITLED) == "waits"
        assert host.reclaims == 0

    simulate(main())


def test_a_pf_memalloc_caller_fails_at_every_order_without_reclaim() -> None:
    async def main() -> None:
        for order in (0, 1, 4):
            host = Host(free=0)
            assert await host.request(GFP_KERNEL, order, ENTITLED) is None
            assert host.reclaims == 0

    simulate(main())


@pytest.mark.parametrize(("rules", "reclaims"), [(V9, 0), (LINUX_3_6, 0), (LINUX_6_1, 1)])
def test_a_victim_that_finds_nothing_fails(rules: Rules, reclaims: int) -> None:
    async def main() -> None:
        host = Host(rules, free=0)
        victim = Task("victim")
        victim.memdie = True
        assert await host.request(GFP_KERNEL, task=victim) is None
        assert host.reclaims == reclaims
        assert host.kills == 0
        assert await host.request(GFP_KERNEL | GFP_NOFAIL, task=victim) == "waits"

    simulate(main())


@pytest.mark.parametrize(("rules", "floor", "marked"), [(V9, 0, True), (LINUX_3_6, 0, True), (LINUX_6_1, 128, False)])
def test_how_much_of_the_reserve_a_victim_gets(rules: Rules, floor: int, marked: bool) -> None:
    host = Host(rules, free=200)
    victim = Task("victim")
    victim.memdie = True
    taken = []
    while page := host.page_alloc.alloc_page_nowait(GFP_KERNEL, victim):
        taken.append(page)
    assert host.page_alloc.zone.nr_free_pages == floor
    assert all(page.from_reserve and page.pfmemalloc == marked for page in taken)
    more = host.page_alloc.alloc_pages_nowait(300, GFP_KERNEL, victim)
    assert more == []


@pytest.mark.parametrize(("rules", "reclaims"), [(V9, 1), (LINUX_3_6, 1), (LINUX_6_1, 17)])
def test_how_often_reclaim_fails_before_somebody_is_killed(rules: Rules, reclaims: int) -> None:
    async def main() -> None:
        host = Host(rules)
        host.on_kill = lambda: host.give_back(500)
        assert await host.request(GFP_KERNEL) not in (None, "waits")
        assert (host.kills, host.killed_at) == (1, reclaims)

    simulate(main())


@pytest.mark.parametrize("rules", [V9, LINUX_6_1])
def test_progress_puts_killing_off_for_ever(rules: Rules) -> None:
    async def main() -> None:
        host = Host(rules, progress=1)
        assert await host.request(GFP_KERNEL) == "waits"
        assert host.kills == 0

    simulate(main())


def test_nobody_is_killed_if_memory_is_above_the_high_watermark_by_then() -> None:
    """Reclaim that says it freed nothing, while somebody else did."""

    async def main() -> None:
        for frees, kills in ((294, 1), (295, 0)):
            host = Host(free=90, progress=0, frees=frees)
            pages = await host.request(GFP_KERNEL)
            assert isinstance(pages, list)
            assert host.kills == kills

    simulate(main())


def test_nobody_is_killed_for_the_lowest_zones() -> None:
    async def main() -> None:
        page_alloc = allocator((DMA32, 0, 1024), (NORMAL, 0, 1024))
        for zone in page_alloc.zones:
            drain(zone, 0)
        kills = 0

        def kill(_current: Task) -> None:
            nonlocal kills
            kills += 1

        page_alloc.out_of_memory = kill
        for gfp_mask in (GFP_KERNEL | GFP_DMA32, GFP_KERNEL):
            work = asyncio.create_task(page_alloc.alloc_page(gfp_mask, Task("plain")))
            assert await is_blocked(work, 1)
            assert bool(kills) == (not gfp_mask & GFP_DMA32)
            work.cancel()

    simulate(main())


def test_noretry_reclaims_once_and_takes_what_that_freed() -> None:
    async def main() -> None:
        host = Host(progress=0)
        assert await host.request(GFP_KERNEL | GFP_NORETRY) is None
        assert (host.reclaims, host.kills, host.page_alloc.vmstat.page_allocation_failure) == (1, 0, 1)
        host = Host(progress=200, frees=200)
        assert isinstance(await host.request(GFP_KERNEL | GFP_NORETRY), list)

    simulate(main())


@pytest.mark.parametrize(("rules", "from_reserve"), [(V9, True), (LINUX_3_6, False)])
def test_after_reclaim_v9_goes_on_without_watermarks(rules: Rules, from_reserve: bool) -> None:
    """An entitled request that is not PF_MEMALLOC reclaims when nothing at all is free; a page comes, far below min."""

    async def main() -> None:
        host = Host(rules, free=0, progress=1, frees=1)
        pages = await host.request(GFP_KERNEL | GFP_MEMALLOC | GFP_NORETRY)
        assert isinstance(pages, list) == from_reserve
        if from_reserve:
            assert isinstance(pages, list)
            assert isinstance(pages[0], Page)
            assert pages[0].pfmemalloc

    simulate(main())


def test_a_block_that_reclaim_makes_is_found() -> None:
    """Order 3 in a zone of single pages: freeing enough neighbours is what helps."""

    async def main() -> None:
        page_alloc = allocator((NORMAL, 0, 2048))
        pages = drain(page_alloc.zone, 0)
        odd, even = [page for page in pages if page.pfn % 2], [page for page in pages if not page.pfn % 2]
        page_alloc.free_pages(odd)
        assert page_alloc.alloc_order_nowait(1, GFP_KERNEL, Task("plain")) is None

        async def reclaim(_gfp_mask: int, _current: Task) -> int:
            page_alloc.free_pages([even.pop() for _ in range(64)])
            return 64

        page_alloc.try_to_free_pages = reclaim
        block = await page_alloc.alloc_order(3, GFP_KERNEL, Task("plain"))
        assert block is not None
        assert [page.pfn for page in block] == list(range(block[0].pfn, block[0].pfn + 8))

    simulate(main())


@pytest.mark.parametrize(("rules", "retried_at"), [(V9, 0.002), (LINUX_6_1, 0.01)])
def test_a_workers_next_attempt_comes_after_a_jiffy_whatever_is_freed_before(rules: Rules, retried_at: float) -> None:
    async def main() -> None:
        host = Host(rules, progress=1)
        worker = Task("kworker/0:1H", pf_kthread=True, nice=-20)
        worker.pf_wq_worker = True
        request = asyncio.create_task(host.request(GFP_NOIO, task=worker))
        await asyncio.sleep(0.002)
        host.give_back(1000)
        await request
        assert now() == pytest.approx(retried_at)

    simulate(main())
