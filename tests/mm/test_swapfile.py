"""Swap slots: clusters, reference counts, and full swap."""

from __future__ import annotations

import random

import pytest

from testbed.mm.swapfile import SWAP_HAS_CACHE, SWAP_MAP_BAD, SWAPFILE_CLUSTER, SwapInfo


def used(swap: SwapInfo) -> int:
    """Slots in use, by the map itself."""
    return sum(bool(count) and count != SWAP_MAP_BAD for count in swap.swap_map)


def test_slots_are_handed_out_in_order() -> None:
    swap = SwapInfo(1000)
    assert [swap.get_swap_page() for _ in range(300)] == list(range(1, 301))


def test_every_slot_but_the_header_once_and_then_none() -> None:
    swap = SwapInfo(700)
    slots = [swap.get_swap_page() for _ in range(700)]
    assert sorted(slots) == list(range(700))
    assert slots[-1] == 0
    assert swap.inuse_pages == used(swap) == swap.pages == 699


def test_the_next_cluster_starts_in_a_free_run() -> None:
    swap = SwapInfo(4 * SWAPFILE_CLUSTER)
    for _ in range(SWAPFILE_CLUSTER):
        swap.get_swap_page()
    for slot in range(1, SWAPFILE_CLUSTER, 2):
        swap.swapcache_free(slot)
    assert swap.get_swap_page() == SWAPFILE_CLUSTER + 1


def test_scattered_slots_are_used_when_no_run_is_left() -> None:
    swap = SwapInfo(2 * SWAPFILE_CLUSTER)
    for _ in range(swap.pages):
        swap.get_swap_page()
    holes = random.Random(1).sample(range(1, swap.pages), 100)
    for slot in holes:
        swap.swapcache_free(slot)
    assert sorted(swap.get_swap_page() for _ in holes) == sorted(holes)
    assert swap.get_swap_page() == 0


def test_a_slot_is_free_when_neither_pte_nor_cache_refers_to_it() -> None:
    swap = SwapInfo(100)
    slot = swap.get_swap_page()
    swap.swap_duplicate(slot)
    assert (swap.swap_map[slot], swap.swap_count(slot)) == (SWAP_HAS_CACHE | 1, 1)
    swap.swapcache_free(slot)
    assert (swap.swap_map[slot], swap.inuse_pages) == (1, 1)
    swap.swapcache_prepare(slot)
    swap.swap_free(slot)
    assert (swap.swap_count(slot), swap.inuse_pages) == (0, 1)
    swap.swapcache_free(slot)
    assert (swap.swap_map[slot], swap.inuse_pages) == (0, 0)


@pytest.mark.parametrize(("in_use", "full"), [(50, False), (51, True)])
def test_swap_counts_as_full_above_half(in_use: int, full: bool) -> None:
    swap = SwapInfo(101)
    for _ in range(in_use):
        swap.get_swap_page()
    assert swap.vm_swap_full() == full
