"""The page that a socket's senders copy into (sk_sndmsg_page, later sk_page_frag): filled up before the next is taken.

Small writes so share a page, and the socket keeps the one it has begun. Acknowledgements free skbs in the order in
which they were sent, so a page goes with the last skb that has some of it: the one that filled it up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from testbed.mm.gfp import GFP_NORETRY, GFP_NOWARN, GFP_WAIT
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE


@dataclass(slots=True)
class Copied:
    """Where `size` bytes went. `pages` and `blocks` of pages were filled up by them, and are the skb's to free.

    `pfmemalloc`: some of it is in the reserve, perhaps in a page that is not full yet.
    """

    size: int = 0
    pages: list[Page] = field(default_factory=list)
    blocks: list[list[Page]] = field(default_factory=list)
    pfmemalloc: bool = False

    def free(self, page_alloc: PageAllocator) -> None:
        """`put_page` for all that was filled up."""
        page_alloc.free_pages(self.pages)
        for block in self.blocks:
            page_alloc.free_order(block)


class SkPageFrag:
    """`sk->sk_frag`: the block of pages that is being filled, `left` bytes of which are free."""

    def __init__(self, page_alloc: PageAllocator) -> None:
        self._page_alloc = page_alloc
        self._order = page_alloc.switches.rules.sk_page_frag_order
        self._block: list[Page] = []
        self.left = 0

    def copy(self, size: int, gfp_mask: int, current: Task) -> Copied:
        """Copy up to `size` bytes without waiting, fewer when there is no page for more.

        From 3.7 on (`skb_page_frag_refill`) a large block is tried first, for which nobody reclaims.
        """
        copied = Copied()
        self._fill(copied, size)
        while self._order and copied.size < size and self._refill(gfp_mask, current):
            self._fill(copied, size)
        if copied.size < size:
            self._copy_to_pages(copied, size, gfp_mask, current)
        return copied

    async def wait_for_page(self, gfp_mask: int, current: Task) -> bool:
        """Have a page to copy into, be it one that another sender has begun meanwhile, however long that takes; False:
        a caller that cannot reclaim found none.
        """
        page = await self._page_alloc.alloc_page(gfp_mask, current)
        if page is None:
            return False
        if self._block:
            self._page_alloc.free_page(page)
        else:
            self._begin([page])
        return True

    def rewind(self) -> None:
        """All that was copied has been acknowledged (`page_count` is 1): the block is filled again from its start."""
        self.left = len(self._block) * PAGE_SIZE

    def free(self) -> None:
        """The socket is gone (`sk_free`)."""
        if self._block:
            self._page_alloc.free_order(self._block)
        self._block, self.left = [], 0

    def _begin(self, block: list[Page]) -> None:
        self._block, self.left = block, len(block) * PAGE_SIZE

    def _refill(self, gfp_mask: int, current: Task) -> bool:
        gfp_mask = (gfp_mask & ~GFP_WAIT) | GFP_NOWARN | GFP_NORETRY
        block = self._page_alloc.alloc_order_nowait(self._order, gfp_mask, current)
        if block is not None:
            self._begin(block)
        return block is not None

    def _fill(self, copied: Copied, size: int) -> None:
        """Copy into the block at hand; once it is full it belongs to the skb."""
        taken = min(size - copied.size, self.left)
        if not taken:
            return
        copied.size += taken
        copied.pfmemalloc |= self._block[0].pfmemalloc
        self.left -= taken
        if not self.left:
            if len(self._block) == 1:
                copied.pages += self._block
            else:
                copied.blocks.append(self._block)
            self._block = []

    def _copy_to_pages(self, copied: Copied, size: int, gfp_mask: int, current: Task) -> None:
        """The rest goes to single pages, the last of which may not be full."""
        wanted = -(-(size - copied.size) // PAGE_SIZE)
        pages = self._page_alloc.alloc_pages_nowait(wanted, gfp_mask | GFP_NOWARN, current)
        copied.pfmemalloc |= any(page.pfmemalloc for page in pages)
        before = copied.size
        copied.size = min(size, before + len(pages) * PAGE_SIZE)
        if left := before + len(pages) * PAGE_SIZE - copied.size:
            self._begin([pages.pop()])
            self.left = left
        copied.pages += pages
