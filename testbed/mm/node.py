"""One memory node (pg_data_t): all parts of the memory model, put together over one block of RAM."""

from __future__ import annotations

from collections.abc import Callable

from testbed.mm import slab as slab_3_6
from testbed.mm import slab_lists, slub
from testbed.mm.kswapd import Kswapd
from testbed.mm.memory import Memory
from testbed.mm.oom_kill import OomKiller
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.page_io import SwapDevice, SwapIO
from testbed.mm.slab_common import KmemCache
from testbed.mm.swap_state import RADIX_TREE_NODE_SIZE, SwapCache
from testbed.mm.swapfile import SwapInfo
from testbed.mm.vmscan import Vmscan
from testbed.mm.vmstat import VmStat
from testbed.mm.watermarks import PAGE_SIZE, compute
from testbed.mm.zone import Zone
from testbed.patches import Switches

KMALLOC_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)


class Node:
    """The memory of one host.

    Args:
        ram: writable bytes, a multiple of PAGE_SIZE long; pages of user memory live in it.
        swap_device: where pages go; its area has `swap_pages` slots, the header's included.
        min_free_kbytes: KiB, or None for the kernel's default.
        page_cache: pages of clean page cache that the machine starts with.
        slab: which slab allocator, "slub" or "slab".
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
        slab: str = "slub",
        memalloc_socks: Callable[[], int] = int,
    ) -> None:
        self.switches = switches
        self.vmstat = VmStat()
        self.zone = Zone(ram, compute(len(ram) // PAGE_SIZE, min_free_kbytes))
        self.page_alloc = PageAllocator(self.zone, self.vmstat, switches)
        self.slab = slab
        self.pfmemalloc = slab_3_6.Pfmemalloc(memalloc_socks)
        self.caches: dict[str, KmemCache] = {}
        self.kmalloc_prefix = "kmalloc" if slab == "slub" else "size"
        for size in KMALLOC_SIZES:
            self.kmem_cache_create(f"{self.kmalloc_prefix}-{size}", size)
        self.swap = SwapInfo(swap_pages)
        self.swap_cache = SwapCache(self.swap, self.kmem_cache_create("radix_tree_node", RADIX_TREE_NODE_SIZE))
        self.swap_io = SwapIO(self.page_alloc, self.swap_cache, swap_device)
        self.vmscan = Vmscan(self.page_alloc, self.swap_cache, self.swap_io)
        self.kswapd = Kswapd(self.vmscan)
        self.memory = Memory(self.page_alloc, self.swap_cache, self.swap_io)
        self.oom_killer = OomKiller(self.vmstat, [self.vmscan.pfmemalloc_wait, self.page_alloc.progress])
        self.page_alloc.wakeup_kswapd = self.kswapd.wakeup_kswapd
        self.page_alloc.try_to_free_pages = self.vmscan.try_to_free_pages
        self.page_alloc.out_of_memory = self.oom_killer.out_of_memory
        self._fill_page_cache(page_cache)

    def _fill_page_cache(self, pages: int) -> None:
        for _ in range(pages):
            page = self.page_alloc.get_page_from_freelist(self.zone.watermarks.high)
            if page is not None:
                self.zone.file[page] = None

    def drop_caches(self) -> None:
        """`echo 1 > /proc/sys/vm/drop_caches`: free the page cache."""
        pages = list(self.zone.file)
        self.zone.file.clear()
        self.page_alloc.free_pages(pages)

    def kmem_cache_create(self, name: str, object_size: int) -> KmemCache:
        """`kmem_cache_create`: a cache of objects of `object_size` bytes."""
        cache: KmemCache
        if self.slab == "slub":
            cache = slub.KmemCache(name, object_size, self.page_alloc)
        elif self.switches.rules.slab_pfmemalloc == "tags":
            cache = slab_3_6.KmemCache(name, object_size, self.page_alloc, self.pfmemalloc)
        else:
            cache = slab_lists.KmemCache(name, object_size, self.page_alloc, self.pfmemalloc)
        self.caches[name] = cache
        return cache

    def kmalloc_cache(self, size: int) -> KmemCache:
        """`kmalloc_slab`: the cache that serves `size` bytes.

        Raises:
            ValueError: more than a page, which this model does not serve.
        """
        for cache_size in KMALLOC_SIZES:
            if size <= cache_size:
                return self.caches[f"{self.kmalloc_prefix}-{cache_size}"]
        raise ValueError(f"kmalloc of {size} bytes is more than a page")

    def counters(self) -> dict[str, int]:
        """All counters and gauges, with the names of /proc/vmstat."""
        counters = self.vmstat.snapshot()
        counters["nr_free_pages"] = self.zone.nr_free_pages
        counters["nr_active_anon"] = len(self.zone.active_anon)
        counters["nr_inactive_anon"] = len(self.zone.inactive_anon)
        counters["nr_file_pages"] = len(self.zone.file)
        counters["reserve_min_free"] = self.zone.nr_free_min
        return counters

    def pages_leaked(self) -> int:
        """Pages not on the free list once the empty slabs have been given back."""
        for cache in self.caches.values():
            cache.shrink()
        return self.zone.managed - self.zone.nr_free_pages
