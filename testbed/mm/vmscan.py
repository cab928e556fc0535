"""Reclaim (mm/vmscan.c): active and inactive lists, pageout, direct reclaim.

A dirty page is not freed by the scan that finds it: its write is started, and a later scan frees it once the write
has ended. Where a reclaimer waits for that is in stall.py, and who may not reclaim for the moment in throttle.py.
"""

from __future__ import annotations

import asyncio

from testbed.mm.gfp import GFP_FS, GFP_IO
from testbed.mm.lruvec import SWAP_CLUSTER_MAX, Lruvec
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.page_io import SwapIO
from testbed.mm.pgdat import Pgdat
from testbed.mm.scan_control import DEF_PRIORITY, ScanControl
from testbed.mm.sched import Task
from testbed.mm.stall import CongestionWait, ReclaimThrottle, Stall
from testbed.mm.swap_state import SwapCache
from testbed.mm.throttle import Throttle

RESCHED_PAGES = 512
"""Pages that a reclaimer looks at before it is somebody else's turn (`need_resched`)."""
WRITE_COST = 8
"""To write a page takes it as long as to look at so many."""


class Vmscan:
    """Direct reclaim, and the scan that kswapd shares with it."""

    def __init__(self, page_alloc: PageAllocator, cache: SwapCache, swap_io: SwapIO) -> None:
        self.page_alloc = page_alloc
        self.vmstat = page_alloc.vmstat
        self.switches = page_alloc.switches
        self.rules = rules = page_alloc.switches.rules
        self.cache = cache
        self.swap_io = swap_io
        self.pgdat = Pgdat(page_alloc.zones, cache.swap, rules)
        self.throttle = Throttle(page_alloc, self.pgdat)
        self.pfmemalloc_wait = self.pgdat.pfmemalloc_wait
        self.stall: Stall = CongestionWait(page_alloc, swap_io.bdi)
        if rules.reclaim_throttle:
            self.stall = ReclaimThrottle(page_alloc, self.pgdat)
            swap_io.acct_reclaim_writeback = self.stall.acct_reclaim_writeback
        self._isolated_shift = 3 if rules.too_many_isolated == "eighth" else 0

    async def try_to_free_pages(self, gfp_mask: int, current: Task) -> int:
        """Direct reclaim: pages reclaimed, or 1 if it is still worth trying, or 0 if only the OOM killer is left."""
        throttled = await self.throttle.throttle_direct_reclaim(gfp_mask, current)
        if current.fatal_signal and (throttled or self._spares_dying_reclaim()):
            return 1
        self.vmstat.allocstall += 1
        current.pf_memalloc = True
        try:
            return await self._do_try_to_free_pages(ScanControl(gfp_mask, current, SWAP_CLUSTER_MAX))
        finally:
            current.pf_memalloc = False

    def _spares_dying_reclaim(self) -> bool:
        """Patch 15 as posted: a dying task need not reclaim, throttled or not."""
        return self.switches.throttle_direct_reclaim and not self.rules.throttle_spares_dying

    async def _do_try_to_free_pages(self, sc: ScanControl) -> int:
        for sc.priority in range(DEF_PRIORITY, -1, -1):
            sc.nr_scanned = 0
            await self._shrink_zones(sc)
            if sc.nr_reclaimed >= sc.nr_to_reclaim:
                break
        if sc.nr_reclaimed or self.rules.max_kswapd_failures is not None:
            return sc.nr_reclaimed
        return 0 if self.pgdat.all_unreclaimable() else 1

    async def _shrink_zones(self, sc: ScanControl) -> None:
        """A direct reclaimer's pass, highest zone first; zones that kswapd gave up are tried at priority 12 only."""
        for lruvec in reversed(self.pgdat.lruvecs):
            if not lruvec.zone.all_unreclaimable or sc.priority == DEF_PRIORITY:
                await self.shrink_zone(lruvec, sc)
        await self.stall.zones_scanned(sc)

    async def shrink_zone(self, lruvec: Lruvec, sc: ScanControl) -> None:
        """One pass over a zone's lists at `sc.priority`. It starts writes as it goes, and so may wait for a request;
        at its end it may wait for them.

        In a zone already given up, kswapd still looks at a few pages whatever the priority (`force_scan`).
        """
        zone = lruvec.zone
        swap_full = self.cache.swap.inuse_pages >= self.cache.swap.pages
        force_scan = sc.kswapd and zone.all_unreclaimable
        count = lruvec.get_scan_count(
            sc.priority,
            swap_full=swap_full,
            force_scan=force_scan,
            cache_trim_mode=self.rules.cache_trim_mode,
        )
        reclaimed_before = sc.nr_reclaimed
        if count.file:
            self.shrink_file_list(lruvec, count.file, sc)
        sc.nr_taken = sc.nr_writeback = sc.nr_immediate = 0
        await self._shrink_anon_lists(lruvec, count.active_anon, count.inactive_anon, sc, reclaimed_before)
        if not swap_full:
            self.age_active_anon(lruvec)
        if sc.nr_reclaimed > reclaimed_before:
            self.pgdat.kswapd_failures = 0
        await self.stall.zone_scanned(sc)

    async def _shrink_anon_lists(
        self, lruvec: Lruvec, nr_active: int, nr_inactive: int, sc: ScanControl, reclaimed_before: int
    ) -> None:
        enough = reclaimed_before + sc.nr_to_reclaim if sc.priority < DEF_PRIORITY else 1 << 62
        resched_at = sc.cost + RESCHED_PAGES
        while nr_inactive > 0:
            if nr_active > 0:
                if lruvec.inactive_anon_is_low():
                    self.shrink_active_list(lruvec, min(nr_active, SWAP_CLUSTER_MAX))
                nr_active -= SWAP_CLUSTER_MAX
            await self.shrink_inactive_list(lruvec, min(nr_inactive, SWAP_CLUSTER_MAX), sc)
            nr_inactive -= SWAP_CLUSTER_MAX
            if sc.nr_reclaimed >= enough:
                break
            if sc.cost >= resched_at:
                resched_at = sc.cost + RESCHED_PAGES
                await asyncio.sleep(0)

    def shrink_file_list(self, lruvec: Lruvec, nr_to_scan: int, sc: ScanControl) -> None:
        """Free clean page cache from the tail of its list."""
        cache = lruvec.zone.file
        freed = [cache.popitem(last=False)[0] for _ in range(min(nr_to_scan, len(cache)))]
        lruvec.recent_scanned[1] += len(freed)
        self._account(lruvec, sc, len(freed), len(freed))
        self.page_alloc.free_pages(freed)

    def _account(self, lruvec: Lruvec, sc: ScanControl, scanned: int, freed: int) -> None:
        vmstat = self.vmstat
        sc.nr_scanned += scanned
        sc.nr_reclaimed += freed
        lruvec.zone.pages_scanned += scanned
        if sc.kswapd:
            vmstat.pgscan_kswapd += scanned
            vmstat.pgsteal_kswapd += freed
        else:
            vmstat.pgscan_direct += scanned
            vmstat.pgsteal_direct += freed

    def age_active_anon(self, lruvec: Lruvec) -> None:
        """Keep the balance of the anonymous lists, however little was to be scanned."""
        if lruvec.inactive_anon_is_low():
            self.shrink_active_list(lruvec, SWAP_CLUSTER_MAX)

    def shrink_active_list(self, lruvec: Lruvec, nr_to_scan: int) -> None:
        """Move pages from the tail of the active list to the head of the inactive one, accessed or not (3.6)."""
        active, inactive = lruvec.zone.active_anon, lruvec.zone.inactive_anon
        moved = min(nr_to_scan, len(active))
        pages = [active.popitem(last=False)[0] for _ in range(moved)]
        lruvec.recent_scanned[0] += moved
        lruvec.recent_rotated[0] += sum([page.young for page in pages])
        for page in pages:
            page.young = page.active = False
            inactive[page] = None
        self.vmstat.pgrefill += moved
        self.vmstat.pgdeactivate += moved

    async def shrink_inactive_list(self, lruvec: Lruvec, nr_to_scan: int, sc: ScanControl) -> None:
        """Take pages from the tail of the inactive list, try to free each, put the others back on a list."""
        if lruvec.nr_isolated_anon and not await self._may_isolate(lruvec, sc):
            return
        inactive = lruvec.zone.inactive_anon
        taken = [inactive.popitem(last=False)[0] for _ in range(min(nr_to_scan, len(inactive)))]
        activated = self.vmstat.pgactivate
        freed, kept = self._shrink_page_list(taken, sc)
        sc.nr_taken += len(taken)
        sc.cost += len(taken) + WRITE_COST * len(sc.writes)
        lruvec.recent_scanned[0] += len(taken)
        lruvec.recent_rotated[0] += self.vmstat.pgactivate - activated
        self._account(lruvec, sc, len(taken), len(freed))
        self.vmstat.pgscan_anon += len(taken)
        self.vmstat.pgsteal_anon += len(freed)
        if freed:
            self.page_alloc.free_pages(freed)
        if sc.writes:
            await self._write_isolated(lruvec, kept, sc)
        else:
            _putback_lru_pages(lruvec, kept)

    async def _may_isolate(self, lruvec: Lruvec, sc: ScanControl) -> bool:
        stalls = 0
        while self._too_many_isolated(lruvec, sc):
            if not await self.stall.too_many_isolated(sc.current, stalls):
                if sc.current.fatal_signal:
                    sc.nr_reclaimed += SWAP_CLUSTER_MAX
                return False
            stalls += 1
        return True

    def _too_many_isolated(self, lruvec: Lruvec, sc: ScanControl) -> bool:
        """Have direct reclaimers taken so much that what is left is no measure? Kswapd goes on all the same.

        6.1 puts the limit lower for callers with __GFP_IO and __GFP_FS, so that the others do not wait for them.
        """
        if sc.kswapd:
            return False
        shift = self._isolated_shift if sc.gfp_mask & GFP_IO and sc.gfp_mask & GFP_FS else 0
        return lruvec.nr_isolated_anon > len(lruvec.zone.inactive_anon) >> shift

    def _shrink_page_list(self, pages: list[Page], sc: ScanControl) -> tuple[list[Page], list[Page]]:
        """`shrink_page_list`: the pages that can be freed now, and the others."""
        may_io = sc.may_io
        freed: list[Page] = []
        kept: list[Page] = []
        if waiting := [page for page in pages if page.writeback]:
            self._still_in_writeback(waiting, sc)
            if len(waiting) == len(pages):
                return freed, pages
        for page in pages:
            if page.writeback or page.locked or page.pins:
                pass
            elif page.young:
                self._page_referenced(page)
            elif not page.swap_entry and may_io and not self.cache.add_to_swap(page, sc.current):
                self._activate(page)
            elif page.dirty:
                if may_io:
                    self._pageout(page, sc)
            else:
                self._try_to_unmap(page)
                self.cache.delete_from_swap_cache(page)
                page.lru = False
                freed.append(page)
                continue
            kept.append(page)
        return freed, kept

    def _still_in_writeback(self, pages: list[Page], sc: ScanControl) -> None:
        """Its end is to move a page to where the next scan begins; 6.1 keeps it out of the way until then."""
        immediate = sum([page.reclaim for page in pages]) if sc.kswapd and self.pgdat.writeback else 0
        sc.nr_immediate += immediate
        sc.nr_writeback += len(pages) - immediate
        activates = self.rules.writeback_activates
        for page in pages:
            page.reclaim = True
            page.active |= activates
        self.vmstat.pgactivate += len(pages) if activates else 0

    def _page_referenced(self, page: Page) -> None:
        """`page_check_references`: a page that starts active is used again; one that starts inactive must be twice."""
        page.young = False
        if self.rules.anon_starts_active or page.referenced:
            self._activate(page)
        page.referenced = True

    def _activate(self, page: Page) -> None:
        page.active = True
        self.vmstat.pgactivate += 1

    def _pageout(self, page: Page, sc: ScanControl) -> None:
        """`try_to_unmap` and `pageout`: the write itself goes out with the batch."""
        self._try_to_unmap(page)
        page.dirty = page.referenced = False
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
        vma.owner.swapents += 1
        page.mapping = None

    async def _write_isolated(self, lruvec: Lruvec, kept: list[Page], sc: ScanControl) -> None:
        """Submit the batch's writes. Meanwhile, and that may be long, its pages are on no list (`nr_isolated_anon`)."""
        writes, sc.writes = sc.writes, []
        for page in kept:
            page.lru = False
            page.pins += 1
        lruvec.nr_isolated_anon += len(kept)
        self.vmstat.nr_isolated_anon += len(kept)
        try:
            await self.swap_io.swap_writepages(writes, sc.current)
        finally:
            lruvec.nr_isolated_anon -= len(kept)
            self.vmstat.nr_isolated_anon -= len(kept)
            for page in kept:
                page.lru = True
            _putback_lru_pages(lruvec, kept)
            for page in kept:
                self.swap_io.put_page(page)


def _putback_lru_pages(lruvec: Lruvec, pages: list[Page]) -> None:
    active, inactive = lruvec.zone.active_anon, lruvec.zone.inactive_anon
    for page in pages:
        (active if page.active else inactive)[page] = None
