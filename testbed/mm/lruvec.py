"""The LRU lists of one zone (struct lruvec): which of them to scan how far, and how many pages are off them."""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

from testbed.mm.watermarks import PAGE_SIZE
from testbed.mm.zone import Zone

SWAP_CLUSTER_MAX = 32
SWAPPINESS = 60


class ScanCount(NamedTuple):
    """Pages to scan on each list."""

    active_anon: int
    inactive_anon: int
    file: int


class Lruvec:
    """Reclaim's view of `zone`. `nr_isolated_anon` pages were taken off the lists by reclaimers that now sleep."""

    __slots__ = ("inactive_ratio", "nr_isolated_anon", "recent_rotated", "recent_scanned", "zone")

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.inactive_ratio = max(1, isqrt(10 * (zone.managed * PAGE_SIZE >> 30)))
        self.recent_scanned = [0, 0]
        self.recent_rotated = [0, 0]
        self.nr_isolated_anon = 0

    def inactive_anon_is_low(self) -> bool:
        """Should active anonymous pages be deactivated?"""
        zone = self.zone
        return len(zone.inactive_anon) * self.inactive_ratio < len(zone.active_anon)

    def get_scan_count(
        self, priority: int, *, swap_full: bool, force_scan: bool, cache_trim_mode: bool = False
    ) -> ScanCount:
        """`get_scan_count` (3.6): each list's size shifted right by `priority`, shared between memory and page cache.

        Without a free slot only page cache is scanned, and so it is in `cache_trim_mode` as long as it is large enough
        for this priority. At priority 0 everything is. `force_scan` makes that at least SWAP_CLUSTER_MAX pages of each
        list.
        """
        zone = self.zone
        sizes = ScanCount(len(zone.active_anon), len(zone.inactive_anon), len(zone.file))
        if not priority and not swap_full:
            return sizes
        anon, file, denominator = (0, 1, 1) if swap_full else self._fractions()
        if file and cache_trim_mode and len(zone.file) >> priority:
            anon, file, denominator = 0, 1, 1
        least = SWAP_CLUSTER_MAX if force_scan else 0
        active, inactive, cache = ((size >> priority) or min(size, least) for size in sizes)
        return ScanCount(active * anon // denominator, inactive * anon // denominator, cache * file // denominator)

    def _fractions(self) -> tuple[int, int, int]:
        """The shares of anonymous memory and page cache, and their denominator.

        The list whose pages are found in use less often is scanned more; a page cache that together with free memory
        does not fill the high watermark is left alone.
        """
        zone = self.zone
        if not zone.file or len(zone.file) + zone.nr_free_pages <= zone.watermarks.high:
            return 1, 0, 1
        scanned, rotated = self.recent_scanned, self.recent_rotated
        for kind, size in enumerate((len(zone.active_anon) + len(zone.inactive_anon), len(zone.file))):
            if scanned[kind] > size // 4:
                scanned[kind] //= 2
                rotated[kind] //= 2
        anon = (SWAPPINESS + 1) * (scanned[0] + 1) // (rotated[0] + 1)
        file = (200 - SWAPPINESS + 1) * (scanned[1] + 1) // (rotated[1] + 1)
        return anon, file, anon + file + 1
