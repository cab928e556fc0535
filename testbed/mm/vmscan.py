"""Reclaim (mm/vmscan.c): active and inactive lists, pageout, direct reclaim and its throttling (patches 15, 16).

A dirty page is not freed by the scan that finds it: its write is started, and a later scan frees it once the write
has ended. A reclaimer whose pages are all under writeback waits for progress instead of spinning.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from math import isqrt

from testbed.mm.gfp import GFP_FS, GFP_IO
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.page_io import SwapIO
from testbed.mm.sched import Task
from testbed.mm.swap_state import SwapCache
from testbed.mm.wait import WaitQueue
from testbed.mm.watermarks import PAGE_SIZE

SWAP_CLUSTER_MAX = 32
DEF_PRIORITY = 12
RESCHED_PAGES = 1024
SWAPPINESS = 60
HZ = 1.0
HZ_OVER_10 = 0.1


@dataclass(slots=True)
class ScanControl:
    """`struct scan_control`: one reclaimer's request and what it has reached."""

    gfp_mask: int
    current: Task
    nr_to_reclaim: int
    priority: int = DEF_PRIORITY
    nr_scanned: int = 0
    nr_reclaimed: int = 0
    nr_taken: int = 0
    nr_writeback: int = 0
    writes: list[Page] = field(default_factory=list)

    @property
    def may_io(self) -> bool:
        """Swap writes need __GFP_IO; anonymous pages do not need __GFP_FS."""
        return bool(self.gfp_mask & GFP_IO)


class Vmscan:
    """Direct reclaim for one zone, and the scan that kswapd shares with it."""

    def __init__(self, page_alloc: PageAllocator, cache: SwapCache, swap_io: SwapIO) -> None:
        self.page_alloc = page_alloc
        self.zone = page_alloc.zone
        self.vmstat = page_alloc.vmstat
        self.switches = page_alloc.switches
        self.cache = cache
        self.swap_io = swap_io
        self.pfmemalloc_wait = WaitQueue()
        self._recent_scanned = [0, 0]
        self._recent_rotated = [0, 0]
        self._inactive_ratio = max(1, isqrt(10 * (self.zone.managed * PAGE_SIZE >> 30)))

    def pfmemalloc_watermark_ok(self) -> bool:
        """Is more than half of the reserve below min still free? If it is not, kswapd is woken."""
        zone = self.zone
        if len(zone.free) > zone.watermarks.min // 2:
            return True
        self.page_alloc.wakeup_kswapd()
        return False

    async def throttle_direct_reclaim(self, gfp_mask: int, current: Task) -> None:
        """Patch 15: sleep until half the reserve is free again; a caller without __GFP_FS sleeps at most HZ."""
        if current.pf_kthread or self.pfmemalloc_watermark_ok():
            return
        vmstat = self.vmstat
        vmstat.throttle_low_reserve += 1
        if not self.switches.throttle_direct_reclaim:
            return
        if self.switches.count_throttle:
            vmstat.pgscan_direct_throttle += 1
        else:
            vmstat.throttle_uncounted += 1
        vmstat.throttle_waits += 1
        vmstat.nr_throttled += 1
        try:
            if not gfp_mask & GFP_FS:
                await self.pfmemalloc_wait.wait(HZ)
                return
            while not current.fatal_signal and not self.pfmemalloc_watermark_ok():
                await self.pfmemalloc_wait.wait()
        finally:
            vmstat.nr_throttled -= 1

    async def try_to_free_pages(self, gfp_mask: int, current: Task) -> int:
        """Direct reclaim: pages reclaimed, or 1 if it is still worth trying, or 0 if only the OOM killer is left."""
        await self.throttle_direct_reclaim(gfp_mask, current)
        if current.fatal_signal:
            return 1
        self.vmstat.allocstall += 1
        current.pf_memalloc = True
        try:
            return await self._do_try_to_free_pages(ScanControl(gfp_mask, current, SWAP_CLUSTER_MAX))
        finally:
            current.pf_memalloc = False

    async def _do_try_to_free_pages(self, sc: ScanControl) -> int:
        for sc.priority in range(DEF_PRIORITY, -1, -1):
            await self.shrink_zone(sc, direct=True)
            if sc.nr_reclaimed >= sc.nr_to_reclaim or sc.current.fatal_signal:
                break
        if sc.nr_reclaimed:
            return sc.nr_reclaimed
        return 0 if self.zone.all_unreclaimable else 1

    async def shrink_zone(self, sc: ScanControl, *, direct: bool) -> None:
        """One pass over the lists at `sc.priority`. It starts writes as it goes, and so may wait for a request; at
        its end it waits for progress if all it met was under writeback.
        """
        zone = self.zone
        anon, file, denominator = self.get_scan_count()
        nr_active = (len(zone.active_anon) >> sc.priority) * anon // denominator
        nr_inactive = (len(zone.inactive_anon) >> sc.priority) * anon // denominator
        if file:
            self.shrink_file_list(-(-(len(zone.file) >> sc.priority) * file // denominator), sc, direct=direct)
        sc.nr_taken = sc.nr_writeback = 0
        resched_at = RESCHED_PAGES
        while nr_active > 0 or nr_inactive > 0:
            if nr_active > 0:
                if self._inactive_anon_is_low():
                    self.shrink_active_list(min(nr_active, SWAP_CLUSTER_MAX))
                nr_active -= SWAP_CLUSTER_MAX
            if nr_inactive > 0:
                self.shrink_inactive_list(min(nr_inactive, SWAP_CLUSTER_MAX), sc, direct=direct)
                nr_inactive -= SWAP_CLUSTER_MAX
                if sc.writes:
                    writes, sc.writes = sc.writes, []
                    await self.swap_io.swap_writepages(writes, sc.current.nice)
            if sc.nr_reclaimed >= sc.nr_to_reclaim and sc.priority < DEF_PRIORITY:
                break
            if sc.nr_taken >= resched_at:
                resched_at += RESCHED_PAGES
                await asyncio.sleep(0)
        if self._inactive_anon_is_low():
            self.shrink_active_list(SWAP_CLUSTER_MAX)
        if sc.nr_writeback and sc.nr_writeback >= sc.nr_taken >> (DEF_PRIORITY - sc.priority):
            await self.page_alloc.progress.wait(HZ_OVER_10, sc.current.nice)

    def get_scan_count(self) -> tuple[int, int, int]:
        """How to share the scan between anonymous pages and page cache: two numerators and a denominator (3.6).

        The list whose pages are found in use less often is scanned more; a page cache that together with free memory
        does not fill the high watermark is left alone.
        """
        zone = self.zone
        if not zone.file or len(zone.file) + len(zone.free) <= zone.watermarks.high:
            return 1, 0, 1
        scanned, rotated = self._recent_scanned, self._recent_rotated
        for kind, size in enumerate((len(zone.active_anon) + len(zone.inactive_anon), len(zone.file))):
            if scanned[kind] > size // 4:
                scanned[kind] //= 2
                rotated[kind] //= 2
        anon = (SWAPPINESS + 1) * (scanned[0] + 1) // (rotated[0] + 1)
        file = (200 - SWAPPINESS + 1) * (scanned[1] + 1) // (rotated[1] + 1)
        return anon, file, anon + file + 1

    def shrink_file_list(self, nr_to_scan: int, sc: ScanControl, *, direct: bool) -> None:
        """Free clean page cache from the tail of its list."""
        cache = self.zone.file
        freed = [cache.popitem(last=False)[0] for _ in range(min(nr_to_scan, len(cache)))]
        self._recent_scanned[1] += len(freed)
        self._account(sc, len(freed), len(freed), direct=direct)
        self.page_alloc.free_pages(freed)

    def _account(self, sc: ScanControl, scanned: int, freed: int, *, direct: bool) -> None:
        vmstat = self.vmstat
        sc.nr_scanned += scanned
        sc.nr_reclaimed += freed
        self.zone.pages_scanned += scanned
        if direct:
            vmstat.pgscan_direct += scanned
            vmstat.pgsteal_direct += freed
        else:
            vmstat.pgscan_kswapd += scanned
            vmstat.pgsteal_kswapd += freed

    def _inactive_anon_is_low(self) -> bool:
        zone = self.zone
        return len(zone.inactive_anon) * self._inactive_ratio < len(zone.active_anon)

    def shrink_active_list(self, nr_to_scan: int) -> None:
        """Move pages from the tail of the active list to the head of the inactive one, accessed or not (3.6)."""
        active, inactive = self.zone.active_anon, self.zone.inactive_anon
        moved = min(nr_to_scan, len(active))
        self._recent_scanned[0] += moved
        for _ in range(moved):
            page, _none = active.popitem(last=False)
            self._recent_rotated[0] += page.young
            page.young = page.active = False
            inactive[page] = None
        self.vmstat.pgdeactivate += moved

    def shrink_inactive_list(self, nr_to_scan: int, sc: ScanControl, *, direct: bool) -> None:
        """Take pages from the tail of the inactive list and try to free each."""
        inactive = self.zone.inactive_anon
        taken = [inactive.popitem(last=False)[0] for _ in range(min(nr_to_scan, len(inactive)))]
        activated = self.vmstat.pgactivate
        freed = self._shrink_page_list(taken, sc)
        sc.nr_taken += len(taken)
        self._recent_scanned[0] += len(taken)
        self._recent_rotated[0] += self.vmstat.pgactivate - activated
        self._account(sc, len(taken), len(freed), direct=direct)
        if freed:
            self.page_alloc.free_pages(freed)

    def _shrink_page_list(self, pages: list[Page], sc: ScanControl) -> list[Page]:
        """`shrink_page_list`: the pages that can be freed now; the others go back to a list."""
        active, inactive = self.zone.active_anon, self.zone.inactive_anon
        may_io = sc.may_io
        freed: list[Page] = []
        for page in pages:
            if page.writeback:
                page.reclaim = True
                sc.nr_writeback += 1
                inactive[page] = None
            elif page.locked or page.pins:
                inactive[page] = None
            elif page.young or (not page.swap_entry and may_io and not self.cache.add_to_swap(page, sc.current)):
                page.young = False
                page.active = True
                active[page] = None
                self.vmstat.pgactivate += 1
            elif page.dirty and not may_io:
                inactive[page] = None
            elif page.dirty:
                self._pageout(page, sc)
                inactive[page] = None
            else:
                self._try_to_unmap(page)
                self.cache.delete_from_swap_cache(page)
                page.lru = False
                freed.append(page)
        return freed

    def _pageout(self, page: Page, sc: ScanControl) -> None:
        """`try_to_unmap` and `pageout`: the write itself goes out with the batch."""
        self._try_to_unmap(page)
        page.dirty = False
        page.reclaim = page.writeback = True
        self.vmstat.nr_writeback += 1
        self.vmstat.nr_vmscan_write += 1
        sc.writes.append(page)

    def _try_to_unmap(self, page: Page) -> None:
        vma = page.mapping
        if vma is None:
            return
        entry = page.swap_entry
        self.cache.swap.swap_duplicate(entry)
        vma.ptes[page.index] = entry
        vma.owner.rss -= 1
        page.mapping = None
