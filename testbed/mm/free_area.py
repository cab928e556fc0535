"""The buddy allocator of one zone (`zone->free_area`): free blocks of 2**order pages, split and merged.

Which blocks are free depends only on which pages are: a block and its buddy, both free, are one block of the next
order. So merging can wait until somebody asks for more than a page. Until then pages freed one by one lie loose on a
stack, and requests for one page are served from there at the cost of a pop; a block is broken up when it is empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from testbed.mm.page import Page

MAX_ORDER = 11
PAGE_ALLOC_COSTLY_ORDER = 3


class FreeArea:
    """The free pages among `pages`, which are contiguous; all are free to begin with. `nr_free` is NR_FREE_PAGES."""

    __slots__ = ("_blocks", "_first", "_loose", "_pages", "nr_free")

    def __init__(self, pages: Sequence[Page]) -> None:
        self._pages = pages
        self._first = pages[0].pfn
        self._loose: list[Page] = []
        self._blocks: list[dict[int, None]] = [{} for _ in range(MAX_ORDER)]
        self.nr_free = len(pages)
        for pfn, order in reversed(list(_aligned_blocks(self._first, self._first + len(pages)))):
            self._blocks[order][pfn] = None

    def __len__(self) -> int:
        return self.nr_free

    def __iter__(self) -> Iterator[Page]:
        yield from self._loose
        for order, blocks in enumerate(self._blocks):
            for pfn in blocks:
                yield from self.block(pfn, order)

    def block(self, pfn: int, order: int) -> Sequence[Page]:
        """The 2**order pages that start at `pfn`."""
        start = pfn - self._first
        return self._pages[start : start + (1 << order)]

    def take(self, count: int) -> list[Page]:
        """Up to `count` single pages, fewer only when there are no more; `count` is at least 1."""
        loose = self._loose
        while len(loose) < count and self._break_up():
            pass
        pages = loose[: -count - 1 : -1]
        del loose[-count:]
        self.nr_free -= len(pages)
        return pages

    def _break_up(self) -> bool:
        """Make a smallest block loose pages, the lowest on top; False if there is no block."""
        for order, blocks in enumerate(self._blocks):
            if blocks:
                pfn, _none = blocks.popitem()
                self._loose += self.block(pfn, order)[::-1]
                return True
        return False

    def give(self, pages: Sequence[Page]) -> None:
        """Single pages come back."""
        self._loose += pages
        self.nr_free += len(pages)

    def take_block(self, order: int) -> Sequence[Page] | None:
        """2**order contiguous pages (`__rmqueue_smallest`), or None."""
        if not self.has_block(order):
            return None
        for current, blocks in enumerate(self._blocks[order:], order):
            if blocks:
                pfn, _none = blocks.popitem()
                for lower in range(current - 1, order - 1, -1):
                    self._blocks[lower][pfn + (1 << lower)] = None
                self.nr_free -= 1 << order
                return self.block(pfn, order)
        return None

    def give_block(self, pfn: int, order: int) -> None:
        """The 2**order pages from `pfn` on come back (`__free_one_page`)."""
        self._merge(pfn, order)
        self.nr_free += 1 << order

    def has_block(self, order: int) -> bool:
        """Is there a free block of at least 2**order pages?"""
        if not any(self._blocks[order:]):
            self._merge_loose()
        return any(self._blocks[order:])

    def counts(self) -> list[int]:
        """Free blocks of each order (`free_area[order].nr_free`, /proc/buddyinfo)."""
        self._merge_loose()
        return [len(blocks) for blocks in self._blocks]

    def _merge_loose(self) -> None:
        for page in self._loose:
            self._merge(page.pfn, 0)
        self._loose.clear()

    def _merge(self, pfn: int, order: int) -> None:
        while order < MAX_ORDER - 1 and pfn ^ (1 << order) in self._blocks[order]:
            buddy = pfn ^ (1 << order)
            del self._blocks[order][buddy]
            pfn &= buddy
            order += 1
        self._blocks[order][pfn] = None


def _aligned_blocks(pfn: int, end: int) -> Iterator[tuple[int, int]]:
    """The largest blocks that make up the pages from `pfn` to `end`, as (first page frame, order)."""
    while pfn < end:
        order = min(MAX_ORDER, (end - pfn).bit_length(), (pfn & -pfn).bit_length() or MAX_ORDER) - 1
        yield pfn, order
        pfn += 1 << order
