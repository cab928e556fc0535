"""The memory of one host: all parts of the memory model, put together over one block of RAM.

Most hosts are one memory node. One with two (NUMA) has the zones of both, and one reclaim thread for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from testbed.mm import slab as slab_3_6
from testbed.mm import slab_lists, slub
from testbed.mm.bio import BIO_SIZE, BioSet
from testbed.mm.gfp import ALLOC_WMARK_HIGH, GFP_HIGHUSER_MOVABLE
from testbed.mm.kmalloc_large import KmallocLarge, kmalloc_large_order
from testbed.mm.kswapd import Kswapd
from testbed.mm.memory import Memory
from testbed.mm.min_free_kbytes import MinFreeKbytes
from testbed.mm.oom_kill import OomKiller
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.page_io import SwapDevice, SwapIO
from testbed.mm.slab_common import KmemCache
from testbed.mm.swap_state import RADIX_TREE_NODE_SIZE, SwapCache
from testbed.mm.swapfile import SwapInfo
from testbed.mm.vmscan import Vmscan
from testbed.mm.vmstat import VmStat
from testbed.mm.watermarks import PAGE_SIZE, setup_per_zone_wmarks
from testbed.mm.zone import Zone
from testbed.mm.zone_layout import lowmem_reserve, zone_spans
from testbed.patches import Switches

KMALLOC_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)


def kmalloc_size(size: int) -> int:
    """Bytes that kmalloc takes for `size` bytes."""
    if size > PAGE_SIZE:
        return PAGE_SIZE << kmalloc_large_order(size)
    return next(each for each in KMALLOC_SIZES if size <= each)


class Node:
    """The memory of one host.

    Args:
        ram: writable bytes, a multiple of PAGE_SIZE long; pages of user memory live in it.
        swap_device: where pages go; its area has `swap_pages` slots, the header's included.
        min_free_kbytes: KiB, or None for the kernel's default.
        page_cache: pages of clean page cache that the machine starts with.
        zones: the layout of zones, one of `zone_layout.LAYOUTS`.
        nodes: the number of memory nodes, 1 or 2.
        slab: which slab allocator, "slub" or "slab".
        slub_max_order: SLUB's boot parameter of that name: the largest order it asks for, from 0 to 3.
        memalloc_socks: how many SOCK_MEMALLOC sockets there are (`sk_memalloc_socks()`), which only SLAB asks.
    """

    def __init__(
        self,
        ram: memoryview,
        swap_device: SwapDevice,
        swap_pages: int,
        switches: Switches,
        *,
        min_free_kbytes: int | None = None,
        page_cache: int = 0,
        zones: str = "normal",
        nodes: int = 1,
        slab: str = "slub",
        slub_max_order: int = slub.SLUB_MAX_ORDER,
        memalloc_socks: Callable[[], int] = int,
    ) -> None:
        self.switches = switches
        self.vmstat = VmStat()
        spans = zone_spans(len(ram) // PAGE_SIZE, zones, nodes)
        marks = setup_per_zone_wmarks(spans, min_free_kbytes, switches.rules)
        self.zones = [
            Zone(ram, mark, span, lowmem_reserve(span, spans), switches.rules)
            for span, mark in zip(spans, marks, strict=True)
        ]
        self.page_alloc = PageAllocator(self.zones, self.vmstat, switches)
        self.zone = self.page_alloc.zone
        self.min_free_kbytes = MinFreeKbytes(self.zones, self.vmstat, switches)
        self.slab = slab
        self.slub_max_order = slub_max_order
        self.pfmemalloc = slab_3_6.Pfmemalloc(memalloc_socks)
        self.caches: dict[str, KmemCache] = {}
        self.kmalloc_prefix = "kmalloc" if slab == "slub" else "size"
        for size in KMALLOC_SIZES:
            self.kmem_cache_create(f"{self.kmalloc_prefix}-{size}", size)
        self.swap = SwapInfo(swap_pages)
        self.swap_cache = SwapCache(self.swap, self.kmem_cache_create("radix_tree_node", RADIX_TREE_NODE_SIZE))
        self.fs_bio_set = BioSet(self.kmem_cache_create("bio-0", BIO_SIZE))
        self.swap_io = SwapIO(self.page_alloc, self.swap_cache, swap_device, self.fs_bio_set)
        self.vmscan = Vmscan(self.page_alloc, self.swap_cache, self.swap_io)
        self.kswapd = Kswapd(self.vmscan)
        self.memory = Memory(self.page_alloc, self.swap_cache, self.swap_io)
        self.oom_killer = OomKiller(self.vmstat, [self.vmscan.pfmemalloc_wait, self.page_alloc.progress])
        self.page_alloc.wakeup_kswapd = self.kswapd.wakeup_kswapd
        self.page_alloc.kswapd_running = self.kswapd.running
        self.page_alloc.try_to_free_pages = self.vmscan.try_to_free_pages
        self.page_alloc.out_of_memory = self.oom_killer.out_of_memory
        self._fill_page_cache(page_cache)

    def _fill_page_cache(self, pages: int) -> None:
        for _ in range(pages):
            page = self.page_alloc.get_page_from_freelist(GFP_HIGHUSER_MOVABLE, ALLOC_WMARK_HIGH)
            if page is not None:
                page.zone.file[page] = None

    def drop_caches(self) -> None:
        """`echo 1 > /proc/sys/vm/drop_caches`: free the page cache."""
        for zone in self.zones:
            pages = list(zone.file)
            zone.file.clear()
            self.page_alloc.free_pages(pages)

    def kmem_cache_create(self, name: str, object_size: int) -> KmemCache:
        """`kmem_cache_create`: a cache of objects of `object_size` bytes."""
        cache: KmemCache
        if self.slab == "slub":
            cache = slub.KmemCache(name, object_size, self.page_alloc, self.slub_max_order)
        elif self.switches.rules.slab_pfmemalloc == "tags":
            cache = slab_3_6.KmemCache(name, object_size, self.page_alloc, self.pfmemalloc)
        else:
            cache = slab_lists.KmemCache(name, object_size, self.page_alloc, self.pfmemalloc)
        self.caches[name] = cache
        return cache

    def kmalloc_cache(self, size: int) -> KmemCache:
        """`kmalloc_slab`: the cache that serves `size` bytes; above a page, the blocks that do."""
        name = f"{self.kmalloc_prefix}-{kmalloc_size(size)}"
        if name not in self.caches:
            self.caches[name] = KmallocLarge(kmalloc_large_order(size), self.page_alloc)
        return self.caches[name]

    def counters(self) -> dict[str, int]:
        """All counters and gauges, with the names of /proc/vmstat."""
        counters = self.vmstat.snapshot()
        counters["nr_free_pages"] = self.page_alloc.nr_free_pages
        counters["nr_active_anon"] = sum(len(zone.active_anon) for zone in self.zones)
        counters["nr_inactive_anon"] = sum(len(zone.inactive_anon) for zone in self.zones)
        counters["nr_file_pages"] = sum(len(zone.file) for zone in self.zones)
        counters["reserve_min_free"] = self.page_alloc.nr_free_min
        return counters

    def pages_leaked(self) -> int:
        """Pages that are not free once the empty slabs and the per-cpu lists have been given back."""
        self.fs_bio_set.exit()
        for cache in self.caches.values():
            cache.shrink()
        self.page_alloc.drain_all_pages()
        return self.page_alloc.managed - self.page_alloc.nr_free_pages
