"""Bulk requests come to the same as single ones, in every allocator; no object twice, none lost, all pages returned."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.mm import slab, slub
from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC, GFP_NOMEMALLOC, gfp_pfmemalloc_allowed
from testbed.mm.sched import Task
from testbed.mm.slab_common import KmemCache, Slab
from testbed.patches import Switches
from testbed.rules import LINUX_6_1
from tests.mm.census import check_pages
from tests.mm.machine import SERIES, VANILLA, Machine, unmatched, without

PAGES = 300
PLAIN = Task("plain")
MASKS = (GFP_ATOMIC, GFP_ATOMIC | GFP_NOMEMALLOC, GFP_ATOMIC | GFP_MEMALLOC)
KERNELS = [
    ("slub", SERIES),
    ("slub", VANILLA),
    ("slub", unmatched()),
    ("slub", without(slub_unchecked_fast_path=False)),
    ("slab", SERIES),
    ("slab", VANILLA),
    ("slab", without(slab_inline=False)),
    ("slab", without(rules=LINUX_6_1)),
]


class Side:
    """One of two machines that get the same requests, in bulk or one by one."""

    def __init__(self, allocator: str, switches: Switches, object_size: int, bulk: bool) -> None:
        self.machine = Machine(PAGES, switches, min_free_kbytes=256, slab=allocator)
        self.cache = self.machine.node.kmem_cache_create("test", object_size)
        self.bulk = bulk
        self.held: list[Slab] = []

    def alloc(self, count: int, gfp_mask: int) -> list[Slab]:
        """Take objects until a request fails."""
        if self.bulk:
            taken = self.cache.alloc_bulk(count, gfp_mask, PLAIN)
        else:
            taken = []
            while len(taken) < count and (slab := self.cache.alloc(gfp_mask, PLAIN)) is not None:
                taken.append(slab)
        self.held += taken
        return taken

    def free(self, indices: list[int]) -> None:
        """Free the objects held at these places, in this order."""
        slabs = [self.held[index] for index in indices]
        for index in sorted(indices, reverse=True):
            del self.held[index]
        if self.bulk:
            self.cache.free_bulk(slabs)
        else:
            for slab in slabs:
                self.cache.free(slab)

    def state(self) -> Any:
        """Everything but the identity of slabs."""
        vmstat = self.machine.node.vmstat
        free = self.machine.free, vmstat.slab_misaligned_objects, vmstat.slab_pfmemalloc_mismatch
        reserve = [slab.pfmemalloc for slab in self.held]
        return free, reserve, lists_of(self.cache)

    def close(self) -> None:
        """Give everything back: every page must be free again."""
        self.free(list(range(len(self.held))))
        self.machine.give_back()
        assert (self.machine.node.pages_leaked(), self.cache.nr_slabs, self.cache.inuse) == (0, 0, 0)


def lists_of(cache: KmemCache) -> list[Any]:
    """The slabs on each list, in order, as far as two machines can have the same."""
    if isinstance(cache, slab.KmemCache):
        arrays = [([one.pfmemalloc for one in array.entries], array.tags) for array in (cache.array, cache.shared)]
        return [*arrays, *(shape(slabs) for slabs in (cache.slabs_partial, cache.slabs_free)), cache.pfmemalloc.active]
    assert isinstance(cache, slub.KmemCache)
    cpu = [] if cache._cpu_slab is None else [cache._cpu_slab]
    return [*(shape(slabs) for slabs in (cpu, cache._cpu_partial, cache._partial)), cache._pobjects]


def shape(slabs: Any) -> list[Any]:
    return [(one.free, one.objects, one.pfmemalloc) for one in slabs]


def places(rng: random.Random, total: int) -> list[int]:
    """Which of so many objects to free: a run of them, or here and there."""
    count = rng.randint(1, total)
    if rng.random() < 0.4:
        return rng.sample(range(total), count)
    first = rng.randint(0, total - count)
    return list(range(first, first + count))


@pytest.mark.parametrize(("allocator", "switches"), KERNELS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 32), object_size=st.sampled_from([64, 256, 1024, 2048, 4096]))
def test_bulk_requests_are_many_single_ones(allocator: str, switches: Switches, seed: int, object_size: int) -> None:
    rng = random.Random(seed)
    sides = [Side(allocator, switches, object_size, bulk) for bulk in (True, False)]
    for _ in range(40):
        step = rng.random()
        held = len(sides[0].held)
        if step < 0.45:
            count, gfp_mask = rng.choice([1, 3, 10, 40, 200]), rng.choice(MASKS)
            for side in sides:
                side.alloc(count, gfp_mask)
        elif step < 0.85 and held:
            indices = places(rng, held)
            for side in sides:
                side.free(indices)
        else:
            free, sockets = rng.choice([5, 20, 30, 60, PAGES]), rng.choice([0, 1, 1])
            for side in sides:
                side.machine.give_back()
                side.machine.drain(free)
                side.machine.memalloc_socks = sockets
        assert sides[0].state() == sides[1].state()
    for side in sides:
        check_pages(side.machine.node, side.machine.held, side.held)
        side.close()


@pytest.mark.parametrize(("allocator", "switches"), KERNELS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 32), object_size=st.sampled_from([256, 2048]))
def test_each_object_has_one_owner_and_reserve_objects_leak_only_where_a_counter_says_so(
    allocator: str, switches: Switches, seed: int, object_size: int
) -> None:
    rng = random.Random(seed)
    side = Side(allocator, switches, object_size, bulk=True)
    leaked = 0
    for _ in range(60):
        if rng.random() < 0.6:
            gfp_mask = rng.choice(MASKS)
            taken = side.alloc(rng.choice([1, 2, 17]), gfp_mask)
            if not gfp_pfmemalloc_allowed(gfp_mask, PLAIN, switches):
                leaked += sum(one.pfmemalloc for one in taken)
        elif side.held:
            side.free(places(rng, len(side.held)))
        if rng.random() < 0.2:
            side.machine.give_back()
            side.machine.drain(rng.choice([5, 20, 40, PAGES]))
        assert all(count <= one.objects for one, count in Counter(side.held).items())
    vmstat = side.machine.node.vmstat
    assert leaked == vmstat.slab_pfmemalloc_leaked + vmstat.slab_partial_leaked + vmstat.slab_untagged_leaked
    if not switches.slub_unchecked_fast_path:
        assert vmstat.slab_pfmemalloc_leaked == 0
    if switches.rules.slub_get_partial_match:
        assert vmstat.slab_partial_leaked == 0
    side.close()
