"""One page frame: the parts of `struct page` (and of the one pte that maps it) that reclaim and swap look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.mm.memory import Vma
    from testbed.mm.zone import Zone


class Page:
    """A page frame of emulated RAM. Its bytes are `ram[offset:offset + PAGE_SIZE]`.

    `mapping` and `index` name the pte that maps it (anonymous memory here is never shared); `swap_entry` is its
    slot while it is in the swap cache, 0 otherwise; `young` is the accessed bit of that pte, and `referenced` says that
    a scan has found it set once before (6.1). `from_reserve` is how it was allocated, `pfmemalloc` what patch 02 makes
    of that (`set_page_pfmemalloc`, `page_is_pfmemalloc` from 4.1 on).
    """

    __slots__ = (
        "active",
        "buffer",
        "dirty",
        "from_reserve",
        "index",
        "locked",
        "lru",
        "mapping",
        "offset",
        "pfmemalloc",
        "pfn",
        "pins",
        "readahead",
        "reclaim",
        "referenced",
        "swap_entry",
        "uptodate",
        "waiters",
        "writeback",
        "young",
        "zone",
    )

    def __init__(self, pfn: int, buffer: memoryview, zone: Zone) -> None:
        self.pfn = pfn
        self.zone = zone
        self.offset = pfn << 12
        self.buffer = buffer
        self.waiters: list[object] | None = None
        self.reset()

    def reset(self) -> None:
        """`prep_new_page`: forget the previous owner."""
        self.mapping: Vma | None = None
        self.index = 0
        self.swap_entry = 0
        self.pins = 0
        self.pfmemalloc = self.from_reserve = self.active = self.dirty = self.locked = self.lru = False
        self.readahead = self.reclaim = self.referenced = self.uptodate = self.writeback = self.young = False

    def __repr__(self) -> str:
        return f"Page({self.pfn})"
