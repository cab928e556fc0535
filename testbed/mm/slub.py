"""SLUB (mm/slub.c, 3.6 rules): caches of equal objects, one CPU slab, a list of partial slabs, and pfmemalloc.

An object is represented by the slab that it lies in: what matters here is how many objects a slab has left and
whether its page came from the reserve. Patch 02 makes objects of such slabs available to entitled callers only;
patch 03 leaves that test out of the fast path, so an ordinary caller may drain the CPU slab an entitled one left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from testbed.mm.gfp import gfp_pfmemalloc_allowed
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE


class Slab:
    """One slab page: `free` of its objects are unused. A reference to it stands for an object in it."""

    __slots__ = ("cache", "free", "objects", "page", "partial", "pfmemalloc")

    def __init__(self, cache: KmemCache, page: Page, objects: int) -> None:
        self.cache = cache
        self.page = page
        self.objects = objects
        self.free = objects
        self.partial = False
        self.pfmemalloc = page.pfmemalloc


class KmemCache:
    """`struct kmem_cache` with slabs of one page, on one CPU of one node.

    Objects are `object_size` bytes. As many empty slabs stay on the partial list as `set_min_partial` allows.
    """

    def __init__(self, name: str, object_size: int, page_alloc: PageAllocator) -> None:
        self.name = name
        self.object_size = object_size
        self.objects_per_slab = PAGE_SIZE // object_size
        self.min_partial = max(5, min(10, (object_size.bit_length() - 1) // 2))
        self.page_alloc = page_alloc
        self.nr_slabs = 0
        self.inuse = 0
        self._cpu_slab: Slab | None = None
        self._partial: OrderedDict[Slab, None] = OrderedDict()
        self._nr_partial_pfmemalloc = 0
        self._unused: list[Slab] = []
        self._switches = page_alloc.switches
        self._vmstat = page_alloc.vmstat

    def alloc(self, gfp_mask: int, current: Task) -> Slab | None:
        """`slab_alloc`: one object, or None. Never sleeps; a caller with __GFP_WAIT uses `alloc_wait`."""
        slab = self._take_fast(gfp_mask, current)
        if slab is not None:
            return slab
        slab = self._take_partial(gfp_mask, current)
        if slab is not None:
            return slab
        page = self.page_alloc.alloc_page_nowait(gfp_mask, current)
        return None if page is None else self._take_new(page, gfp_mask, current)

    async def alloc_wait(self, gfp_mask: int, current: Task) -> Slab | None:
        """`slab_alloc` for a caller that may sleep in the page allocator."""
        slab = self._take_fast(gfp_mask, current) or self._take_partial(gfp_mask, current)
        if slab is not None:
            return slab
        page = await self.page_alloc.alloc_page(gfp_mask, current)
        return None if page is None else self._take_new(page, gfp_mask, current)

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """`kmem_cache_alloc_bulk`: up to `count` objects, fewer only where `alloc` would have failed."""
        taken: list[Slab] = []
        slab = self._take_fast(gfp_mask, current) if count else None
        if slab is not None:
            taken.append(slab)
            more = min(slab.free, count - 1)
            whole = more > 0 and slab is self._cpu_slab
            if whole and self.pfmemalloc_match(slab, gfp_mask, current, fast=True, count=more):
                slab.free -= more
                self.inuse += more
                taken.extend([slab] * more)
        if len(taken) < count and self._partial:
            taken += self._take_partial_bulk(count - len(taken), gfp_mask, current)
        if len(taken) < count:
            taken += self._take_new_bulk(count - len(taken), gfp_mask, current)
        return taken

    def _take_partial_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """Up to `count` objects of the partial slabs that this caller may use, one slab used up after the other."""
        allowed = not self._nr_partial_pfmemalloc or gfp_pfmemalloc_allowed(gfp_mask, current, self._switches)
        if not allowed and self._nr_partial_pfmemalloc == len(self._partial):
            self._vmstat.slab_pfmemalloc_mismatch += len(self._partial)
            return []
        chosen: list[Slab] = []
        taken: list[Slab] = []
        skipped = mismatches = 0
        for slab in self._partial:
            if slab.pfmemalloc and not allowed:
                skipped += 1
                continue
            mismatches += skipped
            chosen.append(slab)
            taken += [slab] * slab.free
            if len(taken) >= count:
                break
        else:
            mismatches += skipped
        self._vmstat.slab_pfmemalloc_mismatch += mismatches
        for slab in chosen:
            self._del_partial(slab)
            slab.free = 0
        if chosen:
            self._replace_cpu_slab(chosen[-1], len(taken) - count)
        del taken[count:]
        self.inuse += len(taken)
        return taken

    def _replace_cpu_slab(self, slab: Slab, free: int) -> None:
        """Make `slab` the CPU slab, with so many objects left (none if that is negative)."""
        if self._cpu_slab is not None:
            self._deactivate()
        slab.free = max(0, free)
        self._cpu_slab = slab

    def _take_new_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """Up to `count` objects of new slabs, when no other will do; whoever gets a new page may use all of it."""
        size = self.objects_per_slab
        wanted = -(-count // size)
        pages = self.page_alloc.alloc_pages_nowait(wanted, gfp_mask, current)
        looks = min(wanted, len(pages) + 1)
        self._vmstat.slab_pfmemalloc_mismatch += (looks - 1) * len(self._partial)
        if not pages:
            return []
        slabs = self._new_slabs(pages)
        taken = slabs * size
        for number in range(size):
            taken[number::size] = slabs
        self._replace_cpu_slab(slabs[-1], len(taken) - count)
        del taken[count:]
        self.inuse += len(taken)
        return taken

    def _new_slabs(self, pages: list[Page]) -> list[Slab]:
        """Slabs in new pages, all of their objects taken."""
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
        self.nr_slabs += len(slabs)
        vmstat = self._vmstat
        vmstat.nr_slab_unreclaimable += len(slabs)
        vmstat.no_watermark_slabs += from_reserve
        vmstat.slab_pfmemalloc_pages += pfmemalloc
        return slabs

    def free(self, slab: Slab) -> None:
        """`slab_free`: give one object of `slab` back."""
        slab.free += 1
        self.inuse -= 1
        if slab is self._cpu_slab:
            return
        if slab.free == slab.objects and len(self._partial) >= self.min_partial:
            self._discard(slab)
        elif not slab.partial:
            self._add_partial(slab)

    def free_bulk(self, slabs: list[Slab]) -> None:
        """`kmem_cache_free_bulk`."""
        empty: list[Slab] = []
        objects, enough = self.objects_per_slab, self.min_partial - (self.objects_per_slab > 1)
        partial, cpu_slab = self._partial, self._cpu_slab
        for slab, count in runs(slabs):
            if count == objects and len(partial) >= enough and slab is not cpu_slab:
                empty.append(slab)
            else:
                self._free_run(slab, count, empty)
        self.inuse -= len(slabs)
        if empty:
            self._discard_bulk(empty)

    def _free_run(self, slab: Slab, count: int, empty: list[Slab]) -> None:
        """`free` for `count` objects of one slab in a row; the slab joins `empty` if it is to be discarded."""
        slab.free += count
        if slab is self._cpu_slab:
            return
        partial = self._partial
        nr_partial = len(partial) + (count > 1 and not slab.partial)
        if slab.free == slab.objects and nr_partial >= self.min_partial:
            if slab.partial:
                self._del_partial(slab)
            empty.append(slab)
        elif not slab.partial:
            self._add_partial(slab)

    def _discard_bulk(self, empty: list[Slab]) -> None:
        """Give the pages of empty slabs back; the slabs stand for other pages later."""
        self.nr_slabs -= len(empty)
        self._vmstat.nr_slab_unreclaimable -= len(empty)
        self.page_alloc.free_slab_pages([slab.page for slab in empty])
        self._unused += empty

    def shrink(self) -> None:
        """`kmem_cache_shrink`: deactivate the CPU slab and give every empty slab back to the page allocator."""
        if self._cpu_slab is not None:
            self._deactivate()
        for slab in [slab for slab in self._partial if slab.free == slab.objects]:
            self._discard(slab)

    def pfmemalloc_match(self, slab: Slab, gfp_mask: int, current: Task, *, fast: bool = False, count: int = 1) -> bool:
        """`pfmemalloc_match`; with patch 03 the fast path does not ask."""
        if not slab.pfmemalloc or gfp_pfmemalloc_allowed(gfp_mask, current, self._switches):
            return True
        if fast and self._switches.slub_unchecked_fast_path:
            self._vmstat.slab_pfmemalloc_leaked += count
            return True
        return False

    def _take_fast(self, gfp_mask: int, current: Task) -> Slab | None:
        slab = self._cpu_slab
        if slab is None or not slab.free:
            return None
        if slab.pfmemalloc and not self.pfmemalloc_match(slab, gfp_mask, current, fast=True):
            self._vmstat.slab_fast_path_refused += 1
            self._deactivate()
            return None
        slab.free -= 1
        self.inuse += 1
        return slab

    def _take_partial(self, gfp_mask: int, current: Task) -> Slab | None:
        """`get_partial_node`: the first partial slab that this caller may use becomes the CPU slab."""
        if not self._partial:
            return None
        if not self._nr_partial_pfmemalloc or gfp_pfmemalloc_allowed(gfp_mask, current, self._switches):
            return self._take_listed(next(iter(self._partial)))
        if self._nr_partial_pfmemalloc == len(self._partial):
            self._vmstat.slab_pfmemalloc_mismatch += self._nr_partial_pfmemalloc
            return None
        skipped = 0
        for slab in self._partial:
            if not slab.pfmemalloc:
                break
            skipped += 1
        self._vmstat.slab_pfmemalloc_mismatch += skipped
        return self._take_listed(slab)

    def _take_listed(self, slab: Slab) -> Slab:
        self._del_partial(slab)
        return self._take_from(slab)

    def _take_new(self, page: Page, gfp_mask: int, current: Task) -> Slab:
        """`new_slab`: take the first object; a slab that this caller may not use is put aside after that."""
        slab = self._new_slabs([page])[0]
        slab.free = slab.objects
        usable = self.pfmemalloc_match(slab, gfp_mask, current)
        taken = self._take_from(slab)
        if not usable:
            self._deactivate()
        return taken

    def _take_from(self, slab: Slab) -> Slab:
        if self._cpu_slab is not None:
            self._deactivate()
        self._cpu_slab = slab
        slab.free -= 1
        self.inuse += 1
        return slab

    def _deactivate(self) -> None:
        slab, self._cpu_slab = self._cpu_slab, None
        if slab is None or not slab.free:
            return
        if slab.free == slab.objects and len(self._partial) >= self.min_partial:
            self._discard(slab)
        else:
            self._add_partial(slab)

    def _add_partial(self, slab: Slab) -> None:
        slab.partial = True
        self._partial[slab] = None
        self._nr_partial_pfmemalloc += slab.pfmemalloc

    def _del_partial(self, slab: Slab) -> None:
        slab.partial = False
        del self._partial[slab]
        self._nr_partial_pfmemalloc -= slab.pfmemalloc

    def _discard(self, slab: Slab) -> None:
        if slab.partial:
            self._del_partial(slab)
        self._discard_bulk([slab])


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
