"""kswapd (mm/vmscan.c): balances the zone up to its high watermark, and wakes throttled direct reclaimers."""

from __future__ import annotations

from testbed.mm.gfp import GFP_KERNEL
from testbed.mm.page_alloc import HZ_OVER_50
from testbed.mm.sched import Task
from testbed.mm.vmscan import DEF_PRIORITY, HZ_OVER_10, SWAP_CLUSTER_MAX, ScanControl, Vmscan
from testbed.mm.wait import WaitQueue

UNRECLAIMABLE_SCANS = 6
"""A zone scanned this many times over without freeing a page is not reclaimable (`zone_reclaimable`)."""


class Kswapd:
    """The reclaim thread of one node; `run` is its whole life."""

    def __init__(self, vmscan: Vmscan) -> None:
        self.vmscan = vmscan
        self.zone = vmscan.zone
        self.vmstat = vmscan.vmstat
        self.task = Task("kswapd0", pf_kthread=True, pf_memalloc=True)
        self.kswapd_wait = WaitQueue()
        self._woken = False

    def wakeup_kswapd(self) -> None:
        """Wake kswapd if it sleeps; whoever calls has seen the zone below its low watermark."""
        if not self._woken:
            self._woken = True
            self.vmstat.kswapd_wake += 1
            self.kswapd_wait.wake_all()

    async def run(self) -> None:
        """Sleep while the zone is balanced, balance it otherwise, until cancelled."""
        while True:
            await self._kswapd_try_to_sleep()
            self.vmstat.pageoutrun += 1
            await self.balance_pgdat()

    async def _kswapd_try_to_sleep(self) -> None:
        self._woken = False
        if not self.prepare_kswapd_sleep():
            return
        if await self.kswapd_wait.wait(HZ_OVER_10):
            return
        if self.prepare_kswapd_sleep() and not self._woken:
            await self.kswapd_wait.wait()

    def prepare_kswapd_sleep(self) -> bool:
        """May kswapd sleep? Not while a direct reclaimer is throttled, nor below the high watermark (3.6)."""
        if self.vmscan.pfmemalloc_wait:
            self.vmscan.pfmemalloc_wait.wake_all()
            return False
        return self._balanced()

    def _balanced(self) -> bool:
        return self.zone.all_unreclaimable or self.zone.nr_free_pages > self.zone.watermarks.high

    async def balance_pgdat(self) -> None:
        """Scan at falling priority until the zone is balanced; start over after each round of progress."""
        priority = DEF_PRIORITY
        sc = ScanControl(GFP_KERNEL, self.task, 1 << 62)
        if self.zone.all_unreclaimable:
            await self._try_unreclaimable(sc)
        while not self._balanced():
            sc.priority = priority
            reclaimed_before = sc.nr_reclaimed
            await self.vmscan.shrink_zone(sc, direct=False)
            self._note_unreclaimable()
            if self.vmscan.pfmemalloc_wait and self.vmscan.pfmemalloc_watermark_ok():
                self.vmscan.pfmemalloc_wait.wake_all()
            if sc.nr_reclaimed - reclaimed_before >= SWAP_CLUSTER_MAX:
                priority = DEF_PRIORITY
                continue
            priority -= 1
            if priority < 0:
                priority = DEF_PRIORITY
                await self.vmscan.page_alloc.progress.wait(HZ_OVER_50)
        if self.vmscan.pfmemalloc_wait:
            self.vmscan.pfmemalloc_wait.wake_all()

    async def _try_unreclaimable(self, sc: ScanControl) -> None:
        """The one pass that a zone already given up on still gets; a page freed by it makes the zone reclaimable.

        Throttled tasks wake kswapd again at once, and the kernel would spin between them; here it lets time pass.
        """
        await self.vmscan.shrink_zone(sc, direct=False)
        if self.zone.all_unreclaimable:
            await self.vmscan.page_alloc.progress.wait(HZ_OVER_50)

    def _note_unreclaimable(self) -> None:
        zone = self.zone
        reclaimable = len(zone.active_anon) + len(zone.inactive_anon) + len(zone.file)
        if zone.pages_scanned >= reclaimable * UNRECLAIMABLE_SCANS:
            zone.all_unreclaimable = True
