"""Watermarks from min_free_kbytes (`init_per_zone_wmark_min`, `__setup_per_zone_wmarks`), as pure arithmetic.

Below `low` kswapd works; below `min` ordinary requests wait; below half of `min` direct reclaimers are throttled
(patch 15); below 3/8 of `min` even GFP_ATOMIC fails and only PF_MEMALLOC and __GFP_MEMALLOC go on, down to zero.
Each zone of low memory has its share of min_free_kbytes; a HIGHMEM zone has a small minimum of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from testbed.mm.zone_layout import ZoneSpan, ZoneType, zone_spans
from testbed.rules import LINUX_3_6, LINUX_6_1, V9, Rules

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
SERIES = {"3.6": LINUX_3_6, "6.1": LINUX_6_1}
MIN_FREE_KBYTES_FLOOR = 128
HIGHMEM_MIN_FLOOR = 32
HIGHMEM_MIN_CEILING = 128


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Watermarks of one zone, or their sums, in pages (`min_free_kbytes` in KiB)."""

    min_free_kbytes: int
    min: int
    low: int
    high: int

    @property
    def throttle(self) -> int:
        """Direct reclaimers wait while free pages are at or below this (patch 15): half of min."""
        return self.min // 2

    @property
    def atomic_floor(self) -> int:
        """GFP_ATOMIC (ALLOC_HIGH and ALLOC_HARDER) fails when free pages are at or below this."""
        reduced = self.min - self.min // 2
        return reduced - reduced // 4


def default_min_free_kbytes(lowmem_kbytes: int, rules: Rules = V9) -> int:
    """The kernel's own choice for `lowmem_kbytes` KiB of low memory."""
    wanted = isqrt(16 * lowmem_kbytes)
    return max(MIN_FREE_KBYTES_FLOOR, min(wanted, rules.min_free_kbytes_ceiling))


def lowmem(spans: Sequence[ZoneSpan]) -> int:
    """Pages of the zones below HIGHMEM."""
    return sum(span.pages for span in spans if span.kind < ZoneType.HIGHMEM)


def zone_watermarks(span: ZoneSpan, lowmem_pages: int, min_free_kbytes: int, rules: Rules = V9) -> Watermarks:
    """The watermarks of one zone of a machine that has `lowmem_pages` pages below HIGHMEM."""
    pages_min = min_free_kbytes >> (PAGE_SHIFT - 10)
    share = pages_min * span.pages // lowmem_pages
    wmark_min = share
    if span.kind == ZoneType.HIGHMEM:
        wmark_min = max(HIGHMEM_MIN_FLOOR, min(span.pages // 1024, HIGHMEM_MIN_CEILING))
    if not rules.watermark_scale_factor:
        return Watermarks(min_free_kbytes, wmark_min, wmark_min + share // 4, wmark_min + share // 2)
    gap = max(share // 4, span.pages * rules.watermark_scale_factor // 10000)
    return Watermarks(min_free_kbytes, wmark_min, wmark_min + gap, wmark_min + 2 * gap)


def setup_per_zone_wmarks(
    spans: Sequence[ZoneSpan], min_free_kbytes: int | None = None, rules: Rules = V9
) -> list[Watermarks]:
    """The watermarks of each zone of a machine.

    Raises:
        ValueError: a min_free_kbytes that leaves a zone no memory to allocate.
    """
    lowmem_pages = lowmem(spans)
    if min_free_kbytes is None:
        min_free_kbytes = default_min_free_kbytes(lowmem_pages * PAGE_SIZE // 1024, rules)
    marks = [zone_watermarks(span, lowmem_pages, min_free_kbytes, rules) for span in spans]
    roomy = bool(spans) and all(mark.high < span.pages for mark, span in zip(marks, spans, strict=True))
    if min_free_kbytes <= 0 or not roomy:
        kbytes = sum(span.pages for span in spans) * PAGE_SIZE // 1024
        raise ValueError(f"min_free_kbytes of {min_free_kbytes} does not suit a machine with {kbytes} KiB of memory")
    return marks


def compute(
    pages: int, min_free_kbytes: int | None = None, rules: Rules = V9, zones: str = "normal", nodes: int = 1
) -> Watermarks:
    """The watermarks of a machine with `pages` pages: the sums over its low memory, which the reserve is made of.

    Raises:
        ValueError: an unknown layout, or a min_free_kbytes that leaves no memory to allocate.
    """
    spans = zone_spans(pages, zones, nodes)
    marks = setup_per_zone_wmarks(spans, min_free_kbytes, rules)
    low = [mark for mark, span in zip(marks, spans, strict=True) if span.kind < ZoneType.HIGHMEM]
    return Watermarks(
        low[0].min_free_kbytes, sum(mark.min for mark in low), sum(mark.low for mark in low), sum(m.high for m in low)
    )
