"""Receive memory that is no slab object: fragments cut from pages (__netdev_alloc_frag), and whole pages of a ring.

A fragment is represented by the `PageFrag` that it was cut from, as an object is by its slab: the page goes back when
its last fragment does. A cache cuts one page after the other and keeps the last one, so that every fragment of a page
from the reserve is in the reserve, also when memory has become plentiful meanwhile.
"""

from __future__ import annotations

from typing import Final

from testbed.mm.gfp import GFP_MEMALLOC, GFP_NOMEMALLOC, GFP_NORETRY, GFP_NOWARN
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.snmp import NetStat

HIGH_ORDER: Final = GFP_NOWARN | GFP_NORETRY | GFP_NOMEMALLOC
"""The attempt at a large block of pages never touches the reserve."""


class PageFrag:
    """A block of pages: `left` fragments are not cut yet, `users` are in use. A reference to it stands for a fragment.

    `pfmemalloc` is what an skb learns of it (patch 10): in a page with a `mapping` those bits are its index.
    """

    __slots__ = ("cache", "left", "page", "pages", "pfmemalloc", "users")

    def __init__(self, cache: FragPages, pages: list[Page], left: int) -> None:
        self.cache = cache
        self.pages = pages
        self.page = pages[0]
        self.left = left
        self.users = 0
        self.pfmemalloc = self.page.pfmemalloc and self.page.mapping is None


class FragPages:
    """Where fragments of `object_size` bytes come from and go back to."""

    def __init__(self, object_size: int, page_alloc: PageAllocator) -> None:
        if object_size > PAGE_SIZE:
            raise ValueError(f"a fragment of {object_size} bytes is more than a page")
        self.object_size = object_size
        self.page_alloc = page_alloc
        self.switches = page_alloc.switches
        self.inuse = 0
        self._page: PageFrag | None = None

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[PageFrag]:
        """Up to `count` fragments, fewer when there is no page for them."""
        raise NotImplementedError

    def has_listed(self, count: int, *, allowed: bool) -> bool:
        """Has the page at hand so many fragments?"""
        return self._page is not None and self._page.left >= count

    def get(self, frag: PageFrag) -> PageFrag:
        """`get_page`: one more user of a fragment."""
        frag.users += 1
        self.inuse += 1
        return frag

    def free(self, frag: PageFrag) -> None:
        """`put_page`."""
        self.free_bulk([frag])

    def free_bulk(self, frags: list[PageFrag]) -> None:
        """`put_page` for many; the page that is being cut stays."""
        self.inuse -= len(frags)
        at_hand = self._page
        unused: list[Page] = []
        for frag in frags:
            frag.users -= 1
            if not frag.users and frag is not at_hand:
                self._put(frag, unused)
        if unused:
            self.page_alloc.free_slab_pages(unused)

    def drain(self) -> None:
        """Give up the page at hand."""
        page, self._page = self._page, None
        if page is not None and not page.users:
            unused: list[Page] = []
            self._put(page, unused)
            self.page_alloc.free_slab_pages(unused)

    def _put(self, frag: PageFrag, unused: list[Page]) -> None:
        """A page without users goes to `unused`, a larger block back at once."""
        if len(frag.pages) == 1:
            unused.append(frag.page)
        else:
            self.page_alloc.free_order(frag.pages)


class PageFragCache(FragPages):
    """`netdev_alloc_cache` (3.5), later `page_frag_cache`, of one CPU.

    The kernel cuts all sizes from the same page; here each size has a cache of its own.
    """

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[PageFrag]:
        """`__netdev_alloc_frag`, up to `count` times."""
        taken = self._cut(count)
        while len(taken) < count and (block := self._alloc_high_order(gfp_mask, current)):
            taken += self._cut_new(block, count - len(taken))
        if len(taken) < count:
            wanted = -(-(count - len(taken)) // (PAGE_SIZE // self.object_size))
            for page in self.page_alloc.alloc_pages_nowait(wanted, gfp_mask, current):
                taken += self._cut_new([page], count - len(taken))
        if len(taken) < count:
            self._page = None
        self.inuse += len(taken)
        return taken

    def _alloc_high_order(self, gfp_mask: int, current: Task) -> list[Page] | None:
        order = self.switches.rules.page_frag_order
        return self.page_alloc.alloc_order_nowait(order, gfp_mask | HIGH_ORDER, current) if order else None

    def _cut_new(self, pages: list[Page], count: int) -> list[PageFrag]:
        """Up to `count` fragments of new pages, which are at hand from now on."""
        self._page = PageFrag(self, pages, self._fragments_in(pages))
        return self._cut(count)

    def _cut(self, count: int) -> list[PageFrag]:
        """Up to `count` fragments of the page at hand, which is cut again once all its fragments have come back."""
        page = self._page
        if page is None or not count or not (page.left or self._recycle(page)):
            return []
        cut = min(page.left, count)
        page.left -= cut
        page.users += cut
        return [page] * cut

    def _recycle(self, page: PageFrag) -> bool:
        """Whether a page that is used up can be cut once more; if not, it leaves the cache."""
        if page.users or (page.page.pfmemalloc and self.switches.rules.page_frag_recovery):
            self.drain()
            return False
        page.left = self._fragments_in(page.pages)
        return True

    def _fragments_in(self, pages: list[Page]) -> int:
        return len(pages) * PAGE_SIZE // self.object_size


class WholePages(FragPages):
    """Pages behind the linear data of an skb (`alloc_skb_with_frags`), each a fragment of its own."""

    def __init__(self, page_alloc: PageAllocator) -> None:
        super().__init__(PAGE_SIZE, page_alloc)

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[PageFrag]:
        """`alloc_page`, up to `count` times."""
        taken = [PageFrag(self, [page], 0) for page in self.page_alloc.alloc_pages_nowait(count, gfp_mask, current)]
        for frag in taken:
            frag.users = 1
        self.inuse += len(taken)
        return taken


class NetdevPages(WholePages):
    """Whole pages for the descriptors of a ring: `__netdev_alloc_page` of patch 11, merged as `__skb_alloc_page`, today
    `__dev_alloc_pages`. What they say to an skb of theirs is `skb_propagate_pfmemalloc` (as posted
    `propagate_pfmemalloc_skb`).
    """

    def __init__(self, page_alloc: PageAllocator, netstat: NetStat) -> None:
        super().__init__(page_alloc)
        self.netstat = netstat

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[PageFrag]:
        """`__netdev_alloc_page`, up to `count` times. Patch 11 asks for the reserve whatever sockets there are."""
        patched, netstat = self.switches.netdev_page_pfmemalloc, self.netstat
        if patched and not gfp_mask & GFP_NOMEMALLOC:
            gfp_mask |= GFP_MEMALLOC
        taken = super().alloc_bulk(count, gfp_mask, current)
        netstat.netdev_page_pfmemalloc += sum([frag.pfmemalloc for frag in taken])
        failed = len(taken) < count
        netstat.alloc_rx_page_failed += failed
        netstat.netdev_page_reserve_refused += failed and not patched
        return taken
