"""The page cache of one file on a local disk (mm/filemap.c, mm/page-writeback.c), for a program that swap depends on.

Each block written or read takes a page, like any other ordinary allocation. A written page is dirty until the flusher
thread has brought it to the disk; from then on it is clean page cache, and reclaim may take it. The disk itself needs
no memory (bios come from mempools). Only the pages are modelled: the bytes are kept by whoever serves the file.
"""

from __future__ import annotations

import asyncio

from testbed.mm.gfp import GFP_HIGHUSER_MOVABLE
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.wait import WaitQueue
from testbed.mm.watermarks import PAGE_SIZE

VM_DIRTY_RATIO = 20
"""Percent of the dirtyable memory that may be dirty or under writeback before who dirties more has to wait."""
MAX_PAUSE = 0.2
"""The longest pause of `balance_dirty_pages`, seconds."""
RATELIMIT_PAGES = 32
"""Pages that a task may dirty between two looks at the limit."""
BDI_STAT_ERROR = 16
"""Pages that the count of a disk's dirty pages may be off (a machine with one processor)."""
WRITEBACK_BATCH = 16


class AddressSpace:
    """`struct address_space` of a file whose disk moves `bandwidth` bytes a second."""

    def __init__(self, node: Node, bandwidth: int) -> None:
        self._node = node
        self._seconds_per_page = PAGE_SIZE / bandwidth
        self._anon_is_dirtyable = node.switches.rules.anon_is_dirtyable
        self._pages: dict[int, Page] = {}
        self._dirty: dict[int, Page] = {}
        self._under_io: dict[int, Page] = {}
        self._nr_dirtied = 0
        self._dirtied = WaitQueue()

    @property
    def nr_dirty(self) -> int:
        """Pages that the disk does not have yet, and those it is just reading or writing."""
        return len(self._dirty.keys() | self._under_io.keys())

    async def write(self, index: int, current: Task) -> None:
        """`generic_perform_write`: make page `index` dirty, which may wait for memory and then for the flusher."""
        page = self.find_get_page(index) or await self._add_to_page_cache(index, current)
        page.zone.file.pop(page, None)
        self._dirty[index] = page
        self._dirtied.wake(1)
        self._nr_dirtied += 1
        if self._nr_dirtied >= RATELIMIT_PAGES:
            self._nr_dirtied = 0
            await self._balance_dirty_pages()

    async def read(self, index: int, current: Task) -> None:
        """`do_generic_file_read`: page `index` comes from the page cache, or from the disk."""
        if self.find_get_page(index) is None:
            page = await self._add_to_page_cache(index, current)
            self._under_io[index] = page
            try:
                await asyncio.sleep(self._seconds_per_page)
            finally:
                self._end_io({index: page})

    def find_get_page(self, index: int) -> Page | None:
        """The page that caches `index`, unless reclaim has taken it."""
        page = self._pages.get(index)
        if page is not None and (index in self._dirty or index in self._under_io):
            return page
        return page if page is not None and page.index == index and page in page.zone.file else None

    async def _add_to_page_cache(self, index: int, current: Task) -> Page:
        page = None
        while page is None:
            page = await self._node.page_alloc.alloc_page(GFP_HIGHUSER_MOVABLE, current)
        page.index = index
        self._pages[index] = page
        return page

    async def _balance_dirty_pages(self) -> None:
        """Pause while there are too many dirty pages, but not because of others than this disk's."""
        while self._dirty_exceeded():
            await asyncio.sleep(MAX_PAUSE)
            if self.nr_dirty <= BDI_STAT_ERROR:
                return

    def _dirty_exceeded(self) -> bool:
        """Are too many pages dirty or under writeback, those of swap included?"""
        zones = self._node.zones
        dirtyable = sum(zone.nr_free_pages + len(zone.file) for zone in zones) + self.nr_dirty
        if self._anon_is_dirtyable:
            dirtyable += sum(len(zone.active_anon) + len(zone.inactive_anon) for zone in zones)
        return (self.nr_dirty + self._node.vmstat.nr_writeback) * 100 > dirtyable * VM_DIRTY_RATIO

    async def flush(self) -> None:
        """The flusher thread: writes while anything is dirty, as reclaim would have it do, until cancelled."""
        while True:
            while not self._dirty:
                await self._dirtied.wait()
            batch = {index: self._dirty.pop(index) for index in list(self._dirty)[:WRITEBACK_BATCH]}
            self._under_io |= batch
            try:
                await asyncio.sleep(len(batch) * self._seconds_per_page)
            finally:
                self._end_io(batch)
            self._node.page_alloc.progress.wake(len(batch))

    def _end_io(self, pages: dict[int, Page]) -> None:
        """`end_page_writeback`, `unlock_page`: what has not been written to meanwhile is clean page cache."""
        for index, page in pages.items():
            del self._under_io[index]
            if index not in self._dirty:
                page.zone.file[page] = None

    def truncate(self) -> None:
        """The file is gone: free its dirty pages too. Nobody may be reading, writing or flushing it."""
        pages, self._dirty = list(self._dirty.values()), {}
        self._pages.clear()
        self._node.page_alloc.free_pages(pages)
