"""Memory that is taken from a machine while it runs, after the virtio balloon (drivers/virtio/virtio_balloon.c).

A kernel thread allocates pages that nobody uses, and takes no for an answer: it neither retries nor touches the reserve
(`__GFP_NORETRY | __GFP_NOMEMALLOC | __GFP_NOWARN`), but waits a little and goes on. Deflating gives everything back.
"""

from __future__ import annotations

import asyncio

from testbed.mm.gfp import GFP_HIGHUSER_MOVABLE, GFP_NOMEMALLOC, GFP_NORETRY, GFP_NOWARN
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task

GFP_BALLOON = GFP_HIGHUSER_MOVABLE | GFP_NORETRY | GFP_NOMEMALLOC | GFP_NOWARN
OUT_OF_PUFF_S = 0.2
"""Seconds to wait after a failure (`msleep(200)`)."""
PAGES_AT_ONCE = 256
"""VIRTIO_BALLOON_ARRAY_PFNS_MAX: after so many pages others get their turn."""


class Balloon:
    """Wants `target` pages; `pages` are those it has."""

    def __init__(self, page_alloc: PageAllocator, target: int) -> None:
        self.pages: list[Page] = []
        self._page_alloc = page_alloc
        self._target = target
        self._vballoon = Task("vballoon", pf_kthread=True)
        self._thread = asyncio.create_task(self._fill_balloon())

    async def _fill_balloon(self) -> None:
        while len(self.pages) < self._target:
            page = await self._page_alloc.alloc_page(GFP_BALLOON, self._vballoon)
            if page is None:
                await asyncio.sleep(OUT_OF_PUFF_S)
                continue
            self.pages.append(page)
            if not len(self.pages) % PAGES_AT_ONCE:
                await asyncio.sleep(0)

    def leak_balloon(self) -> int:
        """Give all pages back, and want no more; how many there were."""
        self._thread.cancel()
        pages, self.pages = self.pages, []
        self._page_alloc.free_pages(pages)
        return len(pages)
