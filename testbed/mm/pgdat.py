"""One memory node as reclaim sees it (pg_data_t): its zones, who is throttled for its sake, how often kswapd failed."""

from __future__ import annotations

from collections.abc import Sequence

from testbed.mm.lruvec import Lruvec
from testbed.mm.swapfile import SwapInfo
from testbed.mm.wait import WaitQueue
from testbed.mm.zone import Zone
from testbed.rules import Rules


class Pgdat:
    """The node that `zones` belong to, lowest zone first.

    `kswapd_order` is the largest order that kswapd has been woken for and has not looked at yet. `writeback` is
    PGDAT_WRITEBACK: kswapd has met nothing but pages under writeback since the node was balanced.
    """

    __slots__ = (
        "kswapd_failures",
        "kswapd_order",
        "lruvecs",
        "max_kswapd_failures",
        "pfmemalloc_wait",
        "swap",
        "writeback",
        "zones",
    )

    def __init__(self, zones: Sequence[Zone], swap: SwapInfo, rules: Rules) -> None:
        self.zones = zones
        self.lruvecs = [Lruvec(zone) for zone in zones]
        self.swap = swap
        self.pfmemalloc_wait = WaitQueue()
        self.max_kswapd_failures = rules.max_kswapd_failures
        self.kswapd_failures = 0
        self.kswapd_order = 0
        self.writeback = False

    def hopeless(self) -> bool:
        """Has kswapd failed so often that it no longer tries (MAX_RECLAIM_RETRIES)? Never before 4.12."""
        return self.max_kswapd_failures is not None and self.kswapd_failures >= self.max_kswapd_failures

    def zone_reclaimable_pages(self, zone: Zone) -> int:
        """Pages that reclaim could free: page cache, and anonymous pages so long as there is a slot for one."""
        if self.swap.inuse_pages >= self.swap.pages:
            return len(zone.file)
        return len(zone.file) + len(zone.active_anon) + len(zone.inactive_anon)

    def all_unreclaimable(self) -> bool:
        """Has kswapd given every zone up?"""
        return all(zone.all_unreclaimable for zone in self.zones)
