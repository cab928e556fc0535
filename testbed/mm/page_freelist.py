"""Taking pages from zones and giving them back (mm/page_alloc.c: `get_page_from_freelist`, `free_hot_cold_page`).

A request looks at one zone after the other and takes from the first that passes the watermark test: single pages by
way of the per-cpu list, larger blocks from the buddy allocator. A block is stood for by its first page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from testbed.mm.gfp import ALLOC_WMARK_LOW
from testbed.mm.page import Page
from testbed.mm.vmstat import VmStat
from testbed.mm.wait import RunQueue, WaitQueue
from testbed.mm.zone import Zone
from testbed.mm.zone_layout import ZoneType
from testbed.mm.zonelist import Zonelist, Zonelists
from testbed.patches import Switches


class PageFreelists:
    """The free pages of all `zones` of a host.

    `zone` is the one that kernel memory of node 0 comes from first. `nr_free_min` is the lowest number of free pages
    of low memory that any request in trouble has seen. `progress` wakes those who wait for memory.
    """

    def __init__(self, zones: Sequence[Zone], vmstat: VmStat, switches: Switches) -> None:
        self.zones = list(zones)
        self.zonelists = Zonelists(zones)
        self.zone = self.zonelists.node_zonelist(0, 0).zones[0]
        self.vmstat = vmstat
        self.switches = switches
        self.run_queue = RunQueue()
        self.progress = WaitQueue(self.run_queue)
        self._lowmem = [zone for zone in zones if zone.span.kind < ZoneType.HIGHMEM]
        self.nr_free_min = sum(zone.free.nr_free for zone in self._lowmem)

    @property
    def nr_free_pages(self) -> int:
        """NR_FREE_PAGES of all zones."""
        return sum(zone.free.nr_free for zone in self.zones)

    @property
    def managed(self) -> int:
        """Pages of all zones."""
        return sum(zone.managed for zone in self.zones)

    def get_page_from_freelist(
        self, gfp_mask: int, alloc_flags: int, order: int = 0, zonelist: Zonelist | None = None
    ) -> Page | None:
        """2**order pages of the first zone whose watermark, as `alloc_flags` say, would still be met; else None.

        Without a zonelist, node 0's for `gfp_mask`.
        """
        zonelist = zonelist or self.zonelists.node_zonelist(0, gfp_mask)
        classzone = zonelist.classzone
        for zone in zonelist.zones:
            if order:
                enough = zone.watermark_ok(order, classzone, alloc_flags)
            else:
                enough = zone.free.nr_free > zone.floor(classzone, alloc_flags)
            if enough and (page := self._rmqueue(zone, order)) is not None:
                return page
        return None

    def _get_page_above_low(self, zonelist: Zonelist) -> Page | None:
        """`get_page_from_freelist` as the fast path for one page does it."""
        classzone = zonelist.classzone
        for zone in zonelist.zones:
            if zone.free.nr_free > zone.marks[ALLOC_WMARK_LOW][classzone]:
                listed = zone.pcp.pages
                if not listed:
                    return self._rmqueue(zone, 0)
                self.vmstat.pgalloc += 1
                zone.pcp.free_factor >>= 1
                return listed.pop()
        return None

    def _rmqueue(self, zone: Zone, order: int) -> Page | None:
        """`buffered_rmqueue`."""
        if order:
            block = zone.free.take_block(order)
            if block is None:
                return None
            self.vmstat.pgalloc += 1 << order
            return block[0]
        pcp = zone.pcp
        if not pcp.pages:
            pcp.pages += zone.free.take(pcp.batch)[::-1]
            if not pcp.pages:
                return None
        self.vmstat.pgalloc += 1
        pcp.free_factor >>= 1
        return pcp.pages.pop()

    def _rmqueue_bulk(self, zonelist: Zonelist, count: int, alloc_flags: int) -> list[Page]:
        """Up to `count` single pages, as if each had been asked for by itself; none if `count` is not positive."""
        taken: list[Page] = []
        for zone in zonelist.zones:
            if len(taken) >= count:
                break
            above = zone.free.nr_free - zone.floor(zonelist.classzone, alloc_flags)
            if above > 0:
                pages = _take(zone, count - len(taken), above)
                taken = taken + pages if taken else pages
        self.vmstat.pgalloc += len(taken)
        return taken

    def free_pages(self, pages: Iterable[Page]) -> None:
        """`free_pages` for single pages: back to their zones; whoever waits for memory hears of it."""
        pages = list(pages)
        for page in pages:
            page.reset()
        self._free(pages)

    def free_page(self, page: Page) -> None:
        """`__free_page`."""
        page.reset()
        self._free_to(page.zone, [page])

    def free_slab_pages(self, pages: list[Page]) -> None:
        """`free_pages` for pages that were slabs: nothing but the way they were allocated is to be forgotten."""
        for page in pages:
            page.pfmemalloc = page.from_reserve = False
        self._free(pages)

    def free_order(self, pages: Sequence[Page]) -> None:
        """`__free_pages`: a block that was allocated as one goes back as one."""
        if len(pages) == 1:
            self.free_page(pages[0])
            return
        for page in pages:
            page.reset()
        zone = pages[0].zone
        zone.free.give_block(pages[0].pfn, len(pages).bit_length() - 1)
        self._freed(zone, len(pages))

    def _free(self, pages: list[Page]) -> None:
        if len(self.zones) == 1:
            self._free_to(self.zones[0], pages)
            return
        by_zone: dict[Zone, list[Page]] = {}
        for page in pages:
            by_zone.setdefault(page.zone, []).append(page)
        for zone, its_pages in by_zone.items():
            self._free_to(zone, its_pages)

    def _free_to(self, zone: Zone, pages: list[Page]) -> None:
        """`free_hot_cold_page`: to the per-cpu list, which gives back what is too much."""
        if surplus := zone.pcp.add(pages):
            zone.free.give(surplus)
        self._freed(zone, len(pages))

    def _freed(self, zone: Zone, count: int) -> None:
        self.vmstat.pgfree += count
        zone.pages_scanned = 0
        zone.all_unreclaimable = False
        self.progress.wake(count)

    def drain_all_pages(self) -> None:
        """`drain_all_pages`: the per-cpu lists give everything back to the buddy allocator."""
        for zone in self.zones:
            zone.free.give(zone.pcp.pages)
            zone.pcp.pages.clear()

    def _note_lowest(self) -> None:
        lowest = 0
        for zone in self._lowmem:
            lowest += zone.free.nr_free
        self.nr_free_min = min(self.nr_free_min, lowest)


def _take(zone: Zone, count: int, above: int) -> list[Page]:
    """Up to `count` pages by way of the per-cpu list, which may be filled while free pages are `above` the watermark.

    Of the batch that brings them down to it, only the first page can be had.
    """
    pcp = zone.pcp
    listed, batch = pcp.pages, pcp.batch
    count = min(count, len(listed) + (above - 1) // batch * batch + 1)
    missing = count - len(listed)
    pcp.free_factor >>= count
    if missing > 0:
        more = zone.free.take(-(-missing // batch) * batch)
        pages = listed[::-1]
        listed[:] = more[: missing - 1 : -1]
        del more[missing:]
        pages += more
    else:
        pages = listed[: -count - 1 : -1]
        del listed[-count:]
    return pages


def block_of(page: Page, order: int) -> list[Page]:
    """The 2**order pages that were allocated as the block that starts with `page`."""
    return list(page.zone.free.block(page.pfn, order)) if order else [page]
