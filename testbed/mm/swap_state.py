"""The swap cache (mm/swap_state.c): which page stands for which slot, and the radix tree nodes this costs.

A node covers 64 slots. Adding a page asks for a node with __GFP_NOMEMALLOC, so in a deep shortage no new page
can enter the swap cache, whoever the reclaimer is.
"""

from __future__ import annotations

from testbed.mm.gfp import GFP_HIGH, GFP_NOMEMALLOC, GFP_NOWARN
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.slab_common import KmemCache, Slab
from testbed.mm.swapfile import SwapInfo

RADIX_TREE_MAP_SHIFT = 6
RADIX_TREE_NODE_SIZE = 568


class SwapCache:
    """Pages of the swap cache of one swap area, by slot; tree nodes come from the cache `radix_tree_node`."""

    def __init__(self, swap: SwapInfo, radix_tree_node: KmemCache) -> None:
        self.swap = swap
        self.pages: dict[int, Page] = {}
        self.radix_tree_node = radix_tree_node
        self._nodes: dict[int, tuple[Slab, list[int]]] = {}

    def add_to_swap(self, page: Page, current: Task) -> bool:
        """Give a page a slot and a place in the cache; False when there is no slot or no memory for a node."""
        entry = self.swap.get_swap_page()
        if not entry:
            return False
        if not self.add_to_swap_cache(page, entry, current):
            self.swap.swapcache_free(entry)
            return False
        page.dirty = True
        return True

    def add_to_swap_cache(self, page: Page, entry: int, current: Task) -> bool:
        """Let `page` stand for `entry`; False when there is no memory for a radix tree node."""
        key = entry >> RADIX_TREE_MAP_SHIFT
        node = self._nodes.get(key)
        if node is None:
            slab = self.radix_tree_node.alloc(GFP_HIGH | GFP_NOMEMALLOC | GFP_NOWARN, current)
            if slab is None:
                return False
            node = self._nodes[key] = (slab, [0])
        node[1][0] += 1
        self.pages[entry] = page
        page.swap_entry = entry
        return True

    def delete_from_swap_cache(self, page: Page) -> None:
        """`delete_from_swap_cache`: the page no longer stands for its slot."""
        entry, page.swap_entry = page.swap_entry, 0
        del self.pages[entry]
        key = entry >> RADIX_TREE_MAP_SHIFT
        slab, used = self._nodes[key]
        used[0] -= 1
        if not used[0]:
            del self._nodes[key]
            self.radix_tree_node.free(slab)
        self.swap.swapcache_free(entry)
