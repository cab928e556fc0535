"""SLUB: objects, slabs, and who may have an object of a slab from the reserve."""

from __future__ import annotations

import pytest

from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC, GFP_NOMEMALLOC
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab
from testbed.mm.slub import KmemCache
from testbed.patches import Switches
from tests.mm.machine import SERIES, Machine, unmatched, without
from tests.virtual_time import simulate

PLAIN = Task("plain")
MEMALLOC = GFP_ATOMIC | GFP_MEMALLOC
STRICT = without(slub_unchecked_fast_path=False)


def cache_of(machine: Machine, object_size: int = 1024) -> KmemCache:
    cache = machine.node.kmem_cache_create(f"test-{object_size}", object_size)
    assert isinstance(cache, KmemCache)
    return cache


def take(cache: KmemCache, gfp_mask: int) -> Slab:
    slab = cache.alloc(gfp_mask, PLAIN)
    assert slab is not None
    return slab


def with_reserve_slab(switches: Switches) -> tuple[Machine, KmemCache, Slab]:
    """A CPU slab of four objects from the reserve, one of them taken; plenty of memory by now."""
    machine = Machine(switches=switches)
    cache = cache_of(machine)
    machine.drain(10)
    slab = take(cache, MEMALLOC)
    machine.give_back()
    return machine, cache, slab


@pytest.mark.parametrize(("size", "objects"), [(256, 16), (568, 7), (2048, 2), (4096, 1)])
def test_a_slab_serves_as_many_objects_as_fit_in_its_page(size: int, objects: int) -> None:
    cache = cache_of(Machine(), size)
    first = take(cache, GFP_ATOMIC)
    assert [take(cache, GFP_ATOMIC) for _ in range(objects - 1)] == [first] * (objects - 1)
    assert take(cache, GFP_ATOMIC) is not first
    assert (cache.nr_slabs, cache.inuse) == (2, objects + 1)


def test_with_patch_03_an_ordinary_caller_drains_the_reserve_slab() -> None:
    machine, cache, slab = with_reserve_slab(SERIES)
    assert slab.pfmemalloc
    assert [take(cache, GFP_ATOMIC) for _ in range(3)] == [slab] * 3
    assert not take(cache, GFP_ATOMIC).pfmemalloc
    vmstat = machine.node.vmstat
    assert (vmstat.slab_pfmemalloc_leaked, vmstat.slab_fast_path_refused) == (3, 0)


def test_without_patch_03_the_reserve_slab_is_put_aside() -> None:
    machine, cache, slab = with_reserve_slab(STRICT)
    ordinary = take(cache, GFP_ATOMIC)
    assert not ordinary.pfmemalloc
    vmstat = machine.node.vmstat
    assert (vmstat.slab_pfmemalloc_leaked, vmstat.slab_fast_path_refused) == (0, 1)
    while ordinary.free:
        assert take(cache, GFP_ATOMIC) is ordinary
    assert take(cache, MEMALLOC) is slab


def test_an_ordinary_caller_skips_partial_slabs_from_the_reserve() -> None:
    machine, cache, _slab = with_reserve_slab(STRICT)
    others = {take(cache, GFP_ATOMIC) for _ in range(9)}
    assert not any(slab.pfmemalloc for slab in others)
    assert machine.node.vmstat.slab_pfmemalloc_mismatch > 0


def test_without_patch_02_reserve_slabs_belong_to_everybody() -> None:
    machine, cache, slab = with_reserve_slab(without(slab_pfmemalloc=False))
    assert not slab.pfmemalloc
    assert take(cache, GFP_ATOMIC) is slab
    vmstat = machine.node.vmstat
    assert (vmstat.slab_pfmemalloc_leaked, vmstat.slab_pfmemalloc_pages, vmstat.no_watermark_slabs) == (0, 0, 1)


def test_nomemalloc_keeps_an_entitled_task_from_reserve_slabs() -> None:
    _machine, cache, slab = with_reserve_slab(STRICT)
    assert cache.alloc(MEMALLOC | GFP_NOMEMALLOC, PLAIN) is not slab


def test_a_slab_stays_pfmemalloc_until_its_page_is_freed() -> None:
    machine, cache, slab = with_reserve_slab(STRICT)
    cache.free(slab)
    assert slab.pfmemalloc
    page = slab.page
    cache.shrink()
    assert not page.pfmemalloc
    assert machine.free == machine.node.zone.managed


@pytest.mark.parametrize("count", [1, 3, 5])
def test_bulk_requests_count_every_object_leaked(count: int) -> None:
    machine, cache, _slab = with_reserve_slab(SERIES)
    objects = cache.alloc_bulk(count, GFP_ATOMIC, PLAIN)
    assert len(objects) == count
    assert machine.node.vmstat.slab_pfmemalloc_leaked == sum(slab.pfmemalloc for slab in objects)


@pytest.mark.parametrize(("gfp_mask", "pages"), [(GFP_ATOMIC, 6), (GFP_ATOMIC | GFP_NOMEMALLOC, 0), (MEMALLOC, 30)])
def test_a_bulk_request_ends_where_single_ones_would_fail(gfp_mask: int, pages: int) -> None:
    machine = Machine()
    cache = cache_of(machine)
    machine.drain(30)
    objects = cache.alloc_bulk(1000, gfp_mask, PLAIN)
    assert len(objects) == 4 * pages
    assert cache.alloc(gfp_mask, PLAIN) is None
    cache.free_bulk(objects)
    cache.shrink()
    assert machine.free == 30


def test_some_empty_slabs_are_kept_and_the_rest_freed() -> None:
    machine = Machine()
    cache = cache_of(machine)
    cache.free_bulk([take(cache, GFP_ATOMIC) for _ in range(400)])
    assert cache.inuse == 0
    assert cache.nr_slabs <= cache.min_partial + cache.cpu_partial + 1
    assert machine.node.vmstat.nr_slab_unreclaimable == cache.nr_slabs
    cache.shrink()
    assert (cache.nr_slabs, machine.free) == (0, 1024)


def test_a_caller_that_may_sleep_gets_its_object_when_memory_comes_back() -> None:
    async def main() -> None:
        machine = Machine()
        cache = cache_of(machine)
        machine.drain(64)
        assert cache.alloc(0x10, PLAIN) is None
        machine.give_back(1)
        assert await cache.alloc_wait(0x10, PLAIN) is not None

    simulate(main())
