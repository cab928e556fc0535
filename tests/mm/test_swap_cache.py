"""The swap cache and what its radix tree costs."""

from __future__ import annotations

import pytest

from testbed.mm.gfp import ALLOC_NO_WATERMARKS
from testbed.mm.page import Page
from testbed.mm.sched import Task
from tests.mm.machine import Machine

PF_MEMALLOC = Task("reclaimer", pf_memalloc=True)


def some_pages(machine: Machine, count: int) -> list[Page]:
    pages = []
    for _ in range(count):
        page = machine.node.page_alloc.get_page_from_freelist(0, ALLOC_NO_WATERMARKS)
        assert page is not None
        pages.append(page)
    return pages


def test_a_node_covers_64_slots_and_goes_with_the_last_of_them() -> None:
    machine = Machine()
    cache = machine.node.swap_cache
    pages = some_pages(machine, 130)
    for page in pages:
        assert cache.add_to_swap(page, PF_MEMALLOC)
    assert cache.radix_tree_node.inuse == 3
    for page in pages[:63]:
        cache.delete_from_swap_cache(page)
    assert (pages[63].swap_entry, cache.radix_tree_node.inuse) == (64, 2)
    for page in pages[63:]:
        cache.delete_from_swap_cache(page)
    assert (cache.radix_tree_node.inuse, cache.pages, machine.node.swap.inuse_pages) == (0, {}, 0)


@pytest.mark.parametrize(("free", "added"), [(33, True), (32, False)])
def test_not_even_a_reclaimer_gets_a_node_from_the_reserve(free: int, added: bool) -> None:
    machine = Machine()
    page = some_pages(machine, 1)[0]
    machine.drain(free)
    assert machine.node.swap_cache.add_to_swap(page, PF_MEMALLOC) == added
    assert bool(page.swap_entry) == page.dirty == added
    assert machine.node.swap.inuse_pages == added
    assert machine.node.vmstat.no_watermark_allocs == 0


def test_no_slot_no_swap() -> None:
    machine = Machine(swap_pages=3)
    cache = machine.node.swap_cache
    assert [cache.add_to_swap(page, PF_MEMALLOC) for page in some_pages(machine, 3)] == [True, True, False]
