"""Page faults of anonymous memory (mm/memory.c): first write, swap-in, and what exit gives back."""

from __future__ import annotations

from collections.abc import Iterable

from testbed.mm.gfp import GFP_HIGHUSER_MOVABLE
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.page_io import SwapIO
from testbed.mm.readahead import SwapReadaheadInfo, cluster_window
from testbed.mm.sched import Task
from testbed.mm.swap_state import SwapCache
from testbed.mm.swapfile import SWAP_HAS_CACHE, SWAP_MAP_BAD
from testbed.mm.watermarks import PAGE_SIZE

ZEROES = bytes(PAGE_SIZE)

Pte = Page | int | None
"""A mapped page, the slot of a swapped-out one, or nothing yet."""


class Killed(Exception):
    """The task got SIGKILL (from the OOM killer) and does not return to user space."""


class BusError(Exception):
    """SIGBUS: the page could not be read back from swap."""


class Vma:
    """An anonymous mapping of `pages` pages that belongs to one task."""

    __slots__ = ("owner", "ptes", "swap_readahead_info")

    def __init__(self, owner: Task, pages: int) -> None:
        self.owner = owner
        self.ptes: list[Pte] = [None] * pages
        self.swap_readahead_info = SwapReadaheadInfo()


class Memory:
    """Handles the faults of all tasks of a host."""

    def __init__(self, page_alloc: PageAllocator, cache: SwapCache, swap_io: SwapIO) -> None:
        self.page_alloc = page_alloc
        self.vmstat = page_alloc.vmstat
        rules = page_alloc.switches.rules
        self._anon_starts_active = rules.anon_starts_active
        self._vma_readahead = rules.swap_readahead == "vma"
        self.cache = cache
        self.swap_io = swap_io

    async def handle_mm_fault(self, current: Task, vma: Vma, index: int, write: bool) -> Page | None:
        """Make page `index` of `vma` accessible; None stands for the shared zero page (a read of untouched memory).

        The caller may use the page's bytes until it next waits.

        Raises:
            Killed: the task was killed while it waited.
            BusError: the page could not be read back.
        """
        self.vmstat.pgfault += 1
        while True:
            if current.fatal_signal:
                raise Killed(current.name)
            pte = vma.ptes[index]
            if pte is None:
                return await self._do_anonymous_page(current, vma, index) if write else None
            page = pte if isinstance(pte, Page) else await self._do_swap_page(current, vma, index, pte)
            if page is not None:
                page.young = True
                if write:
                    self._reuse_swap_page(page)
                return page

    async def _do_anonymous_page(self, current: Task, vma: Vma, index: int) -> Page:
        page = self.page_alloc.alloc_page_above_low(GFP_HIGHUSER_MOVABLE, current)
        if page is None:
            page = await self._alloc_user_page(current)
        page.buffer[:] = ZEROES[: len(page.buffer)]
        page.dirty = page.uptodate = True
        self._map(page, vma, index)
        page.young = True
        self._lru_add(page, active=self._anon_starts_active)
        return page

    async def _alloc_user_page(self, current: Task) -> Page:
        while True:
            page = await self.page_alloc.alloc_page(GFP_HIGHUSER_MOVABLE, current)
            if current.fatal_signal:
                if page is not None:
                    self.page_alloc.free_page(page)
                raise Killed(current.name)
            if page is not None:
                return page

    async def _do_swap_page(self, current: Task, vma: Vma, index: int, entry: int) -> Page | None:
        """Map the page of a slot, from the swap cache or from the device; None: look at the pte again."""
        page = self.cache.pages.get(entry)
        if page is None:
            self.vmstat.pgmajfault += 1
            await self._swapin_readahead(current, vma, index, entry)
            page = self.cache.pages.get(entry)
            if page is None:
                return None
        else:
            self._lookup_swap_cache(page, vma, index)
        if page.locked:
            await self.swap_io.wait_on_page_locked(page)
        if self.cache.pages.get(entry) is not page:
            return None
        if not page.uptodate:
            self.vmstat.sigbus += 1
            raise BusError(f"{current.name}: page {index} could not be read back from slot {entry}")
        self._map(page, vma, index)
        vma.owner.swapents -= 1
        self.cache.swap.swap_free(entry)
        if self.cache.swap.vm_swap_full():
            self._reuse_swap_page(page)
        return page

    def _lookup_swap_cache(self, page: Page, vma: Vma, index: int) -> None:
        if self._vma_readahead:
            vma.swap_readahead_info.note_lookup(index, readahead=page.readahead)
        if page.readahead:
            page.readahead = False
            self.vmstat.swap_ra_hit += 1

    async def _swapin_readahead(self, current: Task, vma: Vma, index: int, entry: int) -> None:
        """Read the slot of the fault and those around it; each page is allocated by the task that faulted."""
        batch: list[Page] = []
        try:
            for slot in self._readahead_slots(vma, index, entry):
                if self._wanted(slot):
                    await self._read_swap_cache_async(current, slot, entry, batch)
        finally:
            if batch:
                await self.swap_io.swap_readpages(batch, current)

    def _readahead_slots(self, vma: Vma, index: int, entry: int) -> Iterable[int]:
        if not self._vma_readahead:
            return cluster_window(entry, len(self.cache.swap.swap_map))
        window = vma.swap_readahead_info.window(index, len(vma.ptes))
        return [pte for pte in (vma.ptes[near] for near in window) if isinstance(pte, int)]

    def _wanted(self, slot: int) -> bool:
        count = self.cache.swap.swap_map[slot]
        return bool(count) and count != SWAP_MAP_BAD and not count & SWAP_HAS_CACHE

    async def _read_swap_cache_async(self, current: Task, slot: int, entry: int, batch: list[Page]) -> None:
        page = self.page_alloc.alloc_page_above_low(GFP_HIGHUSER_MOVABLE, current)
        if page is None:
            page = await self._alloc_user_page(current)
        if not self._wanted(slot) or not self.cache.add_to_swap_cache(page, slot, current):
            self.page_alloc.free_page(page)
            return
        self.cache.swap.swapcache_prepare(slot)
        page.locked = True
        if slot != entry:
            page.readahead = True
            self.vmstat.swap_ra += 1
        self._lru_add(page, active=False)
        batch.append(page)

    def _map(self, page: Page, vma: Vma, index: int) -> None:
        page.mapping = vma
        page.index = index
        vma.ptes[index] = page
        vma.owner.rss += 1

    def _reuse_swap_page(self, page: Page) -> None:
        """`reuse_swap_page`: a page about to be written gives up its slot, unless it is being written out."""
        page.dirty = True
        if page.swap_entry and not page.writeback:
            self.cache.delete_from_swap_cache(page)

    def _lru_add(self, page: Page, active: bool) -> None:
        page.lru = True
        page.active = active
        (page.zone.active_anon if active else page.zone.inactive_anon)[page] = None

    def exit_mmap(self, vma: Vma) -> None:
        """Unmap everything and free what nothing else holds; pages under I/O are freed when it ends."""
        for index, pte in enumerate(vma.ptes):
            vma.ptes[index] = None
            if isinstance(pte, Page):
                pte.mapping = None
                vma.owner.rss -= 1
                self.swap_io.release(pte)
            elif pte is not None:
                vma.owner.swapents -= 1
                page = self.cache.pages.get(pte)
                self.cache.swap.swap_free(pte)
                if page is not None:
                    self.swap_io.release(page)
