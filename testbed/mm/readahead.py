"""Which slots a swap-in reads besides the one that is wanted (mm/swap_state.c).

3.6 reads the aligned window of slots around it. 6.1 reads the neighbours in the mapping, so many as readahead in the
same mapping has lately been worth.
"""

from __future__ import annotations

SWAP_RA_WINDOW = 8
"""Pages read at once at most: 1 << page_cluster (3)."""
SWAP_RA_HITS_MAX = 63
PTRS_PER_PTE = 512


def cluster_window(entry: int, slots: int) -> range:
    """The aligned window of slots around `entry` (`swapin_readahead`, 3.6); slot 0 is the header's."""
    start = entry & ~(SWAP_RA_WINDOW - 1)
    return range(max(start, 1), min(start + SWAP_RA_WINDOW, slots))


def swapin_nr_pages(prev_offset: int, offset: int, hits: int, max_pages: int, prev_win: int) -> int:
    """`__swapin_nr_pages`: pages to read at `offset` after the `prev_win` at `prev_offset` were used `hits` times."""
    if hits:
        pages = 4
        while pages < hits + 2:
            pages *= 2
    else:
        pages = 2 if abs(offset - prev_offset) == 1 else 1
    return max(min(pages, max_pages), prev_win // 2)


class SwapReadaheadInfo:
    """`vma->swap_readahead_info`: the last swap-in of a mapping, the pages it read, and how many of them were used.

    A new mapping has 4 hits to its credit.
    """

    __slots__ = ("hits", "index", "win")

    def __init__(self) -> None:
        self.index = 0
        self.win = 0
        self.hits = 4

    def window(self, index: int, pages: int) -> range:
        """The neighbours to read in with page `index`, in a mapping of `pages` and in one page table (`swap_ra_info`).

        They lie ahead when the last swap-in was just before, behind when it was just after, and else on both sides.
        """
        previous = self.index
        win = swapin_nr_pages(previous, index, self.hits, SWAP_RA_WINDOW, self.win)
        self.index, self.win, self.hits = index, win, 0
        if index == previous + 1:
            first = index
        elif previous == index + 1:
            first = index - win + 1
        else:
            first = index - (win - 1) // 2
        table = index - index % PTRS_PER_PTE
        return range(max(first, table), min(first + win, pages, table + PTRS_PER_PTE))

    def note_lookup(self, index: int, *, readahead: bool) -> None:
        """Page `index` was found in the swap cache; with `readahead`, thanks to it (`lookup_swap_cache`)."""
        self.index = index
        if readahead:
            self.hits = min(self.hits + 1, SWAP_RA_HITS_MAX)
