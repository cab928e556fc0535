"""SLAB since 4.6: reserve slabs are kept out of the array instead of being tagged in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.mm import slab, slab_lists
from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab
from testbed.rules import LINUX_3_6, LINUX_6_1, V9
from tests.mm.machine import Machine, without
from tests.virtual_time import simulate

PLAIN = Task("plain")
MEMALLOC = GFP_ATOMIC | GFP_MEMALLOC
LISTS = replace(V9, slab_pfmemalloc="lists")


def boot(object_size: int = 1024, **switches: Any) -> tuple[Machine, slab_lists.KmemCache]:
    machine = Machine(switches=without(rules=LISTS, **switches), slab="slab")
    cache = machine.node.kmem_cache_create("test", object_size)
    assert isinstance(cache, slab_lists.KmemCache)
    return machine, cache


def take(cache: slab.KmemCache, gfp_mask: int = GFP_ATOMIC) -> Slab:
    taken = cache.alloc(gfp_mask, PLAIN)
    assert taken is not None
    return taken


def reserve_slab_on_its_list(machine: Machine, cache: slab.KmemCache) -> Slab:
    """A slab from the reserve with one object in use and three free; the array is empty, and memory short."""
    machine.drain(10)
    first, *others = [take(cache, MEMALLOC) for _ in range(4)]
    cache.free_bulk(others)
    assert first.pfmemalloc
    return first


@pytest.mark.parametrize(("rules", "lists"), [(V9, False), (LINUX_3_6, False), (LINUX_6_1, True)])
def test_the_kernel_decides(rules: Any, lists: bool) -> None:
    cache = Machine(switches=without(rules=rules), slab="slab").node.kmalloc_cache(64)
    assert isinstance(cache, slab_lists.KmemCache) == lists


def test_what_is_freed_goes_straight_back_to_its_reserve_slab() -> None:
    machine, cache = boot()
    reserve = reserve_slab_on_its_list(machine, cache)
    assert (len(cache.array), reserve.free, list(cache.slabs_partial)) == (0, 3, [reserve])


def test_a_full_array_is_flushed_even_for_an_object_that_does_not_enter_it() -> None:
    machine, cache = boot(object_size=2048)
    ordinary = [take(cache) for _ in range(24)]
    machine.drain(10)
    reserve = take(cache, MEMALLOC)
    cache.array.pop_newest(len(cache.array))
    cache.free_bulk(ordinary)
    assert (len(cache.array), len(cache.shared)) == (24, 0)
    cache.free(reserve)
    assert (len(cache.array), len(cache.shared)) == (12, 12)


def test_an_ordinary_caller_passes_the_reserve_slab_over_and_an_entitled_one_finds_it() -> None:
    machine, cache = boot()
    reserve = reserve_slab_on_its_list(machine, cache)
    assert cache.alloc(GFP_ATOMIC, PLAIN) is None
    assert take(cache, MEMALLOC) is reserve
    assert (cache.array.entries, reserve.free) == ([], 2)
    machine.give_back()
    assert not take(cache).pfmemalloc
    vmstat = machine.node.vmstat
    assert (vmstat.slab_untagged_leaked, vmstat.slab_pfmemalloc_cleared) == (0, 0)


@pytest.mark.parametrize("whole", [False, True])
def test_an_ordinary_slab_behind_the_reserve_slab_is_found(whole: bool) -> None:
    machine, cache = boot()
    ordinary = [take(cache) for _ in range(4)]
    reserve_slab_on_its_list(machine, cache)
    cache._free_block(ordinary if whole else ordinary[:1])
    assert take(cache) is ordinary[0]
    assert (cache.free_objects, len(cache.slabs_free)) == (3, 0)


def test_the_slab_that_a_caller_grew_enters_the_array_whatever_it_is() -> None:
    machine, cache = boot()
    machine.drain(10)
    reserve = take(cache, MEMALLOC)
    assert cache.array.entries == [reserve] * 3
    assert take(cache) is reserve
    assert machine.node.vmstat.slab_untagged_leaked == 1


def test_with_free_objects_enough_the_reserve_slab_becomes_an_ordinary_one() -> None:
    machine, cache = boot()
    reserve = reserve_slab_on_its_list(machine, cache)
    cache.free_limit = 2
    assert take(cache) is reserve
    assert not reserve.pfmemalloc
    assert machine.node.vmstat.slab_pfmemalloc_cleared == 1


@pytest.mark.parametrize(("inline", "known"), [(True, False), (False, True)])
def test_patch_13_knows_reserve_slabs_only_while_there_are_memalloc_sockets(inline: bool, known: bool) -> None:
    machine, cache = boot(slab_inline=inline)
    machine.memalloc_socks = 0
    machine.drain(10)
    assert take(cache, MEMALLOC).pfmemalloc == known
    assert cache.nr_pfmemalloc == known


def test_a_sleeper_is_served_like_others() -> None:
    async def main() -> None:
        machine, cache = boot()
        reserve = reserve_slab_on_its_list(machine, cache)
        assert await cache.alloc_wait(MEMALLOC, PLAIN) is reserve
        machine.give_back()
        assert not (await take_waiting(cache)).pfmemalloc

    simulate(main())


async def take_waiting(cache: slab.KmemCache) -> Slab:
    taken = await cache.alloc_wait(0x10, PLAIN)
    assert taken is not None
    return taken
