"""SLAB since 4.6: no tags. Slabs from the reserve are passed over when an array is filled for everybody.

An entitled caller who finds nothing else takes an object straight from such a slab, and what is freed goes straight
back to it. Only the caller that made the cache grow brings a new slab's objects into the array, whatever slab it is.
"""

from __future__ import annotations

from itertools import chain, groupby
from operator import attrgetter

from testbed.mm import slab
from testbed.mm.gfp import gfp_pfmemalloc_allowed
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab


class KmemCache(slab.KmemCache):
    """`slab.KmemCache` with the pfmemalloc rules of 4.6 to 6.7."""

    def _alloc(self, gfp_mask: int, current: Task, checks: bool) -> Slab | None:
        taken = self._take_existing(gfp_mask, current, checks)
        if taken is not None:
            return taken
        page = self.page_alloc.alloc_page_nowait(gfp_mask, current)
        return None if page is None else self._get_grown(page, gfp_mask, current, checks, False)

    async def alloc_wait(self, gfp_mask: int, current: Task) -> Slab | None:
        """`____cache_alloc` for a caller that may sleep in the page allocator."""
        checks = self._checks(1)
        taken = self._take_existing(gfp_mask, current, checks)
        if taken is not None:
            return taken
        page = await self.page_alloc.alloc_page(gfp_mask, current)
        return None if page is None else self._get_grown(page, gfp_mask, current, checks, False)

    def _take_existing(self, gfp_mask: int, current: Task, checks: bool) -> Slab | None:
        if not self.array.entries:
            self._fill_array(checks)
        return self._get(gfp_mask, current, checks) or self._alloc_pfmemalloc(gfp_mask, current, checks)

    def _alloc_pfmemalloc(self, gfp_mask: int, current: Task, checks: bool) -> Slab | None:
        """`cache_alloc_pfmemalloc`: for an entitled caller, an object of the first slab, whatever slab it is."""
        if not checks or not self.free_objects or not gfp_pfmemalloc_allowed(gfp_mask, current, self._switches):
            return None
        taken = super()._first_slab(checks)
        if taken is None:
            return None
        taken.free -= 1
        self.free_objects -= 1
        self.inuse += 1
        if taken.free:
            self.slabs_partial[taken] = None
            self.slabs_partial.move_to_end(taken, last=False)
        return taken

    def _first_slab(self, checks: bool) -> Slab | None:
        """`get_valid_first_slab`: with free objects enough a slab from the reserve counts as any other from now on."""
        first = super()._first_slab(checks)
        if first is None or not checks or not first.pfmemalloc:
            return first
        if self.free_objects > self.free_limit:
            self._clear_pfmemalloc(first)
            return first
        if first.free == first.objects:
            self.slabs_free.append(first)
        else:
            self.slabs_partial[first] = None
        return self._first_ordinary()

    def _first_ordinary(self) -> Slab | None:
        """The first slab, partial ones before free ones, that is not from the reserve; off its list."""
        for other in chain(self.slabs_partial, self.slabs_free):
            if not other.pfmemalloc:
                if other in self.slabs_partial:
                    del self.slabs_partial[other]
                else:
                    self.slabs_free.remove(other)
                return other
        return None

    def _tag(self, slab: Slab, checks: bool) -> bool:
        """There are no tags."""
        return False

    def _grow(self, page: Page, checks: bool) -> None:
        """`cache_grow_begin`, `alloc_block`, `cache_grow_end`: the slab is known for what it is if that may matter."""
        new = self._new_free_slab(page)
        if new.pfmemalloc and not checks:
            new.pfmemalloc = False
            self.nr_pfmemalloc -= 1
        if self.array.entries:
            self.slabs_free.append(new)
        else:
            self._alloc_block(new, self.batchcount, checks)

    def free_bulk(self, slabs: list[Slab]) -> None:
        """`__cache_free` for each object: `cache_free_pfmemalloc` for those from the reserve."""
        if not self.nr_pfmemalloc or not self._checks(0):
            super().free_bulk(slabs)
            return
        for reserve, group in groupby(slabs, attrgetter("pfmemalloc")):
            if reserve:
                self._free_pfmemalloc(list(group))
            else:
                super().free_bulk(list(group))

    def _free_pfmemalloc(self, slabs: list[Slab]) -> None:
        """`cache_free_pfmemalloc`; a full array is flushed before anybody looks at what it is to take."""
        self._checks(len(slabs))
        if self.array.room <= 0:
            self._flush()
        self.inuse -= len(slabs)
        self._free_block(slabs)

    def _tags(self, slabs: list[Slab], checks: bool) -> bytes:
        return bytes(len(slabs))
