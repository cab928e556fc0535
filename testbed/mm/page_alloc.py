"""The page allocator for order 0 (mm/page_alloc.c): fast path, slow path, and who may go below the watermarks.

Everything that cannot sleep is an ordinary function; only `alloc_page` waits, and only for callers with __GFP_WAIT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from testbed.mm.gfp import (
    ALLOC_NO_WATERMARKS,
    GFP_FS,
    GFP_MEMALLOC,
    GFP_NOFAIL,
    GFP_NOMEMALLOC,
    GFP_NORETRY,
    GFP_NOWARN,
    GFP_WAIT,
    gfp_to_alloc_flags,
)
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.vmstat import VmStat
from testbed.mm.wait import RunQueue, WaitQueue
from testbed.mm.zone import Zone, lowered_mark, zone_watermark_ok
from testbed.patches import Switches

HZ_OVER_50 = 0.02
"""Seconds that a retrying allocation waits at most (`wait_iff_congested(zone, BLK_RW_ASYNC, HZ/50)`)."""


class PageAllocator:
    """Hands out the pages of one zone.

    `wakeup_kswapd`, `try_to_free_pages` and `out_of_memory` are the doors to reclaim, set by whoever builds the
    host. `progress` wakes those who wait for memory: the kernel would let them spin and yield, which shows them
    nothing new between two such wake-ups.
    """

    def __init__(self, zone: Zone, vmstat: VmStat, switches: Switches) -> None:
        self.zone = zone
        self.zones = [zone]
        self.vmstat = vmstat
        self.switches = switches
        self.run_queue = RunQueue()
        self.progress = WaitQueue(self.run_queue)
        self.wakeup_kswapd: Callable[[], None] = _nothing
        self.try_to_free_pages: Callable[[int, Task], Awaitable[int]] = _no_reclaim
        self.out_of_memory: Callable[[Task], None] = _no_oom_killer

    def get_page_from_freelist(self, mark: int, alloc_flags: int = 0) -> Page | None:
        """One page if free pages exceed `mark` as lowered by `alloc_flags`; with ALLOC_NO_WATERMARKS, any page."""
        free = self.zone.free
        if not alloc_flags:
            enough = len(free) > mark
        elif alloc_flags & ALLOC_NO_WATERMARKS:
            enough = bool(free)
        else:
            enough = zone_watermark_ok(len(free), mark, alloc_flags)
        if not enough:
            return None
        page = free.pop()
        self.vmstat.pgalloc += 1
        return page

    def alloc_page_nowait(self, gfp_mask: int, current: Task) -> Page | None:
        """`alloc_pages` for a caller that cannot sleep; None is an allocation failure."""
        page = self._alloc_without_reclaim(gfp_mask, current)
        if page is None and not gfp_mask & GFP_NOWARN:
            self.vmstat.page_allocation_failure += 1
        return page

    def alloc_pages_nowait(self, count: int, gfp_mask: int, current: Task) -> list[Page]:
        """`alloc_page_nowait` until it fails, `count` times at most; kswapd is woken once for all of them."""
        zone = self.zone
        pages = self._take(min(count, len(zone.free) - zone.watermarks.low))
        if len(pages) == count:
            return pages
        self.wakeup_kswapd()
        alloc_flags = gfp_to_alloc_flags(gfp_mask, current, self.switches)
        mark = lowered_mark(zone.watermarks.min, alloc_flags)
        pages += self._take(min(count - len(pages), len(zone.free) - mark))
        wanted = count - len(pages)
        if wanted and alloc_flags & ALLOC_NO_WATERMARKS:
            reserve = self._take(min(wanted, len(zone.free)))
            self._mark_reserve(reserve, gfp_mask, current)
            pages += reserve
            self.vmstat.no_watermark_failures += len(pages) < count
        elif wanted:
            self._count_refusal(gfp_mask, current)
        if len(pages) < count and not gfp_mask & GFP_NOWARN:
            self.vmstat.page_allocation_failure += 1
        zone.nr_free_min = min(zone.nr_free_min, len(zone.free))
        return pages

    def _take(self, count: int) -> list[Page]:
        """The top `count` pages of the free list; none if that is not positive."""
        if count <= 0:
            return []
        free = self.zone.free
        pages = free[: -count - 1 : -1]
        del free[-count:]
        self.vmstat.pgalloc += count
        return pages

    def _alloc_without_reclaim(self, gfp_mask: int, current: Task) -> Page | None:
        page = self.get_page_from_freelist(self.zone.watermarks.low)
        if page is not None:
            return page
        self.wakeup_kswapd()
        return self._alloc_below_low(gfp_mask, current)

    def _alloc_below_low(self, gfp_mask: int, current: Task) -> Page | None:
        """The slow path's attempts: at min with the caller's modifiers, then without watermarks if entitled."""
        alloc_flags = gfp_to_alloc_flags(gfp_mask, current, self.switches)
        zone = self.zone
        page = self.get_page_from_freelist(zone.watermarks.min, alloc_flags & ~ALLOC_NO_WATERMARKS)
        if page is None and alloc_flags & ALLOC_NO_WATERMARKS:
            page = self._alloc_from_reserve(gfp_mask, current)
        elif page is None:
            self._count_refusal(gfp_mask, current)
        zone.nr_free_min = min(zone.nr_free_min, len(zone.free))
        return page

    def _alloc_from_reserve(self, gfp_mask: int, current: Task) -> Page | None:
        page = self.get_page_from_freelist(0, ALLOC_NO_WATERMARKS)
        if page is None:
            self.vmstat.no_watermark_failures += 1
            return None
        self._mark_reserve([page], gfp_mask, current)
        return page

    def _mark_reserve(self, pages: list[Page], gfp_mask: int, current: Task) -> None:
        """Count pages that came from the reserve by what let them through; patch 02 marks them."""
        vmstat = self.vmstat
        vmstat.no_watermark_allocs += len(pages)
        if gfp_mask & GFP_MEMALLOC and self.switches.gfp_memalloc:
            vmstat.gfp_memalloc_allocs += len(pages)
        elif current.serving_softirq:
            vmstat.softirq_pf_memalloc_allocs += len(pages)
        pfmemalloc = self.switches.slab_pfmemalloc
        for page in pages:
            page.from_reserve = True
            page.pfmemalloc = pfmemalloc

    def _count_refusal(self, gfp_mask: int, current: Task) -> None:
        """Requests that patch 04 or 05 would have let through: the occasions that show the switch took effect."""
        if gfp_mask & GFP_NOMEMALLOC:
            return
        if gfp_mask & GFP_MEMALLOC:
            self.vmstat.gfp_memalloc_refused += 1
        elif current.serving_softirq and current.pf_memalloc:
            self.vmstat.softirq_pf_memalloc_refused += 1

    async def alloc_page(self, gfp_mask: int, current: Task) -> Page | None:
        """`__alloc_pages_nodemask` for order 0.

        An ordinary caller with __GFP_WAIT never gets None: it reclaims until it succeeds, whatever that takes, and
        only one with __GFP_FS may call the OOM killer. A PF_MEMALLOC caller never reclaims, so it may fail. Whoever
        finds memory low lets kswapd, just woken, run first.
        """
        page = self.get_page_from_freelist(self.zone.watermarks.low)
        if page is not None:
            return page
        self.wakeup_kswapd()
        if current.nice >= 0:
            await asyncio.sleep(0)
            await self.run_queue.let_favoured_run(current.nice)
        page = self._alloc_below_low(gfp_mask, current)
        while page is None:
            if not gfp_mask & GFP_WAIT or current.pf_memalloc or (current.memdie and not gfp_mask & GFP_NOFAIL):
                if not gfp_mask & GFP_NOWARN:
                    self.vmstat.page_allocation_failure += 1
                return None
            page = await self._alloc_with_direct_reclaim(gfp_mask, current)
            if page is None and gfp_mask & GFP_NORETRY:
                return None
        return page

    async def _alloc_with_direct_reclaim(self, gfp_mask: int, current: Task) -> Page | None:
        """`__alloc_pages_direct_reclaim`, then the OOM killer or a short wait before the caller tries again."""
        did_some_progress = await self.try_to_free_pages(gfp_mask, current)
        await self.run_queue.let_favoured_run(current.nice)
        page = self._alloc_below_low(gfp_mask, current)
        if page is not None:
            return page
        if not did_some_progress and gfp_mask & GFP_FS and not gfp_mask & GFP_NORETRY:
            self.out_of_memory(current)
        if not gfp_mask & GFP_NORETRY:
            await self.progress.wait(HZ_OVER_50, current.nice)
            await self.run_queue.let_favoured_run(current.nice)
        return self._alloc_without_reclaim(gfp_mask, current)

    def free_pages(self, pages: Iterable[Page]) -> None:
        """`free_pages`: back to the free list; whoever waits for memory hears of it."""
        freed = 0
        append = self.zone.free.append
        for page in pages:
            page.reset()
            append(page)
            freed += 1
        self._freed(freed)

    def free_page(self, page: Page) -> None:
        """`__free_page`."""
        page.reset()
        self.zone.free.append(page)
        self._freed(1)

    def free_slab_pages(self, pages: list[Page]) -> None:
        """`free_pages` for pages that were slabs: nothing but the way they were allocated is to be forgotten."""
        for page in pages:
            page.pfmemalloc = page.from_reserve = False
        self.zone.free += pages
        self._freed(len(pages))

    def _freed(self, count: int) -> None:
        zone = self.zone
        self.vmstat.pgfree += count
        zone.pages_scanned = 0
        zone.all_unreclaimable = False
        self.progress.wake(count)


def _nothing() -> None:
    return


async def _no_reclaim(_gfp_mask: int, _current: Task) -> int:
    return 0


def _no_oom_killer(_current: Task) -> None:
    return
