"""Where a reclaimer that gets nowhere waits (mm/vmscan.c): for congestion up to 5.15, by name and time since.

In both a page of swap never counts as congested: the swap cache's own backing device never is (3.6), and anonymous
pages are left out of the count (6.1). So `wait_iff_congested` only yields, and VMSCAN_THROTTLE_CONGESTED never happens.
To yield is here to wait for the next page freed or written, as a reclaimer would see nothing new before.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from testbed.mm.backing_dev import BackingDev
from testbed.mm.lruvec import SWAP_CLUSTER_MAX
from testbed.mm.page_alloc import HZ_OVER_50, JIFFY, PageAllocator
from testbed.mm.pgdat import Pgdat
from testbed.mm.scan_control import DEF_PRIORITY, ScanControl
from testbed.mm.sched import Task
from testbed.mm.wait import WaitQueue

HZ_OVER_10 = 0.1


class Stall(Protocol):
    """What a reclaimer does at each of the places where it may have to wait."""

    async def too_many_isolated(self, current: Task, stalls: int) -> bool:
        """Wait because too many pages are isolated, after `stalls` waits; True to look again, False to give up."""

    async def zone_scanned(self, sc: ScanControl) -> None:
        """Wait, if it is called for, after a pass over one zone's lists."""

    async def zones_scanned(self, sc: ScanControl) -> None:
        """Wait, if it is called for, after a pass over all zones."""


class CongestionWait:
    """3.4 and 3.6."""

    def __init__(self, page_alloc: PageAllocator, bdi: BackingDev) -> None:
        self.page_alloc = page_alloc
        self.vmstat = page_alloc.vmstat
        self.bdi = bdi

    async def too_many_isolated(self, current: Task, stalls: int) -> bool:
        """Sleep, as often as it takes."""
        await self.bdi.congestion_wait(HZ_OVER_10, current.nice)
        return not current.fatal_signal

    async def zone_scanned(self, sc: ScanControl) -> None:
        """Yield if so much of what was taken is under writeback: all of it at priority 12, half at 11, and so on."""
        if sc.nr_writeback and sc.nr_writeback >= sc.nr_taken >> (DEF_PRIORITY - sc.priority):
            await self.page_alloc.progress.wait(HZ_OVER_10, sc.current.nice)

    async def zones_scanned(self, sc: ScanControl) -> None:
        """From the fourth pass on kswapd lets writes end, unless GFP_ATOMIC may be failing meanwhile.

        A direct reclaimer would only yield, and has done so.
        """
        if not sc.kswapd or not sc.nr_scanned or sc.priority >= DEF_PRIORITY - 2:
            return
        if sc.under_min:
            self.vmstat.kswapd_skip_congestion_wait += 1
        else:
            await self.bdi.congestion_wait(HZ_OVER_10)


class Reason(Enum):
    """`enum vmscan_throttle_state`, each with its time limit in seconds."""

    WRITEBACK = HZ_OVER_10
    ISOLATED = HZ_OVER_50
    NOPROGRESS = JIFFY


class ReclaimThrottle:
    """6.1: `reclaim_throttle`. `nr_throttled_written` counts pages written while somebody waits for writeback."""

    def __init__(self, page_alloc: PageAllocator, pgdat: Pgdat) -> None:
        self.vmstat = page_alloc.vmstat
        self.pgdat = pgdat
        self.reclaim_wait = {reason: WaitQueue(page_alloc.run_queue) for reason in Reason}
        self._nr_writeback_throttled = 0
        self._nr_reclaim_start = 0

    async def reclaim_throttle(self, reason: Reason, current: Task, *, kswapd: bool = False) -> None:
        """Sleep for `reason`. Kernel threads other than kswapd are exempt: all may be waiting for their work."""
        if current.pf_kthread and not kswapd:
            return
        if reason is Reason.WRITEBACK and not self._nr_writeback_throttled:
            self._nr_reclaim_start = self.vmstat.nr_throttled_written
        self._nr_writeback_throttled += reason is Reason.WRITEBACK
        try:
            await self.reclaim_wait[reason].wait(reason.value, current.nice)
        finally:
            self._nr_writeback_throttled -= reason is Reason.WRITEBACK

    def acct_reclaim_writeback(self, written: int) -> None:
        """Writes of so many pages have ended: whoever waits has waited enough after SWAP_CLUSTER_MAX pages each."""
        if not self._nr_writeback_throttled:
            return
        self.vmstat.nr_throttled_written += written
        if self.vmstat.nr_throttled_written - self._nr_reclaim_start > SWAP_CLUSTER_MAX * self._nr_writeback_throttled:
            self.reclaim_wait[Reason.WRITEBACK].wake_all()

    def skip_throttle_noprogress(self) -> bool:
        """Is it no use to wait? Kswapd has given up, or not even half of what could be freed is being written."""
        reclaimable = sum(map(self.pgdat.zone_reclaimable_pages, self.pgdat.zones))
        return self.pgdat.hopeless() or 2 * self.vmstat.nr_writeback <= reclaimable

    async def too_many_isolated(self, current: Task, stalls: int) -> bool:
        """Sleep once; whoever still finds too many after that gives up."""
        if not stalls:
            await self.reclaim_throttle(Reason.ISOLATED, current)
        return not stalls and not current.fatal_signal

    async def zone_scanned(self, sc: ScanControl) -> None:
        """Kswapd waits when pages come round again that are still being written."""
        if not sc.kswapd:
            return
        if sc.nr_writeback and sc.nr_writeback == sc.nr_taken:
            self.pgdat.writeback = True
        if sc.nr_immediate:
            await self.reclaim_throttle(Reason.WRITEBACK, sc.current, kswapd=True)

    async def zones_scanned(self, sc: ScanControl) -> None:
        """`consider_reclaim_throttle`: one page in eight freed wakes the others; none at all at priority 1 waits."""
        if sc.nr_reclaimed > sc.nr_scanned >> 3:
            self.reclaim_wait[Reason.NOPROGRESS].wake_all()
        elif not sc.kswapd and sc.priority == 1 and not sc.nr_reclaimed and not self.skip_throttle_noprogress():
            await self.reclaim_throttle(Reason.NOPROGRESS, sc.current)
