"""`kmalloc_large` (mm/slub.c): more than a page of memory is a block of the page allocator's, without a slab."""

from __future__ import annotations

from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.slab_common import KmemCache, Slab
from testbed.mm.watermarks import PAGE_SIZE


class KmallocLarge(KmemCache):
    """Blocks of 2**order pages in the place of a cache: each is a slab of one object, made and freed with it.

    SLUB cuts objects of 8 KiB from larger blocks where it can; here they have blocks of their own.
    """

    def __init__(self, order: int, page_alloc: PageAllocator) -> None:
        super().__init__(f"kmalloc_large-{order}", PAGE_SIZE << order, 1, page_alloc)
        self.order = order

    def alloc(self, gfp_mask: int, current: Task) -> Slab | None:
        """One block, or None."""
        return self._taken(self.page_alloc.alloc_order_nowait(self.order, gfp_mask, current))

    async def alloc_wait(self, gfp_mask: int, current: Task) -> Slab | None:
        """`alloc` for a caller that may sleep."""
        return self._taken(await self.page_alloc.alloc_order(self.order, gfp_mask, current))

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """Up to `count` blocks, until the first that is not to be had."""
        taken: list[Slab] = []
        while len(taken) < count and (slab := self.alloc(gfp_mask, current)) is not None:
            taken.append(slab)
        return taken

    def free(self, slab: Slab) -> None:
        """Give a block back."""
        self.inuse -= 1
        self.nr_slabs -= 1
        self._vmstat.nr_slab_unreclaimable -= 1 << self.order
        self.page_alloc.free_order([slab.page, *slab.tail])

    def free_bulk(self, slabs: list[Slab]) -> None:
        """Give blocks back."""
        for slab in slabs:
            self.free(slab)

    def shrink(self) -> None:
        """Nothing is kept."""

    def _taken(self, pages: list[Page] | None) -> Slab | None:
        if pages is None:
            return None
        self.inuse += 1
        return self._new_block_slab(pages)


def kmalloc_large_order(size: int) -> int:
    """`get_order`: the order of the smallest block that holds `size` bytes."""
    return ((size - 1) // PAGE_SIZE).bit_length()
