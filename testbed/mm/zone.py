"""One zone: its free pages, its watermarks and its LRU lists (struct zone, struct lruvec).

LRU lists are ordered dictionaries whose end is the head of the kernel's list (most recently added) and whose beginning
is its tail, where reclaim takes pages from. The page cache is one list of clean pages, read once: they need no I/O to
be freed and are not read again.
"""

from __future__ import annotations

from collections import OrderedDict

from testbed.mm.free_area import FreeArea
from testbed.mm.gfp import ALLOC_HARDER, ALLOC_HIGH, ALLOC_NO_WATERMARKS, ALLOC_OOM, ALLOC_WMARK_MASK
from testbed.mm.page import Page
from testbed.mm.per_cpu_pages import PerCpuPages
from testbed.mm.watermarks import PAGE_SIZE, Watermarks
from testbed.mm.zone_layout import ZoneSpan, ZoneType
from testbed.rules import V9, Rules

NO_FLOOR = -(1 << 62)
"""Even with nothing free, there may be a page on the per-cpu list."""
ALLOC_MODIFIERS = ALLOC_HIGH | ALLOC_HARDER | ALLOC_NO_WATERMARKS | ALLOC_OOM


class Zone:
    """The part `span` of `ram`, a writable buffer of whole pages; without a span, all of it as ZONE_NORMAL.

    `marks[mark][classzone]` is what a request for that class must leave of this zone at that watermark: the watermark
    and `lowmem_reserve[classzone]`.
    """

    __slots__ = (
        "active_anon",
        "all_unreclaimable",
        "file",
        "free",
        "inactive_anon",
        "lowmem_reserve",
        "managed",
        "marks",
        "pages",
        "pages_scanned",
        "pcp",
        "rules",
        "span",
        "watermarks",
    )

    def __init__(
        self,
        ram: memoryview,
        watermarks: Watermarks,
        span: ZoneSpan | None = None,
        lowmem_reserve: tuple[int, ...] = (0,) * len(ZoneType),
        rules: Rules = V9,
    ) -> None:
        self.span = span = span or ZoneSpan(ZoneType.NORMAL, 0, 0, len(ram) // PAGE_SIZE)
        self.managed = span.pages
        self.pages = [
            Page(pfn, ram[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE], self)
            for pfn in range(span.start, span.start + span.pages)
        ]
        self.rules = rules
        self.free = FreeArea(self.pages)
        self.pcp = PerCpuPages(span.pages, rules)
        self.lowmem_reserve = lowmem_reserve
        self.set_watermarks(watermarks)
        self.active_anon: OrderedDict[Page, None] = OrderedDict()
        self.inactive_anon: OrderedDict[Page, None] = OrderedDict()
        self.file: OrderedDict[Page, None] = OrderedDict()
        self.pages_scanned = 0
        self.all_unreclaimable = False

    def __repr__(self) -> str:
        return f"Node {self.span.node}, zone {self.span.kind.title}"

    @property
    def nr_free_pages(self) -> int:
        """NR_FREE_PAGES: those on the per-cpu list are not among them."""
        return self.free.nr_free

    def set_watermarks(self, watermarks: Watermarks) -> None:
        """Give the zone other watermarks."""
        self.watermarks = watermarks
        self.pcp.set_low_watermark(watermarks.low)
        self.marks = tuple(
            tuple(mark + reserve for reserve in self.lowmem_reserve)
            for mark in (watermarks.min, watermarks.low, watermarks.high)
        )

    def floor(self, classzone: int, alloc_flags: int) -> int:
        """A request for one page under these flags passes while more than so many pages are free."""
        if not alloc_flags & ALLOC_MODIFIERS:
            return self.marks[alloc_flags & ALLOC_WMARK_MASK][classzone]
        if alloc_flags & ALLOC_NO_WATERMARKS:
            return NO_FLOOR
        reserve = self.lowmem_reserve[classzone]
        mark = self.marks[alloc_flags & ALLOC_WMARK_MASK][classzone] - reserve
        return lowered_mark(mark, alloc_flags, self.rules) + reserve

    def watermark_ok(self, order: int, classzone: int, alloc_flags: int) -> bool:
        """`zone_watermark_ok`: may a request for 2**order pages be served from this zone?"""
        if alloc_flags & ALLOC_NO_WATERMARKS:
            return True
        floor = self.floor(classzone, alloc_flags)
        free = self.free.nr_free - ((1 << order) - 1)
        if free <= floor or not order:
            return free > floor
        if self.rules.order_checks_free_area:
            return self.free.has_block(order)
        counts = self.free.counts()
        mark = floor - self.lowmem_reserve[classzone]
        for lower in range(order):
            free -= counts[lower] << lower
            mark >>= 1
            if free <= mark:
                return False
        return True


def lowered_mark(mark: int, alloc_flags: int, rules: Rules = V9) -> int:
    """The pages that must be left after all: ALLOC_HIGH halves the mark and ALLOC_HARDER takes a quarter off what is
    left, so GFP_ATOMIC stops at 3/8. ALLOC_OOM halves it, too.
    """
    if alloc_flags & ALLOC_HIGH:
        mark -= mark // 2
    if alloc_flags & ALLOC_HARDER and (alloc_flags & ALLOC_HIGH or not rules.harder_needs_high):
        mark -= mark // 4
    if alloc_flags & ALLOC_OOM:
        mark -= mark // 2
    return mark
