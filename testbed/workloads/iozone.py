"""iozone: a file larger than memory is read in order; its clean pages come and go in the page cache.

kswapd or the reader itself makes the room. That is reclaim, but no pressure: nothing has to be written to free a page.
"""

from __future__ import annotations

import asyncio
import contextlib

from testbed.mm.gfp import GFP_HIGHUSER_MOVABLE
from testbed.mm.sched import Task
from testbed.workloads.host import Host

READAHEAD = 32
"""Pages read at once (128 KiB)."""


class Iozone:
    """An operation is a page, read into the page cache and reclaimed."""

    def __init__(self, host: Host) -> None:
        self._node = host.node
        self._task = Task("iozone")

    async def run(self, operations: int) -> int:
        kswapd = asyncio.create_task(self._node.kswapd.run())
        done = 0
        while done < operations:
            await self._readahead()
            done += READAHEAD
        kswapd.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await kswapd
        self._node.drop_caches()
        return done

    async def _readahead(self) -> None:
        for _ in range(READAHEAD):
            page = await self._node.page_alloc.alloc_page(GFP_HIGHUSER_MOVABLE, self._task)
            assert page is not None
            page.zone.file[page] = None
        await asyncio.sleep(0)
