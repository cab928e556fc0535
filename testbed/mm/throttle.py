"""Throttling of direct reclaimers (patches 15, 16; mm/vmscan.c): they sleep while too little of the reserve is left.

It does not look at what swap is on, in spite of the patch's title. A kernel thread is never throttled.
"""

from __future__ import annotations

import asyncio

from testbed.mm.gfp import GFP_FS
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.pgdat import Pgdat
from testbed.mm.sched import Task
from testbed.mm.zone_layout import ZoneType

HZ = 1.0
"""Seconds in HZ jiffies."""


class Throttle:
    """Puts direct reclaimers to sleep on `pgdat.pfmemalloc_wait`."""

    def __init__(self, page_alloc: PageAllocator, pgdat: Pgdat) -> None:
        self.page_alloc = page_alloc
        self.pgdat = pgdat
        self.vmstat = page_alloc.vmstat
        self.switches = page_alloc.switches
        self._ignores_unreclaimable = self.switches.rules.throttle_ignores_unreclaimable

    def pfmemalloc_watermark_ok(self) -> bool:
        """Is more than half of the reserve below min still free? If it is not, kswapd is woken.

        6.1 calls it `allow_direct_reclaim`, and also answers yes when kswapd has given up or no zone counts.
        """
        pgdat = self.pgdat
        if pgdat.hopeless():
            return True
        reserve = free = 0
        for zone in pgdat.zones:
            if zone.span.kind > ZoneType.NORMAL:
                continue
            nr_free = zone.nr_free_pages
            if self._ignores_unreclaimable and not (nr_free or pgdat.zone_reclaimable_pages(zone)):
                continue
            reserve += zone.watermarks.min
            free += nr_free
        if free > reserve // 2 or (self._ignores_unreclaimable and not reserve):
            return True
        self.page_alloc.wakeup_kswapd(0)
        return False

    async def throttle_direct_reclaim(self, gfp_mask: int, current: Task) -> bool:
        """Sleep until half the reserve is free again; a caller without __GFP_FS sleeps at most HZ. True if it slept.

        V9 and 3.6 look for a fatal signal last, so a dying task still counts as throttled; 6.1 looks first.
        """
        if current.pf_kthread or (current.fatal_signal and self.switches.rules.throttle_spares_dying):
            return False
        if self.pfmemalloc_watermark_ok():
            return False
        self.vmstat.throttle_low_reserve += 1
        if not self.switches.throttle_direct_reclaim:
            return False
        await self._throttle(gfp_mask, current)
        return True

    async def _throttle(self, gfp_mask: int, current: Task) -> None:
        vmstat = self.vmstat
        if self.switches.count_throttle:
            vmstat.pgscan_direct_throttle += 1
        else:
            vmstat.throttle_uncounted += 1
        vmstat.throttle_waits += 1
        vmstat.nr_throttled += 1
        try:
            if not gfp_mask & GFP_FS:
                await self._wait_at_most_hz(current)
                return
            while not current.fatal_signal and not self.pfmemalloc_watermark_ok():
                await self.pgdat.pfmemalloc_wait.wait()
        finally:
            vmstat.nr_throttled -= 1

    async def _wait_at_most_hz(self, current: Task) -> None:
        """`wait_event_interruptible_timeout`: being woken is not enough, the reserve must be there or the time over."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + HZ
        while (left := deadline - clock()) > 0 and not current.fatal_signal and not self.pfmemalloc_watermark_ok():
            await self.pgdat.pfmemalloc_wait.wait(left)
