"""One reclaimer's request (struct scan_control)."""

from __future__ import annotations

from dataclasses import dataclass, field

from testbed.mm.gfp import GFP_IO
from testbed.mm.page import Page
from testbed.mm.sched import Task

DEF_PRIORITY = 12


@dataclass(slots=True)
class ScanControl:
    """What a reclaimer wants and what it has reached; `kswapd` says that it is the reclaim thread,
    `order` for how large a block it was woken.

    `nr_taken`, `nr_writeback` and `nr_immediate` are of its last pass over a zone: pages taken off a list, those of
    them that were being written, and (6.1) those that were still being written when they came round again.
    """

    gfp_mask: int
    current: Task
    nr_to_reclaim: int
    priority: int = DEF_PRIORITY
    kswapd: bool = False
    order: int = 0
    nr_scanned: int = 0
    nr_reclaimed: int = 0
    nr_taken: int = 0
    nr_writeback: int = 0
    nr_immediate: int = 0
    under_min: bool = False
    """Is some zone below its min watermark after kswapd's pass (`has_under_min_watermark_zone`)?"""
    cost: int = 0
    """What it has done, in pages looked at."""
    writes: list[Page] = field(default_factory=list)

    @property
    def may_io(self) -> bool:
        """Swap writes need __GFP_IO; anonymous pages do not need __GFP_FS."""
        return bool(self.gfp_mask & GFP_IO)
