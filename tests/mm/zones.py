"""Small machines with the zones a test asks for, without the rest of a node."""

from __future__ import annotations

from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.vmstat import VmStat
from testbed.mm.watermarks import PAGE_SIZE, setup_per_zone_wmarks
from testbed.mm.zone import Zone
from testbed.mm.zone_layout import ZoneSpan, ZoneType, lowmem_reserve
from testbed.patches import Switches
from tests.mm.machine import SERIES

DMA, DMA32, NORMAL, HIGHMEM = ZoneType


def spans_of(*zones: tuple[ZoneType, int, int]) -> list[ZoneSpan]:
    """Spans one after the other, from (kind, node, pages)."""
    spans, start = [], 0
    for kind, node, pages in zones:
        spans.append(ZoneSpan(kind, node, start, pages))
        start += pages
    return spans


def allocator(
    *zones: tuple[ZoneType, int, int], switches: Switches = SERIES, min_free_kbytes: int = 1024
) -> PageAllocator:
    """A page allocator over zones of (kind, node, pages)."""
    spans = spans_of(*zones)
    ram = memoryview(bytearray(sum(span.pages for span in spans) * PAGE_SIZE))
    marks = setup_per_zone_wmarks(spans, min_free_kbytes, switches.rules)
    built = [
        Zone(ram, mark, span, lowmem_reserve(span, spans), switches.rules)
        for span, mark in zip(spans, marks, strict=True)
    ]
    return PageAllocator(built, VmStat(), switches)


def zone_of(page_alloc: PageAllocator, kind: ZoneType, node: int = 0) -> Zone:
    """The zone of this kind and node."""
    return next(zone for zone in page_alloc.zones if (zone.span.kind, zone.span.node) == (kind, node))


def drain(zone: Zone, free: int) -> list[Page]:
    """Take pages behind the allocator's back until `free` are left."""
    taken = zone.free.nr_free - free
    return zone.free.take(taken) if taken > 0 else []


def exhaust(page_alloc: PageAllocator, gfp_mask: int, current: Task, order: int = 0) -> list[Page]:
    """Allocate until it fails; the first page of each block."""
    taken = []
    while block := page_alloc.alloc_order_nowait(order, gfp_mask, current):
        taken.append(block[0])
    return taken
