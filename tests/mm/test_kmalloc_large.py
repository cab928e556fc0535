"""More than a page from kmalloc: contiguous blocks, gone when freed, from the reserve for those who may."""

from __future__ import annotations

import pytest

from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC, GFP_NOMEMALLOC
from testbed.mm.kmalloc_large import KmallocLarge, kmalloc_large_order
from testbed.mm.node import kmalloc_size
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from tests.mm.machine import Machine, machine_64m

SOFTIRQ = Task("softirq")


@pytest.mark.parametrize(
    ("size", "order"), [(4097, 1), (8192, 1), (8193, 2), (9408, 2), (16384, 2), (16385, 3), (65536, 4)]
)
def test_the_smallest_block_that_holds_it(size: int, order: int) -> None:
    assert kmalloc_large_order(size) == order
    assert kmalloc_size(size) == PAGE_SIZE << order


def test_up_to_a_page_it_is_a_slab_object() -> None:
    assert [kmalloc_size(size) for size in (1, 64, 65, 1920, 4096)] == [64, 64, 128, 2048, 4096]
    assert not isinstance(Machine().node.kmalloc_cache(4096), KmallocLarge)


@pytest.mark.parametrize("slab", ["slub", "slab"])
def test_blocks_are_contiguous_and_come_back_whole(slab: str) -> None:
    machine = machine_64m(slab=slab)
    cache = machine.node.kmalloc_cache(9408)
    assert cache is machine.node.kmalloc_cache(16384)
    before = machine.free
    taken = cache.alloc_bulk(5, GFP_ATOMIC, SOFTIRQ)
    assert machine.free == before - 20
    for block in taken:
        pfns = [page.pfn for page in (block.page, *block.tail)]
        assert pfns == list(range(pfns[0], pfns[0] + 4))
        assert pfns[0] % 4 == 0
    assert (cache.inuse, cache.nr_slabs, machine.node.vmstat.nr_slab_unreclaimable) == (5, 5, 20)
    cache.free(taken.pop())
    cache.free_bulk(taken)
    assert machine.free == before
    assert (cache.inuse, cache.nr_slabs, machine.node.vmstat.nr_slab_unreclaimable) == (0, 0, 0)
    assert machine.node.pages_leaked() == 0


def test_pages_without_neighbours_are_no_block() -> None:
    machine = machine_64m()
    cache = machine.node.kmalloc_cache(9408)
    machine.drain(0)
    machine.node.page_alloc.free_pages([page for page in machine.held if page.pfn % 2])
    assert machine.free == 1024
    assert cache.alloc_bulk(3, GFP_ATOMIC | GFP_MEMALLOC, SOFTIRQ) == []


def test_who_may_use_the_reserve_gets_more() -> None:
    machine = machine_64m()
    cache = machine.node.kmalloc_cache(9408)
    ordinary = cache.alloc_bulk(2048, GFP_ATOMIC | GFP_NOMEMALLOC, SOFTIRQ)
    kept = machine.free
    more = cache.alloc_bulk(2048, GFP_ATOMIC | GFP_MEMALLOC, SOFTIRQ)
    assert machine.node.zone.watermarks.min // 2 <= kept < machine.node.zone.watermarks.min
    assert len(ordinary) == (2048 - kept) // 4
    assert not any(block.pfmemalloc for block in ordinary[: len(ordinary) // 2])
    assert len(more) == kept // 4
    assert all(block.pfmemalloc for block in more)
