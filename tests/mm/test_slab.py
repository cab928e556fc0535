"""SLAB of 3.6: arrays, tags, forced growth, and what patch 13 leaves out while there is no memalloc socket."""

from __future__ import annotations

import pytest

from testbed.mm.array_cache import cache_estimate, cache_limit
from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC, GFP_NOMEMALLOC
from testbed.mm.sched import Task
from testbed.mm.slab import KmemCache
from testbed.mm.slab_common import Slab
from testbed.patches import Switches
from tests.mm.machine import SERIES, Machine, without
from tests.virtual_time import simulate

PLAIN = Task("plain")
MEMALLOC = GFP_ATOMIC | GFP_MEMALLOC
CALLED = without(slab_inline=False)


def boot(switches: Switches = SERIES, object_size: int = 1024) -> tuple[Machine, KmemCache]:
    machine = Machine(switches=switches, slab="slab")
    return machine, cache_of(machine, object_size)


def cache_of(machine: Machine, object_size: int = 1024) -> KmemCache:
    cache = machine.node.kmem_cache_create(f"test-{object_size}", object_size)
    assert isinstance(cache, KmemCache)
    return cache


def take(cache: KmemCache, gfp_mask: int = GFP_ATOMIC) -> Slab:
    slab = cache.alloc(gfp_mask, PLAIN)
    assert slab is not None
    return slab


def from_reserve(machine: Machine, cache: KmemCache, free: int = 10) -> Slab:
    """One object of a new slab from the reserve; its three others are in the array. Memory stays short."""
    machine.drain(free)
    slab = take(cache, MEMALLOC)
    assert slab.page.pfmemalloc
    return slab


@pytest.mark.parametrize(
    ("size", "objects", "limit"),
    [(64, 59, 120), (128, 30, 120), (256, 15, 120), (512, 8, 54), (568, 7, 54), (1024, 4, 54), (2048, 2, 24)],
)
def test_sizes_are_those_of_slabinfo(size: int, objects: int, limit: int) -> None:
    assert (cache_estimate(size), cache_limit(size)) == (objects, limit)
    _machine, cache = boot(object_size=size)
    assert (cache.batchcount, cache.shared.limit) == (limit // 2, 4 * limit)
    assert cache.free_limit == limit + objects


def test_caches_have_slabs_names() -> None:
    node = Machine(slab="slab").node
    assert node.kmalloc_cache(1920).name == "size-2048"
    assert {"size-64", "size-4096", "radix_tree_node"} <= set(node.caches)
    assert Machine().node.kmalloc_cache(1920).name == "kmalloc-2048"


def test_the_last_object_freed_is_the_first_taken() -> None:
    _machine, cache = boot()
    objects = [take(cache) for _ in range(12)]
    for slab in objects:
        cache.free(slab)
    assert [take(cache) for _ in range(12)] == objects[::-1]


def test_a_full_array_sends_its_oldest_batch_to_the_shared_array_and_then_to_the_slabs() -> None:
    _machine, cache = boot(object_size=2048)
    objects = [take(cache) for _ in range(200)]
    cache.free_bulk(objects[:25])
    assert (len(cache.array), cache.shared.entries) == (13, objects[:12])
    cache.free_bulk(objects[25:])
    assert (len(cache.array), len(cache.shared)) == (20, 96)
    assert cache.free_objects <= cache.free_limit
    assert len(cache.slabs_free) * 2 == cache.free_objects
    assert sorted(map(id, [take(cache) for _ in range(20)])) == sorted(map(id, objects[:-21:-1]))
    take(cache)
    assert len(cache.shared) == 84


def test_vector_52_an_ordinary_caller_gets_the_ordinary_object_below_a_tagged_one() -> None:
    machine, cache = boot()
    ordinary = take(cache)
    machine.drain(10)
    cache.array.pop_newest(len(cache.array))
    reserve = take(cache, MEMALLOC)
    cache.array.pop_newest(len(cache.array))
    cache.free(ordinary)
    cache.free(reserve)
    assert cache.array.tags == b"\0\1"
    assert take(cache) is ordinary
    assert cache.array.entries == [reserve]
    assert cache.array.tags == b"\1"


def test_vector_53_nothing_for_an_ordinary_caller_when_the_cache_cannot_grow() -> None:
    machine, cache = boot()
    from_reserve(machine, cache)
    before = len(cache.array)
    assert cache.array.tags == b"\1" * before
    assert cache.alloc(GFP_ATOMIC, PLAIN) is None
    assert cache.array.tags == b"\1" * before


def test_a_failed_forced_growth_fails_although_there_is_a_free_slab() -> None:
    machine, cache = boot()
    whole = [take(cache) for _ in range(4)]
    from_reserve(machine, cache)
    cache._free_block(whole)
    assert cache.slabs_free
    assert cache.alloc(GFP_ATOMIC, PLAIN) is None


def test_a_forced_growth_that_succeeds_converts_the_slab_from_the_reserve() -> None:
    machine, cache = boot()
    reserve = from_reserve(machine, cache)
    machine.give_back()
    assert take(cache) is reserve
    assert not reserve.pfmemalloc
    assert (cache.nr_slabs, len(cache.slabs_free)) == (2, 1)
    assert machine.node.vmstat.slab_pfmemalloc_cleared == 1
    assert machine.node.vmstat.slab_untagged_leaked == 0
    assert not machine.node.pfmemalloc.active


def test_an_entitled_caller_takes_a_tagged_object_at_once() -> None:
    machine, cache = boot()
    reserve = from_reserve(machine, cache)
    assert take(cache, MEMALLOC) is reserve
    assert machine.node.vmstat.slab_untagged_leaked == 0
    assert cache.alloc(MEMALLOC | GFP_NOMEMALLOC, PLAIN) is None


def test_a_refill_with_nothing_but_reserve_objects_fails_without_growth() -> None:
    """The array was empty, so growth is not forced; the next request forces it."""
    machine, cache = boot()
    reserve = from_reserve(machine, cache)
    held = [take(cache, MEMALLOC) for _ in range(3)]
    cache._free_block(held)
    machine.give_back()
    assert cache.alloc(GFP_ATOMIC, PLAIN) is None
    assert cache.array.tags == b"\1\1\1"
    assert take(cache) is reserve
    assert machine.node.vmstat.slab_pfmemalloc_cleared == 1


def test_tags_survive_a_move_to_the_shared_array_but_not_one_to_the_slabs() -> None:
    machine, cache = boot(object_size=2048)
    machine.drain(30)
    objects = [take(cache, MEMALLOC) for _ in range(60)]
    reserve = [slab for slab in objects if slab.pfmemalloc]
    cache.free_bulk(reserve[:25])
    assert cache.shared.tags == b"\1" * 12
    cache.shared.limit = 0
    cache.free_bulk(reserve[25:])
    assert cache.slabs_partial or cache.slabs_free
    cache.pfmemalloc.active = False
    cache.array.pop_newest(len(cache.array))
    cache.shared.pop_newest(len(cache.shared))
    cache._fill_array(True)
    assert 1 not in cache.array.tags


def test_recheck_looks_at_one_cache_and_clears_the_flag_of_all() -> None:
    machine, cache = boot()
    other = cache_of(machine, 512)
    elsewhere = from_reserve(machine, other)
    from_reserve(machine, cache)
    machine.give_back()
    take(cache)
    assert other.nr_pfmemalloc == 1
    assert not machine.node.pfmemalloc.active
    other.array.pop_newest(len(other.array))
    other.free(elsewhere)
    assert take(other) is elsewhere
    assert machine.node.vmstat.slab_untagged_leaked == 1


def test_the_flag_stays_while_this_cache_has_another_reserve_slab() -> None:
    machine, cache = boot(object_size=4096)
    reserve = [from_reserve(machine, cache) for _ in range(2)]
    cache.free_bulk(reserve)
    machine.give_back()
    take(cache)
    assert machine.node.pfmemalloc.active
    take(cache)
    assert not machine.node.pfmemalloc.active


@pytest.mark.parametrize(("switches", "tagged"), [(SERIES, False), (CALLED, True)])
def test_without_memalloc_sockets_patch_13_neither_sets_nor_tests_tags(switches: Switches, tagged: bool) -> None:
    machine, cache = boot(switches)
    machine.memalloc_socks = 0
    reserve = from_reserve(machine, cache)
    assert (1 in cache.array.tags) == tagged
    assert (cache.alloc(GFP_ATOMIC, PLAIN) is reserve) == (not tagged)
    vmstat = machine.node.vmstat
    assert (vmstat.slab_inlined, vmstat.slab_not_inlined) == ((0, 2) if tagged else (2, 0))
    assert vmstat.slab_untagged_leaked == (not tagged)


@pytest.mark.parametrize("switches", [SERIES, CALLED])
def test_with_memalloc_sockets_patch_13_has_no_occasion(switches: Switches) -> None:
    machine, cache = boot(switches)
    from_reserve(machine, cache)
    assert cache.array.tags == b"\1\1\1"
    assert cache.alloc(GFP_ATOMIC, PLAIN) is None
    vmstat = machine.node.vmstat
    assert (vmstat.slab_inlined, vmstat.slab_not_inlined) == (0, 0)


def test_tags_outlive_the_last_memalloc_socket_and_go_out_with_the_pointer() -> None:
    """Patch 13's hazard: the plain pop does not strip bit 0, and the plain push does not either."""
    machine, cache = boot()
    reserve = from_reserve(machine, cache)
    machine.memalloc_socks = 0
    taken = take(cache)
    assert taken is reserve
    vmstat = machine.node.vmstat
    assert (vmstat.slab_misaligned_objects, reserve.misaligned) == (1, 1)
    cache.free(taken)
    assert cache.array.tags == b"\1\1\1"
    assert reserve.misaligned == 0
    assert cache.alloc_bulk(2, GFP_ATOMIC, PLAIN) == [reserve] * 2
    assert vmstat.slab_misaligned_objects == 3


def test_without_patch_02_reserve_slabs_belong_to_everybody() -> None:
    machine, cache = boot(without(slab_pfmemalloc=False))
    machine.drain(10)
    slab = take(cache, MEMALLOC)
    assert take(cache) is slab
    vmstat = machine.node.vmstat
    assert (vmstat.no_watermark_slabs, vmstat.slab_pfmemalloc_pages, vmstat.slab_untagged_leaked) == (1, 0, 0)
    assert (vmstat.slab_inlined, vmstat.slab_not_inlined) == (0, 0)


def test_slub_counters_stay_still() -> None:
    machine, cache = boot(without(slub_unchecked_fast_path=False))
    from_reserve(machine, cache)
    cache.alloc(GFP_ATOMIC, PLAIN)
    vmstat = machine.node.vmstat
    assert (vmstat.slab_pfmemalloc_leaked, vmstat.slab_fast_path_refused, vmstat.slab_partial_leaked) == (0, 0, 0)


def test_a_caller_that_may_sleep_gets_its_object_when_memory_comes_back() -> None:
    async def main() -> None:
        machine, cache = boot()
        machine.drain(64)
        assert cache.alloc(0x10, PLAIN) is None
        machine.give_back(1)
        assert await cache.alloc_wait(0x10, PLAIN) is not None
        assert await cache.alloc_wait(0x10, PLAIN) is not None
        assert (cache.inuse, cache.nr_slabs) == (2, 1)

    simulate(main())


def test_a_sleeper_that_forced_growth_converts_too() -> None:
    async def main() -> None:
        machine, cache = boot()
        reserve = from_reserve(machine, cache)
        machine.give_back()
        assert await cache.alloc_wait(0x10, PLAIN) is reserve
        assert machine.node.vmstat.slab_pfmemalloc_cleared == 1

    simulate(main())


def test_shrink_returns_every_page() -> None:
    machine, cache = boot(object_size=2048)
    objects = cache.alloc_bulk(301, GFP_ATOMIC, PLAIN)
    cache.free_bulk(objects[::2])
    cache.shrink()
    assert cache.free_objects == sum(slab.free for slab in cache.slabs_partial)
    cache.free_bulk(objects[1::2])
    cache.shrink()
    assert (cache.nr_slabs, cache.inuse, cache.free_objects, machine.free) == (0, 0, 0, 1024)
