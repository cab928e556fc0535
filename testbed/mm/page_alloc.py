"""The page allocator (mm/page_alloc.c): fast path, slow path, and who may go below the watermarks.

Everything that cannot sleep is an ordinary function; only `alloc_page` and `alloc_order` wait, and only for callers
with __GFP_WAIT. There is no compaction: a request for several pages depends on what reclaim happens to free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from testbed.mm.free_area import PAGE_ALLOC_COSTLY_ORDER
from testbed.mm.gfp import (
    ALLOC_NO_WATERMARKS,
    ALLOC_OOM,
    ALLOC_WMARK_HIGH,
    ALLOC_WMARK_LOW,
    GFP_FS,
    GFP_MEMALLOC,
    GFP_NOFAIL,
    GFP_NOMEMALLOC,
    GFP_NORETRY,
    GFP_NOWARN,
    GFP_REPEAT,
    GFP_WAIT,
    gfp_pfmemalloc_allowed,
    gfp_to_alloc_flags,
)
from testbed.mm.page import Page
from testbed.mm.page_freelist import PageFreelists, block_of
from testbed.mm.sched import Task
from testbed.mm.vmstat import VmStat
from testbed.mm.zone import Zone
from testbed.mm.zone_layout import ZoneType
from testbed.mm.zonelist import Zonelist
from testbed.patches import Switches

HZ_OVER_50 = 0.02
"""Seconds that a retrying allocation waits at most (`wait_iff_congested(zone, BLK_RW_ASYNC, HZ/50)`)."""

JIFFY = 0.01
"""Seconds, with HZ=100 as in User Mode Linux."""

ALLOC_RESERVE = ALLOC_NO_WATERMARKS | ALLOC_OOM


class Request:
    """What a caller of the slow path wants (`struct alloc_context` and what goes with it)."""

    __slots__ = ("current", "gfp_mask", "no_progress_loops", "order", "reclaimed", "zonelist")

    def __init__(self, order: int, gfp_mask: int, current: Task, zonelist: Zonelist) -> None:
        self.order = order
        self.gfp_mask = gfp_mask
        self.current = current
        self.zonelist = zonelist
        self.reclaimed = 0
        self.no_progress_loops = 0

    @property
    def costly(self) -> bool:
        """So large that the kernel gives up rather than kill somebody for it."""
        return self.order > PAGE_ALLOC_COSTLY_ORDER


class PageAllocator(PageFreelists):
    """Hands out the pages of all zones.

    `wakeup_kswapd`, `try_to_free_pages` and `out_of_memory` are the doors to reclaim, set by whoever builds the
    host. Those who find no memory wait for `progress`: the kernel would let them spin and yield, which shows them
    nothing new between two such wake-ups.
    """

    def __init__(self, zones: Sequence[Zone], vmstat: VmStat, switches: Switches) -> None:
        super().__init__(zones, vmstat, switches)
        self.wakeup_kswapd: Callable[[int], bool] = _no_kswapd
        self.kswapd_running: Callable[[], bool] = _nobody
        self.try_to_free_pages: Callable[[int, Task], Awaitable[int]] = _no_reclaim
        self.out_of_memory: Callable[[Task], None] = _no_oom_killer
        self._marks_slow_path = switches.slab_pfmemalloc and switches.rules.pfmemalloc_marking == "slow path"

    def alloc_page_nowait(self, gfp_mask: int, current: Task) -> Page | None:
        """`alloc_page` for a caller that cannot sleep; None is an allocation failure."""
        zonelist = self.zonelists.of(gfp_mask, current)
        page = self._get_page_above_low(zonelist)
        return self._alloc_nowait(Request(0, gfp_mask, current, zonelist)) if page is None else page

    def alloc_order_nowait(self, order: int, gfp_mask: int, current: Task) -> list[Page] | None:
        """`alloc_pages` for a caller that cannot sleep: 2**order contiguous pages, or None."""
        zonelist = self.zonelists.of(gfp_mask, current)
        head = self.get_page_from_freelist(gfp_mask, ALLOC_WMARK_LOW, order, zonelist)
        if head is None:
            head = self._alloc_nowait(Request(order, gfp_mask, current, zonelist))
        return None if head is None else block_of(head, order)

    def alloc_page_above_low(self, gfp_mask: int, current: Task) -> Page | None:
        """What `alloc_page` gives without waiting while memory is not low, policies aside; None: ask it."""
        if current.mempolicy is not None:
            return None
        return self._get_page_above_low(self.zonelists.of(gfp_mask, current))

    async def alloc_page(self, gfp_mask: int, current: Task) -> Page | None:
        """`alloc_page` for a caller that may sleep if it has __GFP_WAIT.

        An ordinary caller with __GFP_WAIT never gets None: it reclaims until it succeeds, whatever that takes, and
        only one with __GFP_FS may call the OOM killer. A PF_MEMALLOC caller never reclaims, so it may fail.
        """
        zonelist = self.zonelists.of(gfp_mask, current)
        page = self._get_page_above_low(zonelist)
        if page is None:
            page = await self._alloc_pages_slowpath(Request(0, gfp_mask, current, zonelist))
        return page

    async def alloc_order(self, order: int, gfp_mask: int, current: Task) -> list[Page] | None:
        """`alloc_pages`: 2**order contiguous pages. Up to order 3 as `alloc_page`; above, reclaim is tried once."""
        zonelist = self.zonelists.of(gfp_mask, current)
        head = self.get_page_from_freelist(gfp_mask, ALLOC_WMARK_LOW, order, zonelist)
        if head is None:
            head = await self._alloc_pages_slowpath(Request(order, gfp_mask, current, zonelist))
        return None if head is None else block_of(head, order)

    def alloc_pages_nowait(self, count: int, gfp_mask: int, current: Task) -> list[Page]:
        """`alloc_page_nowait` until it fails, `count` times at most; kswapd is woken once for all of them."""
        zonelist = self.zonelists.of(gfp_mask, current)
        pages = self._rmqueue_bulk(zonelist, count, ALLOC_WMARK_LOW)
        if len(pages) == count:
            return pages
        self.wakeup_kswapd(0)
        request = Request(0, gfp_mask, current, zonelist)
        alloc_flags = gfp_to_alloc_flags(gfp_mask, current, self.switches)
        above_min = self._rmqueue_bulk(zonelist, count - len(pages), alloc_flags & ~ALLOC_RESERVE)
        if self._marks_slow_path:
            self._mark_slow_path(request, above_min)
        pages += above_min
        if len(pages) < count and alloc_flags & ALLOC_RESERVE:
            reserve_zonelist = self._reserve_zonelist(request)
            reserve = self._rmqueue_bulk(reserve_zonelist, count - len(pages), alloc_flags & ALLOC_RESERVE)
            self._mark_reserve(request, reserve, alloc_flags)
            pages += reserve
            self.vmstat.no_watermark_failures += len(pages) < count
        elif len(pages) < count:
            self.count_refusal(request.gfp_mask, request.current)
        self._note_lowest()
        if len(pages) < count:
            self._fail(request)
        return pages

    def _alloc_nowait(self, request: Request) -> Page | None:
        """The slow path of a caller that cannot sleep."""
        self.wakeup_kswapd(request.order)
        page = self._alloc_below_low(request)
        if page is None:
            self._fail(request)
        return page

    async def _alloc_pages_slowpath(self, request: Request) -> Page | None:
        """`__alloc_pages_slowpath`: try, reclaim, try again, wait, as often as the request may.

        Kswapd, and favoured tasks that are runnable, run first.
        """
        gfp_mask, current = request.gfp_mask, request.current
        self.wakeup_kswapd(request.order)
        if current.nice >= 0:
            await self._let_kswapd_run()
        if self.run_queue.favoured:
            await self.run_queue.let_favoured_run(current.nice)
        while True:
            page = self._alloc_below_low(request)
            if page is not None:
                return page
            if not gfp_mask & GFP_WAIT or (not gfp_mask & GFP_NOFAIL and self._may_not_reclaim(current)):
                break
            if not current.pf_memalloc:
                page = await self._alloc_with_direct_reclaim(request)
                if page is not None:
                    return page
                if not self._should_alloc_retry(request):
                    break
            await self._wait_to_retry(current)
            self.wakeup_kswapd(request.order)
        self._fail(request)
        return None

    async def _let_kswapd_run(self) -> None:
        """Kswapd has slept for long, so the scheduler lets it run until it sleeps: as long as it scans, here.

        Nobody makes way for a kswapd that waits.
        """
        scanned = -1
        while self.kswapd_running() and self.vmstat.pgscan_kswapd != scanned:
            scanned = self.vmstat.pgscan_kswapd
            await asyncio.sleep(0)

    async def _wait_to_retry(self, current: Task) -> None:
        """Until there is something new to see; but a workqueue's worker sleeps, and others take it meanwhile."""
        if current.pf_wq_worker and self.switches.rules.wq_worker_sleeps:
            await asyncio.sleep(JIFFY)
        else:
            await self.progress.wait(HZ_OVER_50, current.nice)
            await self.run_queue.let_favoured_run(current.nice)

    def _may_not_reclaim(self, current: Task) -> bool:
        """A reclaimer must not recurse. A victim of the OOM killer that finds nothing is to exit, not to wait."""
        return current.pf_memalloc or (current.memdie and self.switches.rules.oom_victim_reserve == "all")

    def _alloc_below_low(self, request: Request) -> Page | None:
        """The slow path's attempts: at min with the caller's modifiers, then in the reserve if entitled."""
        gfp_mask, order = request.gfp_mask, request.order
        alloc_flags = gfp_to_alloc_flags(gfp_mask, request.current, self.switches)
        page = self._alloc_above_min(request, alloc_flags)
        if page is None and alloc_flags & ALLOC_RESERVE:
            zonelist = self._reserve_zonelist(request)
            page = self.get_page_from_freelist(gfp_mask, alloc_flags & ALLOC_RESERVE, order, zonelist)
            if page is None:
                self.vmstat.no_watermark_failures += 1
            else:
                self._mark_reserve(request, block_of(page, order), alloc_flags)
        elif page is None:
            self.count_refusal(request.gfp_mask, request.current)
        self._note_lowest()
        return page

    def _alloc_above_min(self, request: Request, alloc_flags: int) -> Page | None:
        flags = alloc_flags & ~ALLOC_RESERVE
        page = self.get_page_from_freelist(request.gfp_mask, flags, request.order, request.zonelist)
        if page is not None and self._marks_slow_path:
            self._mark_slow_path(request, block_of(page, request.order))
        return page

    def _reserve_zonelist(self, request: Request) -> Zonelist:
        """Where to look without watermarks: with patch 06 near the CPU, without it where the policy says."""
        current, gfp_mask = request.current, request.gfp_mask
        if current.mempolicy is None or current.in_interrupt:
            return request.zonelist
        ignore_nodemask = self.switches.rules.no_watermarks_ignores_nodemask
        near = self.zonelists.near(gfp_mask, current, ignore_nodemask=ignore_nodemask)
        if near.zones == request.zonelist.zones:
            return near
        if not self.switches.ignore_mempolicies:
            self.vmstat.mempolicy_kept += 1
            return request.zonelist
        self.vmstat.mempolicy_ignored += 1
        return near

    def _mark_slow_path(self, request: Request, pages: list[Page]) -> None:
        """V9 marks whatever the slow path finds for an entitled caller, even above min."""
        if gfp_pfmemalloc_allowed(request.gfp_mask, request.current, self.switches):
            for page in pages:
                page.pfmemalloc = True

    def _mark_reserve(self, request: Request, pages: list[Page], alloc_flags: int) -> None:
        """Count pages that came from the reserve by what let them through; patch 02 marks them, but not a victim's."""
        for page in pages:
            page.from_reserve = True
        if not alloc_flags & ALLOC_NO_WATERMARKS:
            return
        vmstat = self.vmstat
        vmstat.no_watermark_allocs += len(pages)
        if request.gfp_mask & GFP_MEMALLOC and self.switches.gfp_memalloc:
            vmstat.gfp_memalloc_allocs += len(pages)
        elif request.current.serving_softirq:
            vmstat.softirq_pf_memalloc_allocs += len(pages)
        if self.switches.slab_pfmemalloc:
            for page in pages:
                page.pfmemalloc = True

    def count_refusal(self, gfp_mask: int, current: Task) -> None:
        """A request that patch 04 or 05 would have let through: the occasions that show the switch took effect."""
        if gfp_mask & GFP_NOMEMALLOC:
            return
        if gfp_mask & GFP_MEMALLOC:
            self.vmstat.gfp_memalloc_refused += 1
        elif current.serving_softirq and current.pf_memalloc:
            self.vmstat.softirq_pf_memalloc_refused += 1

    def _fail(self, request: Request) -> None:
        if not request.gfp_mask & GFP_NOWARN:
            self.vmstat.page_allocation_failure += 1

    async def _alloc_with_direct_reclaim(self, request: Request) -> Page | None:
        """`__alloc_pages_direct_reclaim` (the scan itself is `__perform_reclaim`), and the OOM killer if that came to
        nothing.
        """
        progress = await self.try_to_free_pages(request.gfp_mask, request.current)
        await self.run_queue.let_favoured_run(request.current.nice)
        request.reclaimed += progress
        request.no_progress_loops = 0 if progress else request.no_progress_loops + 1
        if progress:
            page = self._alloc_after_reclaim(request)
            if page is None:
                self.drain_all_pages()
                page = self._alloc_after_reclaim(request)
            if page is not None:
                return page
        if request.no_progress_loops > (self.switches.rules.max_reclaim_retries or 0):
            return self._alloc_pages_may_oom(request)
        return None

    def _alloc_after_reclaim(self, request: Request) -> Page | None:
        if self.switches.rules.reclaim_retry_no_watermarks:
            return self._alloc_below_low(request)
        return self._alloc_above_min(request, gfp_to_alloc_flags(request.gfp_mask, request.current, self.switches))

    def _alloc_pages_may_oom(self, request: Request) -> Page | None:
        """`__alloc_pages_may_oom`: a last look at the high watermark, in case somebody has just been killed.

        Nobody is killed for a request without __GFP_FS, a costly one, or one for the lowest zones.
        """
        gfp_mask = request.gfp_mask
        if not gfp_mask & GFP_FS or gfp_mask & GFP_NORETRY:
            return None
        page = self.get_page_from_freelist(gfp_mask, ALLOC_WMARK_HIGH, request.order, request.zonelist)
        if page is None and (gfp_mask & GFP_NOFAIL or _worth_killing_for(request)):
            self.out_of_memory(request.current)
            request.no_progress_loops = 0
        return page

    def _should_alloc_retry(self, request: Request) -> bool:
        """`should_alloc_retry`: small requests always try again, costly ones only if told to, and not for ever."""
        gfp_mask = request.gfp_mask
        if gfp_mask & GFP_NORETRY:
            return False
        if gfp_mask & GFP_NOFAIL:
            return True
        if request.current.memdie:
            return False
        if request.costly:
            return bool(gfp_mask & GFP_REPEAT) and request.reclaimed < 1 << request.order
        return True


def _worth_killing_for(request: Request) -> bool:
    return not request.costly and request.zonelist.high_zoneidx >= ZoneType.NORMAL


def _no_kswapd(_order: int) -> bool:
    return False


def _nobody() -> bool:
    return False


async def _no_reclaim(_gfp_mask: int, _current: Task) -> int:
    return 0


def _no_oom_killer(_current: Task) -> None:
    return
