"""A count of everything on a node: each page in exactly one place, each slot accounted for, each counter right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from testbed.mm import slab, slub
from testbed.mm.memory import Vma
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.slab_common import KmemCache, Slab
from testbed.mm.swapfile import SWAP_HAS_CACHE, SWAP_MAP_BAD


def slabs_of(cache: KmemCache, objects: Iterable[Slab]) -> set[Slab]:
    """The slabs of `cache`: full ones are known only by the objects in use, which are `objects`."""
    slabs = {slab for slab in objects if slab.cache is cache}
    if isinstance(cache, slab.KmemCache):
        return slabs | {*cache.slabs_partial, *cache.slabs_free, *cache.array.entries, *cache.shared.entries}
    assert isinstance(cache, slub.KmemCache)
    listed = {*cache._cpu_partial, *([cache._cpu_slab] if cache._cpu_slab is not None else [])}
    assert len(listed) == len(cache._cpu_partial) + (cache._cpu_slab is not None)
    assert not listed & set(cache._partial)
    assert all(item.free for item in (*cache._cpu_partial, *cache._partial))
    ranks = [item.rank for item in cache._partial]
    assert ranks == sorted(set(ranks))
    assert {item for item in slabs if item.free} <= listed | set(cache._partial)
    assert cache._partial.nr_pfmemalloc == sum(item.pfmemalloc for item in cache._partial)
    return slabs | listed | set(cache._partial)


def check_cache(cache: KmemCache, slabs: Collection[Slab], in_use: Collection[Slab]) -> None:
    """Each object is with a caller, unused in its slab, or (SLAB) in one of the arrays; the counters agree."""
    assert len(slabs) == cache.nr_slabs
    assert cache.inuse == sum(slab.cache is cache for slab in in_use)
    cached: list[Slab] = []
    if isinstance(cache, slab.KmemCache):
        cached = [*cache.array.entries, *cache.shared.entries]
        assert cache.free_objects == sum(slab.free for slab in slabs)
        assert cache.nr_pfmemalloc == sum(slab.pfmemalloc for slab in slabs)
        assert set(cache.slabs_partial) == {slab for slab in slabs if 0 < slab.free < slab.objects}
        assert set(cache.slabs_free) == {slab for slab in slabs if slab.free == slab.objects}
        for array in (cache.array, cache.shared):
            assert len(array.tags) == len(array.entries) <= array.limit
    out = Counter(slab for slab in in_use if slab.cache is cache) + Counter(cached)
    assert all(out[slab] == slab.objects - slab.free for slab in slabs)


def check_pages(node: Node, held: Collection[Page], objects: Collection[Slab]) -> None:
    """Every page is free, in a slab, on an LRU list, in the page cache or held; none twice, none lost."""
    bios = node.fs_bio_set
    in_use = [*objects, *(slab for slab, _used in node.swap_cache._nodes.values()), *bios._pool, *bios._in_use]
    slab_pages: list[Page] = []
    for cache in node.caches.values():
        slabs = slabs_of(cache, in_use)
        check_cache(cache, slabs, in_use)
        slab_pages += [slab.page for slab in slabs]
    active = [page for zone in node.zones for page in zone.active_anon]
    inactive = [page for zone in node.zones for page in zone.inactive_anon]
    anon = active + inactive
    free = [page for zone in node.zones for page in (*zone.free, *zone.pcp.pages)]
    isolated = [page for zone in node.zones for page in zone.pages if page.pins and not page.lru]
    file = [page for zone in node.zones for page in zone.file]
    everywhere = [*free, *slab_pages, *anon, *file, *isolated, *held]
    managed = node.page_alloc.managed
    assert len(everywhere) == managed
    assert len(set(everywhere)) == managed
    assert all(page.lru for page in anon)
    assert all(page.active for page in active)
    assert not any(page.active for page in inactive)
    assert not any(page.lru or page.swap_entry or page.writeback or page.pfmemalloc for page in free)
    assert all(len([*zone.free]) == zone.nr_free_pages for zone in node.zones)
    vmstat = node.vmstat
    assert vmstat.pgalloc - vmstat.pgfree == managed - len(free)
    assert vmstat.nr_slab_unreclaimable == len(slab_pages)
    assert vmstat.nr_writeback == sum(page.writeback for page in [*anon, *isolated])
    assert vmstat.nr_isolated_anon == len(isolated)


def check_swap(node: Node, vmas: Collection[Vma]) -> None:
    """The swap map agrees with the ptes and with the swap cache, which agrees with its pages."""
    swap, cache = node.swap, node.swap_cache
    references = [0] * len(swap.swap_map)
    for vma in vmas:
        present = [(index, pte) for index, pte in enumerate(vma.ptes) if isinstance(pte, Page)]
        assert all(page.mapping is vma and page.index == index for index, page in present)
        assert len({page for _index, page in present}) == len(present)
        for pte in vma.ptes:
            if isinstance(pte, int):
                references[pte] += 1
    for slot, count in enumerate(swap.swap_map):
        expected = SWAP_MAP_BAD if slot == 0 else references[slot] | (SWAP_HAS_CACHE if slot in cache.pages else 0)
        assert count == expected
    assert swap.inuse_pages == sum(map(bool, swap.swap_map)) - 1
    assert all(page.swap_entry == slot for slot, page in cache.pages.items())
    assert cache.radix_tree_node.inuse == len({slot >> 6 for slot in cache.pages})
    for page in [page for zone in node.zones for page in (*zone.active_anon, *zone.inactive_anon)]:
        assert page.dirty or page.writeback or page.locked or page.swap_entry
        assert page.mapping is not None or page.swap_entry


def check_rss(vmas: Collection[Vma]) -> None:
    """A task's rss is the number of its pages in memory (each task here has one mapping)."""
    for vma in vmas:
        assert vma.owner.rss == sum(isinstance(pte, Page) for pte in vma.ptes)
        assert vma.owner.swapents == sum(isinstance(pte, int) for pte in vma.ptes)
