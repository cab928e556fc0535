"""What SLAB and SLUB share (mm/slab_common.c): slabs of equal objects, and the interface that callers use.

An object is represented by the slab that it lies in: what matters here is how many objects a slab has left and
whether its page came from the reserve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE


class Slab:
    """One slab: `free` of its `objects` are unused. A reference to it stands for an object in it.

    `tail` holds the pages after the first. `misaligned` counts pointers to SLAB objects that callers got with bit 0
    set. `rank` orders the slabs of SLUB's list of partial ones. `pfmemalloc` is what `slab_test_pfmemalloc` reads.
    """

    __slots__ = ("cache", "free", "misaligned", "objects", "page", "pfmemalloc", "rank", "tail")

    def __init__(self, cache: KmemCache, page: Page, objects: int, tail: Sequence[Page] = ()) -> None:
        self.cache = cache
        self.page = page
        self.tail = tail
        self.objects = objects
        self.free = objects
        self.misaligned = 0
        self.rank = 0
        self.pfmemalloc = page.pfmemalloc


class KmemCache(ABC):
    """`struct kmem_cache` on one CPU of one node: objects of `object_size` bytes, so many in a slab of one page."""

    def __init__(self, name: str, object_size: int, objects_per_slab: int, page_alloc: PageAllocator) -> None:
        self.name = name
        self.object_size = object_size
        self.objects_per_slab = objects_per_slab
        self.page_alloc = page_alloc
        self.nr_slabs = 0
        self.inuse = 0
        self._switches = page_alloc.switches
        self._vmstat = page_alloc.vmstat
        self._unused: list[Slab] = []

    @abstractmethod
    def alloc(self, gfp_mask: int, current: Task) -> Slab | None:
        """`kmem_cache_alloc`: one object, or None. Never sleeps; a caller with __GFP_WAIT uses `alloc_wait`."""

    @abstractmethod
    async def alloc_wait(self, gfp_mask: int, current: Task) -> Slab | None:
        """`kmem_cache_alloc` for a caller that may sleep in the page allocator."""

    @abstractmethod
    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """`kmem_cache_alloc_bulk`: up to `count` objects, fewer only where `alloc` would have failed."""

    def has_listed(self, count: int, *, allowed: bool) -> bool:
        """Will `alloc_bulk` find so many objects without a new page? A True can be relied on.

        `allowed`: for a caller who may use objects of the reserve.
        """
        return False

    @abstractmethod
    def free(self, slab: Slab) -> None:
        """`kmem_cache_free`: give one object of `slab` back."""

    @abstractmethod
    def free_bulk(self, slabs: list[Slab]) -> None:
        """`kmem_cache_free_bulk`."""

    @abstractmethod
    def shrink(self) -> None:
        """`kmem_cache_shrink`: give every empty slab back to the page allocator."""

    def _new_slabs(self, pages: list[Page]) -> list[Slab]:
        """Slabs of one page each, all of their objects taken."""
        unused, slabs = self._unused, []
        from_reserve = pfmemalloc = 0
        for page in pages:
            slab = unused.pop() if unused else Slab(self, page, self.objects_per_slab)
            slab.page = page
            slab.free = 0
            slab.pfmemalloc = page.pfmemalloc
            if page.from_reserve:
                from_reserve += 1
                pfmemalloc += page.pfmemalloc
            slabs.append(slab)
        self._count_new(len(slabs), len(slabs), from_reserve, pfmemalloc)
        return slabs

    def _new_block_slab(self, pages: list[Page]) -> Slab:
        """A slab of several pages, all of its objects taken."""
        page = pages[0]
        slab = Slab(self, page, len(pages) * PAGE_SIZE // self.object_size, pages[1:])
        slab.free = 0
        reserve = len(pages) if page.from_reserve else 0
        self._count_new(1, len(pages), reserve, reserve if page.pfmemalloc else 0)
        return slab

    def _count_new(self, slabs: int, pages: int, from_reserve: int, pfmemalloc: int) -> None:
        self.nr_slabs += slabs
        vmstat = self._vmstat
        vmstat.nr_slab_unreclaimable += pages
        vmstat.no_watermark_slabs += from_reserve
        vmstat.slab_pfmemalloc_pages += pfmemalloc

    def _discard_bulk(self, empty: list[Slab]) -> None:
        """Give the pages of empty slabs of one page back; the slabs stand for other pages later."""
        self.nr_slabs -= len(empty)
        self._vmstat.nr_slab_unreclaimable -= len(empty)
        self.page_alloc.free_slab_pages([slab.page for slab in empty])
        self._unused += empty


def runs(slabs: list[Slab]) -> Iterator[tuple[Slab, int]]:
    """Each slab and how often in a row it occurs, over and over."""
    last, count = slabs[0] if slabs else None, 0
    for slab in slabs:
        if slab is last:
            count += 1
        else:
            assert last is not None
            yield last, count
            last, count = slab, 1
    if last is not None:
        yield last, count
