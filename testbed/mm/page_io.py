"""Swap I/O (mm/page_io.c): what reclaim asks of the block device under the swap area, and what happens at its end."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from testbed.mm.backing_dev import BackingDev
from testbed.mm.bio import Bios
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.swap_state import SwapCache
from testbed.mm.watermarks import PAGE_SIZE

KBYTES_PER_PAGE = PAGE_SIZE >> 10
Submit = Callable[[list[Page], int], Awaitable[None]]
"""Counts pages and queues them at the device, for a task of that nice value."""
Ended = Callable[[Sequence[Page], int], None]
"""What happens to pages whose I/O has ended, with an errno, or 0."""


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
    """Starts swap I/O and ends it; `completions` counts both directions.

    `bdi` is the device's congestion, and `acct_reclaim_writeback` hears how many pages have just been written.
    """

    def __init__(self, page_alloc: PageAllocator, cache: SwapCache, device: SwapDevice, bio_set: Bios) -> None:
        self.page_alloc = page_alloc
        self.vmstat = page_alloc.vmstat
        self.bdi = BackingDev(self.vmstat)
        self.acct_reclaim_writeback: Callable[[int], None] = _nothing
        self.cache = cache
        self.device = device
        self.bio_set = bio_set
        self._rotates_active = page_alloc.switches.rules.writeback_activates
        self.completions = 0
        self.write_errors = 0
        self.read_errors = 0

    async def swap_writepages(self, pages: list[Page], current: Task) -> None:
        """`swap_writepage` for a plugged batch; the pages are already under writeback."""
        await self._in_parts(pages, current, self._submit_write, self._written)

    async def swap_readpages(self, pages: list[Page], current: Task) -> None:
        """`swap_readpage` for a plugged batch of locked pages."""
        await self._in_parts(pages, current, self._submit_read, self._read)

    async def _in_parts(self, pages: list[Page], current: Task, submit: Submit, ended: Ended) -> None:
        """They go out in as many parts as bios come. If the caller is cancelled, the I/O of the others has failed."""
        try:
            while pages:
                bios = await self.bio_set.bio_alloc(len(pages), current)
                batch, pages = pages[:bios], pages[bios:]
                await submit(batch, current.nice)
        finally:
            if pages:
                ended(pages, errno.EIO)

    async def _submit_write(self, pages: list[Page], nice: int) -> None:
        self.vmstat.pswpout += len(pages)
        self.vmstat.pgpgout += len(pages) * KBYTES_PER_PAGE
        await self.device.submit_write(pages, nice)

    async def _submit_read(self, pages: list[Page], nice: int) -> None:
        self.vmstat.pswpin += len(pages)
        self.vmstat.pgpgin += len(pages) * KBYTES_PER_PAGE
        await self.device.submit_read(pages, nice)

    def end_write(self, pages: Sequence[Page], error: int) -> None:
        """`end_swap_bio_write`: a page that could not be written is dirty again, keeps its slot and stays in memory.

        That is no progress: who waits for memory is not told, and so tries again no sooner than it would anyway.
        """
        self.completions += len(pages)
        self.bio_set.bio_put(len(pages))
        self._written(pages, error)

    def _written(self, pages: Sequence[Page], error: int) -> None:
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
                self._rotate_reclaimable_page(page)
            if page.mapping is None and not self.cache.swap.swap_count(page.swap_entry):
                unused.append(page)
        for page in unused:
            self.release(page)
        self.acct_reclaim_writeback(len(pages))
        if not error:
            self.page_alloc.progress.wake(len(pages))

    def _rotate_reclaimable_page(self, page: Page) -> None:
        """Move a page that reclaim wants back to the tail of the inactive list, where the next scan begins."""
        if not page.lru:
            return
        zone = page.zone
        if page.active:
            if not self._rotates_active:
                return
            page.active = False
            del zone.active_anon[page]
            zone.inactive_anon[page] = None
        zone.inactive_anon.move_to_end(page, last=False)

    def end_read(self, pages: Sequence[Page], error: int) -> None:
        """`end_swap_bio_read`: unlock the pages and wake whoever faulted on them.

        A page that could not be read stays in the swap cache, not up to date: who faults on it gets SIGBUS, until
        reclaim takes it away.
        """
        self.completions += len(pages)
        self.bio_set.bio_put(len(pages))
        self._read(pages, error)

    def _read(self, pages: Sequence[Page], error: int) -> None:
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
            if not self.cache.swap.swap_count(page.swap_entry):
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
            self.put_page(page)

    def put_page(self, page: Page) -> None:
        """`put_page`: drop a reference; a page that no pte refers to any more goes with it."""
        page.pins -= 1
        if page.mapping is None and not self.cache.swap.swap_count(page.swap_entry):
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
            del page.zone.active_anon[page]
        else:
            del page.zone.inactive_anon[page]


def _nothing(_written: int) -> None:
    return
