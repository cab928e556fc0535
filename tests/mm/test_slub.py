"""SLUB: objects, slabs, and who may have an object of a slab from the reserve."""

from __future__ import annotations

import pytest

from testbed.mm.gfp import (
    GFP_ATOMIC,
    GFP_KERNEL,
    GFP_MEMALLOC,
    GFP_NOFAIL,
    GFP_NOMEMALLOC,
    GFP_NORETRY,
    GFP_NOWARN,
    GFP_WAIT,
)
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab
from testbed.mm.slub import KmemCache, calculate_order, cpu_partial
from testbed.patches import Switches
from testbed.rules import LINUX_6_1, V9, Rules
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


def one_each(cache: KmemCache, slabs: int) -> list[Slab]:
    """Full slabs: the first object of each is the caller's to free, the rest stays taken."""
    size = cache.objects_per_slab
    return [take(cache, GFP_ATOMIC) for _ in range(slabs * size)][::size]


@pytest.mark.parametrize(("size", "objects"), [(64, 30), (256, 13), (1024, 6), (2048, 6), (4096, 2)])
def test_the_cpu_keeps_partial_slabs_until_they_have_too_many_free_objects(size: int, objects: int) -> None:
    assert cpu_partial(size) == objects
    cache = cache_of(Machine(), size)
    first = one_each(cache, objects + 3)
    for slab in first[: objects + 1]:
        cache.free(slab)
    assert (cache._cpu_partial, len(cache._partial)) == (first[: objects + 1], 0)
    cache.free(first[objects + 1])
    assert (cache._cpu_partial, len(cache._partial)) == ([first[objects + 1]], objects + 1)


def test_the_cpu_loads_its_own_partial_slabs_last_in_first_out() -> None:
    cache = cache_of(Machine())
    first = one_each(cache, 4)
    for slab in first[:3]:
        cache.free(slab)
    assert [take(cache, GFP_ATOMIC) for _ in range(3)] == first[2::-1]


def test_a_reserve_slab_among_the_cpus_own_is_put_aside() -> None:
    """`__slab_alloc` goes back to its test after it has loaded a partial slab."""
    machine, cache, slab = with_reserve_slab(STRICT)
    others = [take(cache, MEMALLOC) for _ in range(3)]
    assert others == [slab] * 3
    take(cache, GFP_ATOMIC)
    cache.free(slab)
    assert cache._cpu_partial == [slab]
    held = [take(cache, GFP_ATOMIC) for _ in range(4)]
    assert slab not in held
    assert (cache._cpu_partial, list(cache._partial)) == ([], [slab])
    assert machine.node.vmstat.slab_pfmemalloc_mismatch > 0


def test_the_node_gives_the_cpu_more_than_one_partial_slab() -> None:
    cache = cache_of(Machine(), 2048)
    for slab in one_each(cache, 9)[:8]:
        cache.free(slab)
    assert (len(cache._cpu_partial), len(cache._partial)) == (1, 7)
    cache._unfreeze_partials(cache._cpu_partial[::-1])
    listed = list(cache._partial)
    assert take(cache, GFP_ATOMIC) is listed[0]
    assert (cache._cpu_partial, list(cache._partial)) == (listed[1:5], listed[5:])


@pytest.mark.parametrize("bulk", [False, True])
def test_without_the_match_in_get_partial_each_request_gets_one_reserve_object(bulk: bool) -> None:
    """What is left of the slab goes back to the list, for the next ordinary request to find."""
    machine, cache, slab = with_reserve_slab(unmatched(slub_unchecked_fast_path=False))
    taken = cache.alloc_bulk(4, GFP_ATOMIC, PLAIN) if bulk else [take(cache, GFP_ATOMIC) for _ in range(4)]
    assert taken[:3] == [slab] * 3
    assert not taken[3].pfmemalloc
    vmstat = machine.node.vmstat
    assert (vmstat.slab_partial_leaked, vmstat.slab_pfmemalloc_leaked) == (3, 0)


def test_a_cpu_slab_put_aside_is_the_first_that_is_loaded_again() -> None:
    cache = cache_of(Machine())
    first, second, current = one_each(cache, 3)
    for slab in (first, second, current):
        cache.free(slab)
    cache._unfreeze_partials(cache._cpu_partial[::-1])
    assert cache._cpu_slab is current
    cache._deactivate()
    assert next(iter(cache._partial)) is current


def test_a_new_slab_that_its_creator_may_not_keep_gives_one_object() -> None:
    """The page came while the task was entitled; by now it is not (`__slab_alloc` in a task that slept)."""
    machine = Machine()
    cache = cache_of(machine)
    machine.drain(10)
    slab = cache._new_slab(MEMALLOC, PLAIN)
    assert slab is not None
    assert cache._take_new(slab, GFP_ATOMIC, PLAIN) is slab
    assert (cache._cpu_slab, list(cache._partial), slab.free) == (None, [slab], 3)
    assert machine.node.vmstat.slab_partial_leaked == 1


@pytest.mark.parametrize(
    ("size", "order"), [(64, 0), (192, 0), (256, 0), (512, 0), (576, 1), (1024, 1), (2048, 2), (4096, 3)]
)
def test_the_preferred_order_holds_enough_objects(size: int, order: int) -> None:
    assert calculate_order(size) == order


@pytest.mark.parametrize(
    ("slub_max_order", "nr_cpu_ids", "order"), [(0, 4, 0), (1, 4, 1), (3, 1, 2), (3, 2, 3), (3, 4, 3), (3, 64, 3)]
)
def test_the_order_grows_with_the_cpus_up_to_slub_max_order(slub_max_order: int, nr_cpu_ids: int, order: int) -> None:
    """kmalloc-2048: 8 objects on one CPU, 12 on two, 16 on four."""
    assert calculate_order(2048, slub_max_order, nr_cpu_ids) == order


@pytest.mark.parametrize(
    ("size", "slub_max_order", "order"),
    [(1500, 3, 3), (1500, 2, 2), (1500, 0, 0), (700, 0, 0), (3000, 3, 3), (3000, 0, 0)],
)
def test_an_order_that_would_waste_too_much_gives_way_to_fewer_objects(
    size: int, slub_max_order: int, order: int
) -> None:
    assert calculate_order(size, slub_max_order) == order


def blocks_of(machine: Machine) -> KmemCache:
    return KmemCache("kmalloc-2048", 2048, machine.node.page_alloc)


def asked_for(machine: Machine) -> list[tuple[int, int]]:
    """(order, gfp_mask) of each block that is asked for from now on."""
    asked = []
    page_alloc = machine.node.page_alloc
    nowait, wait = page_alloc.alloc_order_nowait, page_alloc.alloc_order

    def alloc_order_nowait(order: int, gfp_mask: int, current: Task) -> list[Page] | None:
        asked.append((order, gfp_mask))
        return nowait(order, gfp_mask, current)

    async def alloc_order(order: int, gfp_mask: int, current: Task) -> list[Page] | None:
        asked.append((order, gfp_mask))
        return await wait(order, gfp_mask, current)

    page_alloc.alloc_order_nowait = alloc_order_nowait  # type: ignore[method-assign]
    page_alloc.alloc_order = alloc_order  # type: ignore[method-assign]
    return asked


@pytest.mark.parametrize("bulk", [False, True])
def test_a_slab_is_a_block_of_the_preferred_order_if_there_is_one(bulk: bool) -> None:
    machine = Machine()
    cache = blocks_of(machine)
    objects = cache.alloc_bulk(20, GFP_ATOMIC, PLAIN) if bulk else [take(cache, GFP_ATOMIC) for _ in range(20)]
    assert [slab.objects for slab in objects] == [8] * 20
    assert (cache.nr_slabs, machine.free, machine.node.vmstat.nr_slab_unreclaimable) == (3, 1012, 12)
    cache.free_bulk(objects)
    cache.shrink()
    assert (cache.nr_slabs, machine.free, machine.node.vmstat.nr_slab_unreclaimable) == (0, 1024, 0)


@pytest.mark.parametrize("bulk", [False, True])
def test_without_such_a_block_a_slab_is_a_page(bulk: bool) -> None:
    machine = Machine()
    machine.fragment()
    asked = asked_for(machine)
    cache = blocks_of(machine)
    objects = cache.alloc_bulk(5, GFP_ATOMIC, PLAIN) if bulk else [take(cache, GFP_ATOMIC) for _ in range(5)]
    assert [slab.objects for slab in objects] == [2] * 5
    assert asked == [(2, GFP_ATOMIC | GFP_NOWARN | GFP_NORETRY)] * 3
    assert machine.node.vmstat.page_allocation_failure == 0
    assert machine.node.vmscan.pgdat.kswapd_order == 2, "kswapd is woken for it all the same"
    cache.free_bulk(objects)
    cache.shrink()
    machine.node.page_alloc.drain_all_pages()
    assert machine.free == 512


@pytest.mark.parametrize("sleeps", [False, True])
@pytest.mark.parametrize(
    ("rules", "gfp_mask", "easy"),
    [
        (V9, MEMALLOC | GFP_NOFAIL, MEMALLOC),
        (V9, GFP_KERNEL, GFP_KERNEL),
        (LINUX_6_1, MEMALLOC | GFP_NOFAIL, MEMALLOC),
        (LINUX_6_1, GFP_KERNEL | GFP_MEMALLOC, (GFP_KERNEL | GFP_MEMALLOC | GFP_NOMEMALLOC) & ~GFP_WAIT),
    ],
)
def test_the_attempt_at_a_block_is_an_easy_one(rules: Rules, gfp_mask: int, easy: int, sleeps: bool) -> None:
    async def main() -> None:
        machine = Machine(switches=without(rules=rules))
        asked = asked_for(machine)
        cache = blocks_of(machine)
        slab = await cache.alloc_wait(gfp_mask, PLAIN) if sleeps else cache.alloc(gfp_mask, PLAIN)
        assert slab is not None
        assert asked == [(2, easy | GFP_NOWARN | GFP_NORETRY)]

    simulate(main())


def test_an_entitled_caller_takes_a_block_out_of_the_reserve() -> None:
    machine = Machine()
    cache = blocks_of(machine)
    machine.drain(20)
    assert take(cache, MEMALLOC).pfmemalloc
    vmstat = machine.node.vmstat
    assert (vmstat.no_watermark_slabs, vmstat.slab_pfmemalloc_pages, machine.free) == (4, 4, 16)
