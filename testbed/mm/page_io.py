"""Swap I/O (mm/page_io.c): what reclaim asks of the block device under the swap area, and what happens at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.swap_state import SwapCache


class SwapDevice(Protocol):
    """A block device that holds the swap area; page i of a call goes to or comes from slot `page.swap_entry`.

    Both calls return once the requests are queued, and may wait for a free request before that. The device calls
    `SwapIO.end_write` and `SwapIO.end_read` when they complete.
    """

    async def submit_write(self, pages: Sequence[Page], nice: int) -> None:
        """Queue pages for writing."""

    async def submit_read(self, pages: Sequence[Page], nice: int) -> None:
        """Queue pages for reading."""


class SwapIO:
    """Starts swap I/O and ends it; `completions` counts both directions."""

    def __init__(self, page_alloc: PageAllocator, cache: SwapCache, device: SwapDevice) -> None:
        self.page_alloc = page_alloc
        self.zone = page_alloc.zone
        self.vmstat = page_alloc.vmstat
        self.cache = cache
        self.device = device
        self.completions = 0
        self.write_errors = 0
        self.read_errors = 0

    async def swap_writepages(self, pages: list[Page], nice: int) -> None:
        """`swap_writepage` for a plugged batch; the pages are already under writeback."""
        self.vmstat.pswpout += len(pages)
        await self.device.submit_write(pages, nice)

    async def swap_readpages(self, pages: list[Page], nice: int) -> None:
        """`swap_readpage` for a plugged batch of locked pages."""
        self.vmstat.pswpin += len(pages)
        await self.device.submit_read(pages, nice)

    def end_write(self, pages: Sequence[Page], error: int) -> None:
        """`end_swap_bio_write`: a page that could not be written is dirty again and keeps its slot."""
        inactive = self.zone.inactive_anon
        self.completions += len(pages)
        self.vmstat.nr_writeback -= len(pages)
        unused = []
        for page in pages:
            page.writeback = False
            if error:
                page.dirty = True
                page.reclaim = False
                self.write_errors += 1
            if page.reclaim:
                page.reclaim = False
                if page.lru and not page.active:
                    inactive.move_to_end(page, last=False)
            if page.mapping is None and not self.cache.swap.swap_count(page.swap_entry):
                unused.append(page)
        for page in unused:
            self.release(page)
        self.page_alloc.progress.wake(len(pages))

    def end_read(self, pages: Sequence[Page], error: int) -> None:
        """`end_swap_bio_read`: unlock the pages and wake whoever faulted on them."""
        self.completions += len(pages)
        for page in pages:
            page.locked = False
            page.uptodate = not error
            if error:
                self.read_errors += 1
            if page.waiters:
                waiters, page.waiters = page.waiters, None
                for waiter in waiters:
                    if isinstance(waiter, asyncio.Future) and not waiter.done():
                        waiter.set_result(None)
            if error or not self.cache.swap.swap_count(page.swap_entry):
                self.release(page)

    async def wait_on_page_locked(self, page: Page) -> None:
        """`wait_on_page_locked`, holding a reference so that reclaim leaves the page alone."""
        page.pins += 1
        try:
            while page.locked:
                waiter = asyncio.get_running_loop().create_future()
                page.waiters = page.waiters or []
                page.waiters.append(waiter)
                await waiter
        finally:
            page.pins -= 1
            if page.mapping is None and not (page.uptodate and self.cache.swap.swap_count(page.swap_entry)):
                self.release(page)

    def release(self, page: Page) -> None:
        """Free a page that nothing but the swap cache holds any more, unless I/O or a reference keeps it."""
        if page.writeback or page.locked or page.pins:
            return
        if page.swap_entry:
            self.cache.delete_from_swap_cache(page)
        self.remove_from_lru(page)
        self.page_alloc.free_page(page)

    def remove_from_lru(self, page: Page) -> None:
        """`del_page_from_lru_list`."""
        if not page.lru:
            return
        page.lru = False
        if page.active:
            del self.zone.active_anon[page]
        else:
            del self.zone.inactive_anon[page]
