"""A machine for the tests: a memory node, and a swap area that is a bytearray behind a simulated delay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from testbed.mm.gfp import ALLOC_NO_WATERMARKS
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.page_io import SwapIO
from testbed.mm.watermarks import PAGE_SIZE
from testbed.patches import Switches
from testbed.rules import V9

VANILLA = Switches.of(())
SERIES = Switches()
MIB = 1 << 20


def without(**switches: Any) -> Switches:
    """The whole series but for the switches given."""
    return replace(SERIES, **switches)


def unmatched(**switches: Any) -> Switches:
    """The series in a kernel whose `get_partial_node` does not look at pfmemalloc (V9 as posted)."""
    return without(rules=replace(V9, slub_get_partial_match=False), **switches)


def only(**switches: Any) -> Switches:
    """No patch but those given."""
    return replace(VANILLA, **switches)


def with_rules(**rules: Any) -> Switches:
    """The whole series in 3.4, but for the rules given."""
    return replace(SERIES, rules=replace(SERIES.rules, **rules))


class FakeSwapDevice:
    """Completes each call after `delay` seconds, or never if that is None.

    With `error` set, requests end with it and move no data.
    """

    swap_io: SwapIO

    def __init__(self, pages: int, delay: float | None) -> None:
        self.store = bytearray(pages * PAGE_SIZE)
        self.delay = delay
        self.error = 0
        self.writes = 0
        self.reads = 0
        self.pending: list[tuple[bool, list[Page]]] = []

    async def submit_write(self, pages: Sequence[Page], nice: int) -> None:
        self.writes += len(pages)
        self._submit(True, list(pages))

    async def submit_read(self, pages: Sequence[Page], nice: int) -> None:
        self.reads += len(pages)
        self._submit(False, list(pages))

    def _submit(self, write: bool, pages: list[Page]) -> None:
        request = (write, pages)
        self.pending.append(request)
        if self.delay is not None:
            asyncio.get_running_loop().call_later(self.delay, self.complete, request)

    def complete(self, request: tuple[bool, list[Page]], error: int | None = None) -> None:
        """End a pending request now."""
        write, pages = request
        error = self.error if error is None else error
        self.pending = [other for other in self.pending if other is not request]
        for page in pages if not error else ():
            offset = page.swap_entry * PAGE_SIZE
            if write:
                self.store[offset : offset + PAGE_SIZE] = page.buffer
            else:
                page.buffer[:] = self.store[offset : offset + PAGE_SIZE]
        if write:
            self.swap_io.end_write(pages, error)
        else:
            self.swap_io.end_read(pages, error)


class Machine:
    """A node of `pages` pages over `device`; it has one memalloc socket if not told otherwise.

    SLUB's slabs are pages, so that what a test allocates can be counted by hand (boot parameter slub_max_order=0).
    """

    def __init__(
        self,
        pages: int = 1024,
        switches: Switches = SERIES,
        *,
        swap_pages: int = 8192,
        delay: float | None = 0.001,
        min_free_kbytes: int | None = None,
        page_cache: int = 0,
        zones: str = "normal",
        nodes: int = 1,
        slab: str = "slub",
        slub_max_order: int = 0,
        memalloc_socks: Callable[[], int] | None = None,
    ) -> None:
        self.memalloc_socks = 1
        self.device = FakeSwapDevice(swap_pages, delay)
        self.node = Node(
            memoryview(bytearray(pages * PAGE_SIZE)),
            self.device,
            swap_pages,
            switches,
            min_free_kbytes=min_free_kbytes,
            page_cache=page_cache,
            zones=zones,
            nodes=nodes,
            slab=slab,
            slub_max_order=slub_max_order,
            memalloc_socks=memalloc_socks or (lambda: self.memalloc_socks),
        )
        self.device.swap_io = self.node.swap_io
        self.held: list[Page] = []

    @property
    def free(self) -> int:
        """NR_FREE_PAGES."""
        return self.node.zone.nr_free_pages

    def drain(self, free: int) -> None:
        """Hold pages until only `free` are left."""
        while self.free > free:
            page = self.node.page_alloc.get_page_from_freelist(0, ALLOC_NO_WATERMARKS)
            assert page is not None
            self.held.append(page)

    def fragment(self) -> None:
        """Leave every other page free, no two together."""
        self.drain(0)
        self.node.page_alloc.free_pages([page for page in self.held if page.pfn % 2])
        self.held = [page for page in self.held if not page.pfn % 2]
        self.node.page_alloc.drain_all_pages()

    def give_back(self, count: int | None = None) -> None:
        """Free `count` of the pages held, or all."""
        count = len(self.held) if count is None else count
        pages = [self.held.pop() for _ in range(count)]
        self.node.page_alloc.free_pages(pages)


def machine_64m(switches: Switches = SERIES, **options: Any) -> Machine:
    """The watermarks of 64 MiB (min 256, low 320, high 384 pages) on an eighth of the memory, which is quicker."""
    return Machine(2048, switches, min_free_kbytes=1024, **options)
