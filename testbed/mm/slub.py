"""SLUB (mm/slub.c, 3.6): a CPU slab, a few partial slabs of the CPU, a list of partial slabs, and pfmemalloc.

Patch 02 makes objects of slabs from the reserve available to entitled callers only; patch 03 leaves that test out of
the fast path, so an ordinary caller may drain the CPU slab that an entitled one left. The slow path tests the CPU's
slabs; whether it also tests those of the node's list depends on the kernel. A slab stays pfmemalloc until it is freed.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from testbed.mm import slab_common
from testbed.mm.gfp import GFP_NOFAIL, GFP_NOMEMALLOC, GFP_NORETRY, GFP_NOWARN, GFP_WAIT, gfp_pfmemalloc_allowed
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.partial_list import PartialList
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab, runs
from testbed.mm.watermarks import PAGE_SIZE

SLUB_MAX_ORDER = 3


def calculate_order(object_size: int, slub_max_order: int = SLUB_MAX_ORDER, nr_cpu_ids: int = 1) -> int:
    """`calculate_order`: the order of a slab of objects of up to a page, as large as `slub_max_order` allows.

    It is to hold 4 * (fls(nr_cpu_ids) + 1) objects and waste no more than 1/16, or 1/8, or a quarter, or else to hold
    fewer.
    """
    largest = (PAGE_SIZE << slub_max_order) // object_size
    for min_objects in range(min(4 * (nr_cpu_ids.bit_length() + 1), largest), 1, -1):
        for fraction in (16, 8, 4):
            for order in range(slub_max_order + 1):
                size = PAGE_SIZE << order
                if size >= min_objects * object_size and size % object_size <= size // fraction:
                    return order
    return 0


def cpu_partial(object_size: int) -> int:
    """`s->cpu_partial`: free objects beyond which the CPU's partial slabs go to the node's list."""
    if object_size >= PAGE_SIZE:
        return 2
    if object_size >= 1024:
        return 6
    return 13 if object_size >= 256 else 30


class KmemCache(slab_common.KmemCache):
    """A cache whose slabs have the order that SLUB prefers, `slub_max_order` at most, or one page where that fails.

    As many empty slabs stay on the partial list as `set_min_partial` allows.
    """

    def __init__(
        self, name: str, object_size: int, page_alloc: PageAllocator, slub_max_order: int = SLUB_MAX_ORDER
    ) -> None:
        super().__init__(name, object_size, PAGE_SIZE // object_size, page_alloc)
        self.order = calculate_order(object_size, slub_max_order)
        self.min_partial = max(5, min(10, (object_size.bit_length() - 1) // 2))
        self.cpu_partial = cpu_partial(object_size)
        self._cpu_slab: Slab | None = None
        self._cpu_partial: list[Slab] = []
        self._pobjects: list[int] = []
        self._partial = PartialList()
        self._unchecked_fast_path = self._switches.slub_unchecked_fast_path
        self._get_partial_match = self._switches.rules.slub_get_partial_match

    def alloc(self, gfp_mask: int, current: Task) -> Slab | None:
        """`slab_alloc`: one object, or None. Never sleeps; a caller with __GFP_WAIT uses `alloc_wait`."""
        slab = self._cpu_slab
        if slab is not None and slab.free and not slab.pfmemalloc:
            slab.free -= 1
            self.inuse += 1
            return slab
        taken = self._take_existing(1, gfp_mask, current)
        if taken:
            return taken[0]
        slab = self._new_slab(gfp_mask, current)
        return None if slab is None else self._take_new(slab, gfp_mask, current)

    async def alloc_wait(self, gfp_mask: int, current: Task) -> Slab | None:
        """`slab_alloc` for a caller that may sleep in the page allocator."""
        taken = self._take_existing(1, gfp_mask, current)
        if taken:
            return taken[0]
        slab = await self._new_slab_wait(gfp_mask, current)
        return None if slab is None else self._take_new(slab, gfp_mask, current)

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """`kmem_cache_alloc_bulk`: up to `count` objects, fewer only where `alloc` would have failed."""
        taken = self._take_existing(count, gfp_mask, current) if count else []
        missing = count - len(taken)
        if missing:
            take_new = self._take_new_blocks if self.order else self._take_new_bulk
            taken += take_new(missing, gfp_mask, current)
        return taken

    def has_listed(self, count: int, *, allowed: bool) -> bool:
        """Are there so many slabs on the node's list that are not passed over? Each has an object at least."""
        return len(self._partial) - (0 if allowed else self._partial.nr_pfmemalloc) >= count

    def _take_existing(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """Up to `count` objects of slabs that exist: of the CPU slab first, then slab by slab of the lists."""
        taken: list[Slab] = []
        if self._cpu_slab is not None:
            taken = self._take_fast(count, gfp_mask, current)
            if len(taken) == count:
                return taken
            self._deactivate()
        listed = len(self._cpu_partial) + len(self._partial)
        if not listed:
            return taken
        allowed = gfp_pfmemalloc_allowed(gfp_mask, current, self._switches)
        if listed <= count - len(taken):
            taken += self._take_all_listed(count - len(taken), allowed)
        if self._cpu_partial and len(taken) < count:
            taken += self._take_cpu_partial(count - len(taken), allowed)
        if not self._cpu_partial and len(taken) < count:
            taken += self._take_partial(count - len(taken), allowed)
        while len(taken) < count and (self._has_loaded() or self._load_partial(allowed)):
            taken += self._take_from_cpu_slab(count - len(taken), allowed)
            if self._cpu_partial and len(taken) < count:
                taken += self._take_cpu_partial(count - len(taken), allowed)
        return taken

    def _has_loaded(self) -> bool:
        return self._cpu_slab is not None and self._cpu_slab.free > 0

    def _take_fast(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """The fast path, `count` times at most: with patch 03 it does not ask whether the CPU slab is for the caller
        (`pfmemalloc_match`).
        """
        slab = self._cpu_slab
        if slab is None or not slab.free:
            return []
        number = slab.free if slab.free < count else count
        if slab.pfmemalloc and not gfp_pfmemalloc_allowed(gfp_mask, current, self._switches):
            if not self._unchecked_fast_path:
                self._vmstat.slab_fast_path_refused += 1
                self._deactivate()
                return []
            self._vmstat.slab_pfmemalloc_leaked += number
        slab.free -= number
        self.inuse += number
        return [slab] * number

    def _take_from_cpu_slab(self, count: int, allowed: bool) -> list[Slab]:
        """What a slab just loaded gives: one object only, and the slab is put aside, if it is not for the caller."""
        slab = self._cpu_slab
        assert slab is not None
        leaked = slab.pfmemalloc and not allowed
        number = 1 if leaked else min(slab.free, count)
        slab.free -= number
        self.inuse += number
        if leaked:
            self._vmstat.slab_partial_leaked += 1
            self._deactivate()
        return [slab] * number

    def _take_all_listed(self, count: int, allowed: bool) -> list[Slab]:
        """All objects of all slabs of the lists, if that is not too many and all are for the caller; else none."""
        cpu, partial = self._cpu_partial, self._partial
        if sum([slab.free for slab in cpu + partial]) > count:
            return []
        if not allowed and (self._partial.nr_pfmemalloc or any(slab.pfmemalloc for slab in cpu)):
            return []
        slabs = self._order_of_use()
        taken: list[Slab] = []
        for slab in slabs:
            taken += [slab] * slab.free
            slab.free = 0
        cpu.clear()
        self._pobjects.clear()
        partial.remove_all()
        self._cpu_slab = slabs[-1]
        self.inuse += len(taken)
        return taken

    def _order_of_use(self) -> list[Slab]:
        """The slabs of both lists as one caller after the other would load them."""
        slabs = self._cpu_partial[::-1]
        start, available = len(slabs), 0
        for slab in self._partial:
            if len(slabs) == start:
                slabs.append(slab)
            else:
                slabs.insert(start + 1, slab)
                available += slab.free
            if available > self.cpu_partial // 2:
                start, available = len(slabs), 0
        return slabs

    def _take_cpu_partial(self, count: int, allowed: bool) -> list[Slab]:
        """What `_load_partial` and `_take_from_cpu_slab` would give of the CPU's own slabs, while they match."""
        self._deactivate()
        cpu = self._cpu_partial
        taken: list[Slab] = []
        slab: Slab | None = None
        while cpu and count and (allowed or not cpu[-1].pfmemalloc):
            slab = cpu.pop()
            number = slab.free if slab.free < count else count
            slab.free -= number
            count -= number
            taken += [slab] * number
        del self._pobjects[len(cpu) :]
        if slab is not None:
            self._cpu_slab = slab
            self.inuse += len(taken)
        return taken

    def _take_partial(self, count: int, allowed: bool) -> list[Slab]:
        """What loading slabs of the node's list would give, as long as all that is loaded together is used up.

        What is loaded next, and not all of it used, stays with the CPU.
        """
        self._deactivate()
        if self._partial.nr_pfmemalloc and not (allowed or self._get_partial_match):
            return []
        passing_over = self._passes_over(allowed)
        slabs = self._partial.first(count + self.cpu_partial // 2 + 1, passing_over=passing_over)
        free = list(accumulate([slab.free for slab in slabs]))
        used: list[Slab] = []
        loads = start = end = 0
        while end < len(slabs):
            end = self._load_end(free, start)
            loads += 1
            if free[end - 1] >= count:
                break
            used.append(slabs[start])
            used += slabs[start + 1 : end][::-1]
            start = end
        if self._partial.nr_pfmemalloc and not allowed:
            self._vmstat.slab_pfmemalloc_mismatch += loads
        self._partial.remove_first(slabs[:end], passing_over=passing_over)
        if start < end:
            self._load(slabs[start:end])
        taken: list[Slab] = []
        for slab in used:
            taken += [slab] * slab.free
            slab.free = 0
        self.inuse += len(taken)
        return taken

    def _load_end(self, free: list[int], start: int) -> int:
        """Behind the last of the slabs that are loaded together from `start` on; `free` adds up their free objects.

        Those of the first slab do not count towards how many the CPU should have (until 3.8).
        """
        return min(bisect_right(free, free[start] + self.cpu_partial // 2, start) + 1, len(free))

    def _load(self, slabs: list[Slab]) -> None:
        """Of slabs that come from the node's list, the first becomes the CPU slab, the others its partial slabs."""
        self._cpu_slab = slabs[0]
        pobjects = self._pobjects[-1] if self._pobjects else 0
        for slab in slabs[1:]:
            pobjects += slab.free
            self._pobjects.append(pobjects)
        self._cpu_partial += slabs[1:]

    def _passes_over(self, allowed: bool) -> bool:
        """Does `get_partial_node` pass over slabs of the node's list for this caller?"""
        return self._get_partial_match and not allowed and self._partial.nr_pfmemalloc > 0

    def _load_partial(self, allowed: bool) -> bool:
        """`__slab_alloc` (later `___slab_alloc`) from `new_slab` on, and `get_partial`: a CPU slab from the lists;
        False if they have none for the caller.
        """
        self._deactivate()
        empty: list[Slab] = []
        while self._cpu_partial:
            self._pobjects.pop()
            slab = self._cpu_partial.pop()
            if allowed or not slab.pfmemalloc:
                self._cpu_slab = slab
                break
            self._vmstat.slab_pfmemalloc_mismatch += 1
            if self._unfreeze(slab):
                empty.append(slab)
        if empty:
            self._discard_bulk(empty)
        return self._cpu_slab is not None or (len(self._partial) > 0 and self._get_partial_node(allowed))

    def _get_partial_node(self, allowed: bool) -> bool:
        """`get_partial_node`: the first partial slab for the CPU slab, and some for the CPU's own list."""
        passing_over = self._passes_over(allowed)
        self._vmstat.slab_pfmemalloc_mismatch += passing_over
        slabs = self._partial.first(self.cpu_partial // 2 + 2, passing_over=passing_over)
        if not slabs:
            return False
        del slabs[self._load_end(list(accumulate([slab.free for slab in slabs])), 0) :]
        self._partial.remove_first(slabs, passing_over=passing_over)
        self._load(slabs)
        return True

    def _new_slab(self, gfp_mask: int, current: Task) -> Slab | None:
        """`new_slab`: of the preferred order if that is easy, or else of one page."""
        if self.order:
            block = self.page_alloc.alloc_order_nowait(self.order, self._easy(gfp_mask), current)
            if block is not None:
                return self._new_block_slab(block)
        page = self.page_alloc.alloc_page_nowait(gfp_mask, current)
        return None if page is None else self._new_slabs([page])[0]

    async def _new_slab_wait(self, gfp_mask: int, current: Task) -> Slab | None:
        """`new_slab` for a caller that may sleep."""
        if self.order:
            block = await self.page_alloc.alloc_order(self.order, self._easy(gfp_mask), current)
            if block is not None:
                return self._new_block_slab(block)
        page = await self.page_alloc.alloc_page(gfp_mask, current)
        return None if page is None else self._new_slabs([page])[0]

    def _easy(self, gfp_mask: int) -> int:
        """The mask for the attempt at the preferred order (`allocate_slab`); an entitled caller's uses the reserve."""
        gfp_mask = (gfp_mask | GFP_NOWARN | GFP_NORETRY) & ~GFP_NOFAIL
        if self._switches.rules.slub_high_order_nomemalloc and gfp_mask & GFP_WAIT:
            gfp_mask = (gfp_mask | GFP_NOMEMALLOC) & ~GFP_WAIT
        return gfp_mask

    def _take_new(self, slab: Slab, gfp_mask: int, current: Task) -> Slab:
        """The end of `__slab_alloc` after `new_slab_objects`: take the first object. A slab that the caller may not
        use by now is put aside after that.
        """
        slab.free = slab.objects - 1
        self.inuse += 1
        self._deactivate()
        self._cpu_slab = slab
        if slab.pfmemalloc and not gfp_pfmemalloc_allowed(gfp_mask, current, self._switches):
            self._vmstat.slab_partial_leaked += 1
            self._deactivate()
        return slab

    def _take_new_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """Up to `count` objects of new slabs, when no other will do; whoever gets a new page may use all of it."""
        size = self.objects_per_slab
        wanted = -(-count // size)
        pages = self.page_alloc.alloc_pages_nowait(wanted, gfp_mask, current)
        looks = min(wanted, len(pages) + 1)
        if self._partial:
            self._vmstat.slab_pfmemalloc_mismatch += looks - 1
        if not pages:
            return []
        slabs = self._new_slabs(pages)
        taken = slabs * size
        for number in range(size):
            taken[number::size] = slabs
        spare = len(taken) - count
        if spare >= 0:
            slabs[-1].free = spare
            self._cpu_slab = slabs[-1]
            del taken[count:]
        self.inuse += len(taken)
        return taken

    def _take_new_blocks(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        """`_take_new_bulk` for slabs of several pages, one after the other."""
        taken: list[Slab] = []
        while len(taken) < count:
            self._vmstat.slab_pfmemalloc_mismatch += bool(taken and self._partial)
            slab = self._new_slab(gfp_mask, current)
            if slab is None:
                self._deactivate()
                break
            taken.append(self._take_new(slab, gfp_mask, current))
            if slab is self._cpu_slab:
                taken += self._take_fast(count - len(taken), gfp_mask, current)
        return taken

    def free(self, slab: Slab) -> None:
        """`slab_free`: give one object of `slab` back."""
        self.inuse -= 1
        slab.free += 1
        if slab is self._cpu_slab:
            return
        empty: list[Slab] = []
        if slab.free == 1:
            empty = self._put_cpu_partial([slab])
        elif slab.free == slab.objects and self._is_surplus(slab):
            self._partial.remove(slab)
            empty = [slab]
        if empty:
            self._discard_bulk(empty)

    def free_bulk(self, slabs: list[Slab]) -> None:
        """`kmem_cache_free_bulk`."""
        were_full: list[Slab] = []
        empty: list[Slab] = []
        cpu_slab = self._cpu_slab
        for slab, count in runs(slabs):
            free = slab.free
            if not free and slab is not cpu_slab:
                slab.free = count
                were_full.append(slab)
                continue
            if free + count == slab.objects and slab is not cpu_slab:
                if were_full:
                    empty += self._put_cpu_partial(were_full)
                    were_full = []
                if self._is_surplus(slab):
                    self._partial.remove(slab)
                    empty.append(slab)
            slab.free = free + count
        if were_full:
            empty += self._put_cpu_partial(were_full)
        self.inuse -= len(slabs)
        if empty:
            self._discard_bulk(empty)

    def _is_surplus(self, slab: Slab) -> bool:
        """Has the node's list enough slabs without this one, of which nothing is in use and which the CPU has not?"""
        return len(self._partial) >= self.min_partial and slab not in self._cpu_partial

    def _put_cpu_partial(self, slabs: list[Slab]) -> list[Slab]:
        """`put_cpu_partial` for slabs that were full: the slabs that are to be discarded.

        The one object that each had by then is what counts. The CPU keeps a batch of slabs until the next makes it
        give them all up, so it ends up with the last batch.
        """
        cpu, pobjects, batch = self._cpu_partial, self._pobjects, self.cpu_partial + 1
        room = max(0, batch - pobjects[-1]) if pobjects else batch
        empty: list[Slab] = []
        if len(slabs) > room:
            cpu += slabs[:room]
            position, end = room, len(slabs) - 1 - (len(slabs) - room - 1) % batch
            given_up = cpu[::-1]
            while position < end:
                given_up += slabs[position : position + batch][::-1]
                position += batch
            empty = self._unfreeze_partials(given_up)
            slabs = slabs[end:]
        before = pobjects[-1] if pobjects else 0
        pobjects += range(before + 1, before + 1 + len(slabs))
        cpu += slabs
        return empty

    def _unfreeze_partials(self, slabs: list[Slab]) -> list[Slab]:
        """`unfreeze_partials`: the CPU's partial slabs go to the node's list, or (returned) are to be discarded."""
        self._cpu_partial.clear()
        self._pobjects.clear()
        partial = self._partial
        kept: list[Slab] = slabs
        empty: list[Slab] = []
        if [slab for slab in slabs if slab.free == slab.objects]:
            kept = []
            for slab in slabs:
                surplus = slab.free == slab.objects and len(partial) + len(kept) >= self.min_partial
                (empty if surplus else kept).append(slab)
        partial.add_tail(kept)
        return empty

    def _discard_bulk(self, empty: list[Slab]) -> None:
        """`discard_slab`."""
        if self.order:
            for slab in empty:
                if slab.tail:
                    self.nr_slabs -= 1
                    self._vmstat.nr_slab_unreclaimable -= 1 + len(slab.tail)
                    self.page_alloc.free_order([slab.page, *slab.tail])
            empty = [slab for slab in empty if not slab.tail]
        super()._discard_bulk(empty)

    def shrink(self) -> None:
        """`kmem_cache_shrink`: deactivate the CPU's slabs and give every empty slab back to the page allocator."""
        self._deactivate()
        empty = self._unfreeze_partials(self._cpu_partial[::-1])
        unused = [slab for slab in self._partial if slab.free == slab.objects]
        for slab in unused:
            self._partial.remove(slab)
        self._discard_bulk(empty + unused)

    def _deactivate(self) -> None:
        """`deactivate_slab` for the CPU slab."""
        slab, self._cpu_slab = self._cpu_slab, None
        if slab is not None and self._unfreeze(slab):
            self._discard_bulk([slab])

    def _unfreeze(self, slab: Slab) -> bool:
        """The end of `deactivate_slab`: what is left of the slab goes to the head of the node's list.

        True if nothing of it is in use and the list has enough such slabs: then it is to be discarded.
        """
        if slab.free:
            if slab.free == slab.objects and len(self._partial) >= self.min_partial:
                return True
            self._partial.add_head(slab)
        return False
