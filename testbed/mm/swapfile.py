"""Swap slots of one swap area (mm/swapfile.c): the swap map, clusters, and when swap counts as full.

A byte per slot holds how many ptes refer to it, plus SWAP_HAS_CACHE while a page in the swap cache stands for it.
Slot 0 holds the header and is never handed out, so 0 also means "no slot".
"""

from __future__ import annotations

from typing import Final

SWAP_HAS_CACHE: Final = 0x40
SWAP_MAP_BAD: Final = 0x3F
SWAPFILE_CLUSTER: Final = 256
EMPTY_CLUSTER: Final = bytes(SWAPFILE_CLUSTER)


class SwapInfo:
    """`struct swap_info_struct`: a swap area of `pages` slots, the header's included."""

    def __init__(self, pages: int) -> None:
        self.swap_map = bytearray(pages)
        self.swap_map[0] = SWAP_MAP_BAD
        self.pages = pages - 1
        self.inuse_pages = 0
        self._cluster_next = 1
        self._cluster_nr = 0

    def get_swap_page(self) -> int:
        """A free slot, already marked as cached, or 0 when swap is full.

        Goes on inside the current cluster. The next one starts in the next free run of SWAPFILE_CLUSTER slots: the
        device seeks for nothing (SWP_SOLIDSTATE), so the search goes on from here and levels the wear. Where no such
        run is left any free slot will do (`scan_swap_map`).
        """
        swap_map = self.swap_map
        if not self._cluster_nr:
            start = swap_map.find(EMPTY_CLUSTER, self._cluster_next)
            if start < 0:
                start = swap_map.find(EMPTY_CLUSTER, 1)
            if start > 0:
                self._cluster_next = start
            self._cluster_nr = SWAPFILE_CLUSTER
        offset = self._cluster_next
        if offset >= len(swap_map) or swap_map[offset]:
            offset = swap_map.find(0, offset)
            if offset < 0:
                offset = swap_map.find(0, 1)
            if offset < 0:
                return 0
        self._cluster_nr -= 1
        self._cluster_next = offset + 1
        swap_map[offset] = SWAP_HAS_CACHE
        self.inuse_pages += 1
        return offset

    def swap_count(self, entry: int) -> int:
        """How many ptes refer to the slot; none to slot 0, which is no slot."""
        return self.swap_map[entry] & ~SWAP_HAS_CACHE if entry else 0

    def swap_duplicate(self, entry: int) -> None:
        """One more pte refers to the slot."""
        self.swap_map[entry] += 1

    def swap_free(self, entry: int) -> None:
        """One pte less refers to the slot; it is free when the swap cache does not hold it either."""
        self.swap_map[entry] -= 1
        if not self.swap_map[entry]:
            self.inuse_pages -= 1

    def swapcache_prepare(self, entry: int) -> None:
        """A page in the swap cache now stands for a slot that ptes refer to."""
        self.swap_map[entry] |= SWAP_HAS_CACHE

    def swapcache_free(self, entry: int) -> None:
        """The swap cache lets go of the slot."""
        self.swap_map[entry] &= ~SWAP_HAS_CACHE
        if not self.swap_map[entry]:
            self.inuse_pages -= 1

    def vm_swap_full(self) -> bool:
        """More than half of swap is in use: slots are freed as soon as their page is back in memory."""
        return self.inuse_pages * 2 > self.pages
