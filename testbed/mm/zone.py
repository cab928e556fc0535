"""One zone: its free list, its watermarks and its LRU lists (struct zone, struct lruvec).

The free list is a stack of order-0 pages. LRU lists are ordered dictionaries whose end is the head of the kernel's
list (most recently added) and whose beginning is its tail, where reclaim takes pages from. The page cache is one
list of clean pages, read once: they need no I/O to be freed and are not read again.
"""

from __future__ import annotations

from collections import OrderedDict

from testbed.mm.gfp import ALLOC_HARDER, ALLOC_HIGH
from testbed.mm.page import Page
from testbed.mm.watermarks import PAGE_SIZE, Watermarks


class Zone:
    """All of RAM as one zone. `ram` is one writable buffer of `managed * PAGE_SIZE` bytes."""

    __slots__ = (
        "active_anon",
        "all_unreclaimable",
        "file",
        "free",
        "inactive_anon",
        "managed",
        "name",
        "nr_free_min",
        "pages",
        "pages_scanned",
        "watermarks",
    )

    def __init__(self, ram: memoryview, watermarks: Watermarks, name: str = "Normal") -> None:
        self.name = name
        self.managed = len(ram) // PAGE_SIZE
        self.pages = [Page(pfn, ram[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE], self) for pfn in range(self.managed)]
        self.free = self.pages[::-1]
        self.watermarks = watermarks
        self.active_anon: OrderedDict[Page, None] = OrderedDict()
        self.inactive_anon: OrderedDict[Page, None] = OrderedDict()
        self.file: OrderedDict[Page, None] = OrderedDict()
        self.pages_scanned = 0
        self.all_unreclaimable = False
        self.nr_free_min = self.managed

    @property
    def nr_free_pages(self) -> int:
        """NR_FREE_PAGES."""
        return len(self.free)


def zone_watermark_ok(free: int, mark: int, alloc_flags: int) -> bool:
    """`zone_watermark_ok` for order 0: would `free` pages still satisfy `mark` pages under these flags?"""
    return free > lowered_mark(mark, alloc_flags)


def lowered_mark(mark: int, alloc_flags: int) -> int:
    """The pages that must be left after all: ALLOC_HIGH halves the mark and ALLOC_HARDER takes a quarter off what is
    left, so GFP_ATOMIC stops at 3/8.
    """
    if alloc_flags & ALLOC_HIGH:
        mark -= mark // 2
    if alloc_flags & ALLOC_HARDER:
        mark -= mark // 4
    return mark
