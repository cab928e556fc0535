"""kswapd (mm/vmscan.c): balances the node up to its high watermarks, and wakes throttled direct reclaimers."""

from __future__ import annotations

from testbed.mm.gfp import ALLOC_WMARK_HIGH, GFP_KERNEL
from testbed.mm.lruvec import SWAP_CLUSTER_MAX
from testbed.mm.page_alloc import HZ_OVER_50
from testbed.mm.scan_control import DEF_PRIORITY, ScanControl
from testbed.mm.sched import Task
from testbed.mm.stall import HZ_OVER_10
from testbed.mm.vmscan import Vmscan
from testbed.mm.wait import Thread, WaitQueue
from testbed.mm.zone import Zone

UNRECLAIMABLE_SCANS = 6
"""A zone scanned this many times over without freeing a page is not reclaimable (`zone_reclaimable`)."""
KSWAPD_ZONE_BALANCE_GAP_RATIO = 100
"""A zone is left alone only when it has this share of its pages free beyond high (but at most `low` pages more)."""


class Kswapd:
    """The reclaim thread of one node; `run` is its whole life."""

    def __init__(self, vmscan: Vmscan) -> None:
        self.vmscan = vmscan
        self.pgdat = vmscan.pgdat
        self.rules = vmscan.rules
        self.vmstat = vmscan.vmstat
        self.task = Task("kswapd0", pf_kthread=True, pf_memalloc=True)
        self.kswapd_wait = WaitQueue()
        self._woken = False
        self._thread: Thread | None = None

    def running(self) -> bool:
        """Does it run, or will it as soon as it gets the CPU? Not while it waits for a request, or for writes to end.
        """
        return self._woken if self._thread is None else not self._thread.sleeping

    def wakeup_kswapd(self, order: int = 0) -> bool:
        """Wake kswapd for 2**order pages; False if it does not sleep, or need not wake. Whoever calls has seen no zone
        that has them above its low watermark.
        """
        pgdat = self.pgdat
        pgdat.kswapd_order = max(pgdat.kswapd_order, order)
        if not self._woken and not pgdat.hopeless():
            self._woken = True
            self.vmstat.kswapd_wake += 1
            self.kswapd_wait.wake_all()
            return True
        return False

    async def run(self) -> None:
        """Sleep while the node is balanced, balance it otherwise, until cancelled."""
        self._thread = Thread(self._kswapd())
        try:
            await self._thread
        finally:
            self._thread = None

    async def _kswapd(self) -> None:
        pgdat = self.pgdat
        reclaim_order = 0
        while True:
            await self._kswapd_try_to_sleep(reclaim_order)
            order, pgdat.kswapd_order = pgdat.kswapd_order, 0
            self._set_reclaim_active(True)
            reclaim_order = await self.balance_pgdat(order)
            self._set_reclaim_active(False)
            if reclaim_order == order:
                reclaim_order = pgdat.kswapd_order

    def _set_reclaim_active(self, active: bool) -> None:
        """`set_reclaim_active`, `clear_reclaim_active`."""
        for zone in self.pgdat.zones:
            zone.pcp.reclaim_active = active

    async def _kswapd_try_to_sleep(self, order: int) -> None:
        """A nap first: if it is cut short, or the high watermarks fail after it, to sleep would have been too early.
        """
        self._woken = False
        woken = False
        if self.prepare_kswapd_sleep(order):
            woken = await self.kswapd_wait.wait(HZ_OVER_10)
            if woken:
                self.pgdat.kswapd_order = max(self.pgdat.kswapd_order, order)
        if not woken and self.prepare_kswapd_sleep(order):
            if not self._woken:
                await self.sleep()
        elif woken:
            self.vmstat.kswapd_low_wmark_hit_quickly += 1
        else:
            self.vmstat.kswapd_high_wmark_hit_quickly += 1

    async def sleep(self) -> None:
        """The sleep after the nap: until somebody wakes it (`schedule`)."""
        await self.kswapd_wait.wait()

    def prepare_kswapd_sleep(self, order: int = 0) -> bool:
        """May kswapd sleep, having been woken for 2**order pages?

        Not below a high watermark, nor (until 3.19) while a direct reclaimer is throttled. Before 3.6 its reverse was
        `sleeping_prematurely`.
        """
        pgdat = self.pgdat
        if pgdat.pfmemalloc_wait:
            pgdat.pfmemalloc_wait.wake_all()
            if not self.rules.kswapd_sleeps_with_waiters:
                return False
        if pgdat.hopeless():
            return True
        if not self.pgdat_balanced(order):
            return False
        pgdat.writeback = False
        return True

    def pgdat_balanced(self, order: int) -> bool:
        """Are all zones above their high watermarks? For more than a page a quarter of all memory will do."""
        zones = self.pgdat.zones
        if not order:
            return all(zone.all_unreclaimable or zone.nr_free_pages > zone.watermarks.high for zone in zones)
        balanced = sum(zone.managed for zone in zones if zone.all_unreclaimable or _above_high(zone, order))
        return balanced >= sum(zone.managed for zone in zones) // 4

    async def balance_pgdat(self, order: int = 0) -> int:
        """Scan until the node is balanced or (4.12) a round has failed; the order up to which it was worth trying."""
        sc = ScanControl(GFP_KERNEL, self.task, 0, order=order, kswapd=True)
        if self.rules.max_kswapd_failures is not None:
            await self._only_round(sc)
        else:
            while not await self._round(sc):
                pass
        return sc.order

    async def _round(self, sc: ScanControl) -> bool:
        """3.6: one pass at each priority, until SWAP_CLUSTER_MAX pages are free. True once the node is balanced.

        A round without success is followed by the next: the kernel spins. Here that is to wait for the next page freed.
        If it was for more than a page, single pages will do from then on.
        """
        self.vmstat.pageoutrun += 1
        sc.nr_to_reclaim, sc.nr_reclaimed, sc.nr_scanned = 1 << 62, 0, 0
        for sc.priority in range(DEF_PRIORITY, -1, -1):
            if await self._pass(sc):
                if any(zone.all_unreclaimable for zone in self.pgdat.zones):
                    await self.vmscan.page_alloc.progress.wait(HZ_OVER_50)
                sc.order = 0
                return True
            await self.vmscan.stall.zones_scanned(sc)
            if sc.nr_reclaimed >= SWAP_CLUSTER_MAX:
                return False
        sc.order = 0
        await self.vmscan.page_alloc.progress.wait(HZ_OVER_50)
        return False

    async def _only_round(self, sc: ScanControl) -> None:
        """6.1: passes down to priority 1, which stays so long as enough is scanned and anything freed.

        What was wanted of more than a page is left to compaction once `compact_gap` pages are free. A round that frees
        nothing counts as a failure; kswapd gives up after too many (`Pgdat.hopeless`).
        """
        self.vmstat.pageoutrun += 1
        wanted = sum(max(zone.watermarks.high, SWAP_CLUSTER_MAX) for zone in self.pgdat.zones)
        sc.nr_to_reclaim = wanted
        while sc.priority >= 1:
            reclaimed_before, sc.nr_scanned = sc.nr_reclaimed, 0
            if await self._pass(sc):
                return
            if sc.nr_reclaimed >= 2 << sc.order:
                sc.order = 0
            await self.vmscan.stall.zones_scanned(sc)
            if sc.nr_scanned < wanted or sc.nr_reclaimed == reclaimed_before:
                sc.priority -= 1
        if not sc.nr_reclaimed:
            self.pgdat.kswapd_failures += 1

    async def _pass(self, sc: ScanControl) -> bool:
        """Scan the zones from the lowest to the highest that fails its high watermark; are all of them right now?"""
        balanced = True
        sc.under_min = False
        for lruvec in self.pgdat.lruvecs[: self._end_zone(sc.priority, sc.order) + 1]:
            zone = lruvec.zone
            if zone.all_unreclaimable and sc.priority != DEF_PRIORITY:
                continue
            order = self._testorder(zone, sc.order)
            if zone.nr_free_pages <= zone.watermarks.high + _balance_gap(zone) or not _above_high(zone, order):
                await self.vmscan.shrink_zone(lruvec, sc)
                self._note_unreclaimable(zone)
            if not zone.all_unreclaimable and not _above_high(zone, order):
                balanced = False
                sc.under_min |= zone.nr_free_pages <= zone.watermarks.min
        if self.pgdat.pfmemalloc_wait and self.vmscan.throttle.pfmemalloc_watermark_ok():
            self.pgdat.pfmemalloc_wait.wake_all()
        return balanced

    def _testorder(self, zone: Zone, order: int) -> int:
        """The size of blocks that a zone should have. 3.6 leaves it to compaction to make them of so much free memory
        as that needs (`compaction_suitable`), and reclaims single pages only.
        """
        suitable = zone.nr_free_pages > zone.watermarks.low + (2 << order)
        return 0 if suitable and self.rules.max_kswapd_failures is None else order

    def _end_zone(self, priority: int, order: int) -> int:
        """The index of the highest zone that fails its high watermark, -1 if there is none; those above age a little.
        """
        lruvecs = self.pgdat.lruvecs
        for index in range(len(lruvecs) - 1, -1, -1):
            zone = lruvecs[index].zone
            if zone.all_unreclaimable and priority != DEF_PRIORITY:
                continue
            self.vmscan.age_active_anon(lruvecs[index])
            if not _above_high(zone, order):
                return index
        return -1

    def _note_unreclaimable(self, zone: Zone) -> None:
        """Until 4.12 a zone is given up once it has been scanned several times over for nothing."""
        if self.rules.max_kswapd_failures is None:
            reclaimable = self.pgdat.zone_reclaimable_pages(zone)
            if zone.pages_scanned >= reclaimable * UNRECLAIMABLE_SCANS:
                zone.all_unreclaimable = True


def _above_high(zone: Zone, order: int) -> bool:
    return zone.watermark_ok(order, zone.span.kind, ALLOC_WMARK_HIGH)


def _balance_gap(zone: Zone) -> int:
    return min(zone.watermarks.low, -(-zone.managed // KSWAPD_ZONE_BALANCE_GAP_RATIO))
