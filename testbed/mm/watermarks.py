"""Watermarks from min_free_kbytes (`init_per_zone_wmark_min`, `__setup_per_zone_wmarks`), as pure arithmetic.

Below `low` kswapd works; below `min` ordinary requests wait; below half of `min` direct reclaimers are throttled
(patch 15); below 3/8 of `min` even GFP_ATOMIC fails and only PF_MEMALLOC and __GFP_MEMALLOC go on, down to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
SERIES = ("3.6", "6.1")
MIN_FREE_KBYTES_FLOOR = 128
MIN_FREE_KBYTES_CEILING = {"3.6": 65536, "6.1": 262144}
WATERMARK_SCALE_FACTOR = 10


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Watermarks of one zone, in pages (`min_free_kbytes` in KiB)."""

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


def default_min_free_kbytes(lowmem_kbytes: int, series: str = "3.6") -> int:
    """The kernel's own choice for `lowmem_kbytes` KiB of low memory."""
    wanted = isqrt(16 * lowmem_kbytes)
    return max(MIN_FREE_KBYTES_FLOOR, min(wanted, MIN_FREE_KBYTES_CEILING[series]))


def compute(managed_pages: int, min_free_kbytes: int | None = None, series: str = "3.6") -> Watermarks:
    """Watermarks of a machine whose memory is one low zone of `managed_pages` pages.

    Raises:
        ValueError: an unknown series, or a min_free_kbytes that leaves no memory to allocate.
    """
    if series not in SERIES:
        raise ValueError(f"unknown series {series!r}: choose one of {', '.join(SERIES)}")
    kbytes_of_memory = managed_pages * PAGE_SIZE // 1024
    if min_free_kbytes is None:
        min_free_kbytes = default_min_free_kbytes(kbytes_of_memory, series)
    wmark_min = min_free_kbytes >> (PAGE_SHIFT - 10)
    if series == "3.6":
        low, high = wmark_min + wmark_min // 4, wmark_min + wmark_min // 2
    else:
        gap = max(wmark_min // 4, managed_pages * WATERMARK_SCALE_FACTOR // 10000)
        low, high = wmark_min + gap, wmark_min + 2 * gap
    if min_free_kbytes <= 0 or high >= managed_pages:
        raise ValueError(
            f"min_free_kbytes of {min_free_kbytes} does not suit a machine with {kbytes_of_memory} KiB of memory"
        )
    return Watermarks(min_free_kbytes, wmark_min, low, high)
