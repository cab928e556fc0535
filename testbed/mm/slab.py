"""SLAB (mm/slab.c, 3.6): arrays of free objects over lists of slabs, and pfmemalloc as bit 0 of a pointer.

Patch 02 tags an object of a slab from the reserve when it enters an array, and lets only an entitled caller take it.
One that is not, and finds nothing else there, makes the cache grow: if that works memory is not short any more, and
the tagged object's slab becomes an ordinary one. Patch 13 leaves all this out while there is no SOCK_MEMALLOC socket.

Left out are the timer that trims idle arrays, and the memory of `struct slab` where it lies outside its slab.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from testbed.mm import slab_common
from testbed.mm.array_cache import SHARED_FACTOR, ArrayCache, cache_estimate, cache_limit
from testbed.mm.gfp import gfp_pfmemalloc_allowed
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab, runs
from testbed.mm.watermarks import PAGE_SIZE


class Pfmemalloc:
    """What all caches of a host share: `memalloc_socks()` is how many SOCK_MEMALLOC sockets there are.

    `active` (`pfmemalloc_active`) says that some slab may come from the reserve.
    """

    def __init__(self, memalloc_socks: Callable[[], int]) -> None:
        self.memalloc_socks = memalloc_socks
        self.active = False


class KmemCache(slab_common.KmemCache):
    """A cache with slabs of one page, one CPU's array, and the array that a node's CPUs share."""

    def __init__(self, name: str, object_size: int, page_alloc: PageAllocator, pfmemalloc: Pfmemalloc) -> None:
        super().__init__(name, object_size, cache_estimate(object_size), page_alloc)
        limit = cache_limit(object_size)
        self.batchcount = (limit + 1) // 2
        self.free_limit = 2 * self.batchcount + self.objects_per_slab
        self.pfmemalloc = pfmemalloc
        self.array = ArrayCache(limit)
        self.shared = ArrayCache(SHARED_FACTOR * self.batchcount if object_size <= PAGE_SIZE else 0)
        self.slabs_partial: OrderedDict[Slab, None] = OrderedDict()
        self.slabs_free: deque[Slab] = deque()
        self.free_objects = 0
        self.nr_pfmemalloc = 0
        self._nr_misaligned = 0
        self._knows_pfmemalloc = self._switches.slab_pfmemalloc
        self._inline = self._switches.slab_inline

    def alloc(self, gfp_mask: int, current: Task) -> Slab | None:
        """`____cache_alloc`: one object, or None. Never sleeps; a caller with __GFP_WAIT uses `alloc_wait`."""
        return self._alloc(gfp_mask, current, self._checks(1))

    def _alloc(self, gfp_mask: int, current: Task, checks: bool) -> Slab | None:
        slab = self._get(gfp_mask, current, checks)
        if slab is not None:
            return slab
        force_refill = len(self.array) > 0
        if not force_refill and self._fill_array(checks):
            return self._get(gfp_mask, current, checks)
        page = self.page_alloc.alloc_page_nowait(gfp_mask, current)
        return None if page is None else self._get_grown(page, gfp_mask, current, checks, force_refill)

    async def alloc_wait(self, gfp_mask: int, current: Task) -> Slab | None:
        """`____cache_alloc` for a caller that may sleep in the page allocator."""
        checks = self._checks(1)
        slab = self._get(gfp_mask, current, checks)
        if slab is not None:
            return slab
        force_refill = len(self.array) > 0
        if not force_refill and self._fill_array(checks):
            return self._get(gfp_mask, current, checks)
        page = await self.page_alloc.alloc_page(gfp_mask, current)
        return None if page is None else self._get_grown(page, gfp_mask, current, checks, force_refill)

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """`alloc` until it fails, `count` times at most."""
        checks = self._checks(count)
        taken: list[Slab] = []
        while len(taken) < count:
            refilled = not self.array.entries and self._fill_array(checks)
            objects = self._pop_plain(count - len(taken), gfp_mask, current, checks)
            if not objects:
                get = self._get if refilled else self._alloc
                slab = get(gfp_mask, current, checks)
                if slab is None:
                    break
                objects = [slab]
            taken += objects
        return taken

    def _checks(self, objects: int) -> bool:
        """Whether tags are looked at and set in a call for so many objects: with patch 13, if there is need for it."""
        if not self._knows_pfmemalloc or self.pfmemalloc.memalloc_socks():
            return self._knows_pfmemalloc
        if self._inline:
            self._vmstat.slab_inlined += objects
        else:
            self._vmstat.slab_not_inlined += objects
        return not self._inline

    def _pop_plain(self, count: int, gfp_mask: int, current: Task, checks: bool) -> list[Slab]:
        """Up to `count` objects from the top of the array, as far as tags do not matter to this caller."""
        entries, tags = self.array.entries, self.array.tags
        count = min(count, len(entries))
        if not count:
            return []
        tagged = tags.find(1, len(tags) - count) >= 0
        if tagged and not (checks and gfp_pfmemalloc_allowed(gfp_mask, current, self._switches)):
            count = min(count, len(tags) - 1 - tags.rfind(1))
            if not count:
                return []
        taken = entries[: -count - 1 : -1]
        del entries[-count:], tags[-count:]
        self.inuse += count
        if self.nr_pfmemalloc:
            self._count_leaked(taken, gfp_mask, current)
        return taken

    def _get(self, gfp_mask: int, current: Task, checks: bool, force_refill: bool = False) -> Slab | None:
        """`ac_get_obj`: an object of the CPU's array that this caller may use; None if there is none."""
        array = self.array
        if not array.entries:
            return None
        slab, tag = array.entries[-1], array.tags[-1]
        if tag and not checks:
            slab.misaligned += 1
            self._nr_misaligned += 1
            self._vmstat.slab_misaligned_objects += 1
        elif tag and not gfp_pfmemalloc_allowed(gfp_mask, current, self._switches):
            other = array.tags.find(0)
            if other >= 0:
                array.entries[other], slab = slab, array.entries[other]
                array.tags[other] = 1
            elif force_refill and self.slabs_free:
                self._clear_pfmemalloc(slab)
            else:
                return None
        array.entries.pop()
        array.tags.pop()
        self.inuse += 1
        if self.nr_pfmemalloc:
            self._count_leaked([slab], gfp_mask, current)
        return slab

    def _count_leaked(self, taken: list[Slab], gfp_mask: int, current: Task) -> None:
        """Count objects from the reserve that go untagged to a caller who is not entitled."""
        leaked = sum([slab.pfmemalloc for slab in taken])
        if leaked and not gfp_pfmemalloc_allowed(gfp_mask, current, self._switches):
            self._vmstat.slab_untagged_leaked += leaked

    def _clear_pfmemalloc(self, slab: Slab) -> None:
        """There are free slabs, so this one need not be kept back; then `recheck_pfmemalloc_active`.

        That looks at this cache only, but what it may clear is the flag of all.
        """
        if slab.pfmemalloc:
            slab.pfmemalloc = False
            self.nr_pfmemalloc -= 1
            self._vmstat.slab_pfmemalloc_cleared += 1
        if not self.nr_pfmemalloc:
            self.pfmemalloc.active = False

    def _fill_array(self, checks: bool) -> bool:
        """`cache_alloc_refill` without growing: a batch from the shared array, or else from slabs; False if none."""
        if self.shared.entries:
            self.array.push(*self.shared.pop_newest(min(self.batchcount, len(self.shared))))
            return True
        wanted = self.batchcount
        while wanted and (slab := self._first_slab(checks)) is not None:
            wanted -= self._alloc_block(slab, wanted, checks)
        return wanted < self.batchcount

    def _first_slab(self, checks: bool) -> Slab | None:
        """The slab to take objects from, off its list."""
        if self.slabs_partial:
            return self.slabs_partial.popitem(last=False)[0]
        return self.slabs_free.popleft() if self.slabs_free else None

    def _alloc_block(self, slab: Slab, wanted: int, checks: bool) -> int:
        """Move up to `wanted` objects of a slab to the array and the slab to its list: how many it were."""
        number = min(slab.free, wanted)
        slab.free -= number
        self.free_objects -= number
        self.array.push([slab] * number, bytes([self._tag(slab, checks)]) * number)
        if slab.free:
            self.slabs_partial[slab] = None
            self.slabs_partial.move_to_end(slab, last=False)
        return number

    def _tag(self, slab: Slab, checks: bool) -> bool:
        """`ac_put_obj`: is the pointer tagged that enters an array?"""
        return checks and slab.pfmemalloc and self.pfmemalloc.active

    def _get_grown(self, page: Page, gfp_mask: int, current: Task, checks: bool, force_refill: bool) -> Slab | None:
        """The end of `cache_alloc_refill`, after `cache_grow` has made a slab of `page`."""
        self._grow(page, checks)
        if not self.array.entries:
            self._fill_array(checks)
        return self._get(gfp_mask, current, checks, force_refill)

    def _grow(self, page: Page, checks: bool) -> None:
        """`cache_grow`: a new slab at the end of the free ones."""
        self.slabs_free.append(self._new_free_slab(page))
        self.pfmemalloc.active |= page.pfmemalloc

    def _new_free_slab(self, page: Page) -> Slab:
        """`kmem_getpages`, from where the page has been allocated."""
        slab = self._new_slabs([page])[0]
        slab.free = slab.objects
        self.free_objects += slab.objects
        self.nr_pfmemalloc += slab.pfmemalloc
        return slab

    def free(self, slab: Slab) -> None:
        """`__cache_free`: give one object of `slab` back."""
        self.free_bulk([slab])

    def free_bulk(self, slabs: list[Slab]) -> None:
        """`__cache_free` for each object."""
        checks = self._checks(len(slabs))
        self.inuse -= len(slabs)
        position = 0
        while position < len(slabs):
            if self.array.room <= 0:
                self._flush()
            chunk = slabs[position : position + self.array.room]
            self.array.push(chunk, self._tags(chunk, checks))
            position += len(chunk)

    def _tags(self, slabs: list[Slab], checks: bool) -> bytes:
        """The tags that freed objects enter the array with; a bit 0 that their owners were given is still there."""
        if self._nr_misaligned:
            return bytes([self._put_back(slab) or self._tag(slab, checks) for slab in slabs])
        if checks and self.nr_pfmemalloc and self.pfmemalloc.active:
            return bytes([slab.pfmemalloc for slab in slabs])
        return bytes(len(slabs))

    def _put_back(self, slab: Slab) -> bool:
        """Does the pointer to an object of `slab` that comes back have bit 0 set?"""
        if not slab.misaligned:
            return False
        slab.misaligned -= 1
        self._nr_misaligned -= 1
        return True

    def _flush(self) -> None:
        """`cache_flusharray`: the oldest batch goes to the shared array, tags and all, or back to its slabs."""
        room = min(self.batchcount, self.shared.room)
        if room > 0:
            self.shared.push(*self.array.pop_oldest(room))
        else:
            self._free_block(self.array.pop_oldest(self.batchcount)[0])

    def _free_block(self, entries: list[Slab]) -> None:
        """`free_block`: objects go back to their slabs, without tags; empty slabs beyond the limit are destroyed."""
        empty: list[Slab] = []
        for slab, count in runs(entries):
            self.slabs_partial.pop(slab, None)
            slab.free += count
            self.free_objects += count
            if slab.free < slab.objects:
                self.slabs_partial[slab] = None
            elif self.free_objects > self.free_limit:
                empty.append(slab)
                self.free_objects -= slab.objects
            else:
                self.slabs_free.appendleft(slab)
        if empty:
            self._destroy(empty)

    def _destroy(self, empty: list[Slab]) -> None:
        """`slab_destroy`."""
        if self.nr_pfmemalloc:
            self.nr_pfmemalloc -= sum([slab.pfmemalloc for slab in empty])
        self._discard_bulk(empty)

    def shrink(self) -> None:
        """`__cache_shrink`: empty both arrays and give every free slab back to the page allocator."""
        for array in (self.array, self.shared):
            self._free_block(array.pop_oldest(len(array))[0])
        self.free_objects -= sum([slab.objects for slab in self.slabs_free])
        self._destroy(list(self.slabs_free))
        self.slabs_free.clear()
