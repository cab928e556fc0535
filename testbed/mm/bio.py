"""bios (block/bio.c, mm/mempool.c): each page of swap I/O needs one until the I/O has ended.

They come from a slab cache, whose pages never come from the reserve (`mempool_alloc` adds __GFP_NOMEMALLOC). When it
has none, BIO_POOL_SIZE of them, put aside at boot, are handed round, and whoever comes next sleeps until one is given
back. Where no I/O ends any more, reclaimers are held here. The rest of the slab that the pool was made from is there
for the first writes.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from testbed.mm.gfp import GFP_KERNEL, GFP_NOMEMALLOC, GFP_NORETRY, GFP_NOWARN
from testbed.mm.sched import Task
from testbed.mm.slab_common import KmemCache, Slab
from testbed.mm.wait import WaitQueue

BIO_POOL_SIZE = 2
BIO_SIZE = 192
"""Bytes of a bio with its inline vectors, on a cache line."""
GFP_MEMPOOL = GFP_NOMEMALLOC | GFP_NORETRY | GFP_NOWARN
"""What `mempool_alloc` makes of GFP_NOIO. For a reader (GFP_KERNEL) it would reclaim once before it waits."""
RETRY_S = 5.0
"""`mempool_alloc` looks again after so long, woken or not."""


class Bios(Protocol):
    """Where swap I/O has its bios from."""

    async def bio_alloc(self, count: int, current: Task) -> int:
        """One bio at least, and `count` at most: how many."""

    def bio_put(self, count: int) -> None:
        """The I/O of so many has ended."""


class BioSet:
    """`fs_bio_set`: bios from `cache` and the pool. Which of those in use belongs to which page does not matter."""

    def __init__(self, cache: KmemCache) -> None:
        self._cache = cache
        self._pool: list[Slab] = []
        self._in_use: deque[Slab] = deque()
        self._wait = WaitQueue()

    def init(self, current: Task) -> None:
        """`bioset_init`, at boot: fill the pool."""
        self._pool = self._cache.alloc_bulk(BIO_POOL_SIZE, GFP_KERNEL, current)

    async def bio_alloc(self, count: int, current: Task) -> int:
        """`bio_alloc` until it would sleep, `count` times at most, but once in any case: how many there are."""
        while True:
            bios = self._cache.alloc_bulk(count, GFP_MEMPOOL, current) or self._from_pool(count)
            if bios:
                self._in_use += bios
                return len(bios)
            await self._wait.wait(RETRY_S, current.nice)

    def _from_pool(self, count: int) -> list[Slab]:
        bios, self._pool = self._pool[:count], self._pool[count:]
        return bios

    def bio_put(self, count: int) -> None:
        """`bio_put` for so many, whose I/O has ended: the pool's places are filled first (`mempool_free`)."""
        ended = [self._in_use.popleft() for _ in range(count)]
        pooled = min(count, BIO_POOL_SIZE - len(self._pool))
        self._pool += ended[:pooled]
        self._cache.free_bulk(ended[pooled:])
        if pooled:
            self._wait.wake_all()

    def exit(self) -> None:
        """`bioset_exit`: give the pool back."""
        self._cache.free_bulk(self._pool)
        self._pool = []


class UnlimitedBioSet:
    """As many bios as anybody asks for, made from no memory."""

    async def bio_alloc(self, count: int, current: Task) -> int:
        """All at once."""
        return count

    def bio_put(self, count: int) -> None:
        """Nothing to be done."""
