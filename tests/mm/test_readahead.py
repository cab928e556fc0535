"""Swap readahead: the window of slots (3.6), and the neighbours in the mapping (6.1)."""

from __future__ import annotations

import pytest

from testbed.mm.memory import Vma
from testbed.mm.readahead import SwapReadaheadInfo, cluster_window, swapin_nr_pages
from testbed.mm.sched import Task
from testbed.patches import Switches
from tests.mm.machine import Machine, with_rules
from tests.virtual_time import simulate

CLUSTER = with_rules(swap_readahead="cluster")
VMA = with_rules(swap_readahead="vma")


@pytest.mark.parametrize(
    ("entry", "slots", "window"),
    [
        (1, 100, range(1, 8)),
        (8, 100, range(8, 16)),
        (15, 100, range(8, 16)),
        (9, 12, range(8, 12)),
    ],
)
def test_the_cluster_is_the_aligned_window_within_the_area(entry: int, slots: int, window: range) -> None:
    assert cluster_window(entry, slots) == window


@pytest.mark.parametrize(
    ("previous", "offset", "hits", "prev_win", "pages"),
    [
        (100, 101, 0, 0, 2),
        (100, 99, 0, 0, 2),
        (100, 100, 0, 0, 1),
        (100, 500, 0, 0, 1),
        (100, 500, 1, 0, 4),
        (100, 500, 2, 0, 4),
        (100, 500, 3, 0, 8),
        (100, 500, 7, 0, 8),
        (100, 500, 60, 0, 8),
        (100, 500, 0, 8, 4),
        (100, 500, 0, 4, 2),
        (100, 101, 0, 8, 4),
    ],
)
def test_the_window_follows_the_hits(previous: int, offset: int, hits: int, prev_win: int, pages: int) -> None:
    assert swapin_nr_pages(previous, offset, hits, 8, prev_win) == pages


@pytest.mark.parametrize(
    ("previous", "index", "window"),
    [
        (99, 100, range(100, 108)),
        (101, 100, range(93, 101)),
        (500, 100, range(97, 105)),
        (500, 1, range(6)),
        (0, 997, range(994, 1000)),
        (511, 512, range(512, 520)),
        (400, 512, range(512, 517)),
        (400, 511, range(508, 512)),
    ],
)
def test_neighbours_lie_where_the_mapping_is_being_read(previous: int, index: int, window: range) -> None:
    info = SwapReadaheadInfo()
    info.index = previous
    assert info.window(index, 1000) == window
    assert (info.index, info.win, info.hits) == (index, 8, 0)


def test_hits_are_counted_and_have_a_limit() -> None:
    info = SwapReadaheadInfo()
    info.window(10, 1000)
    info.note_lookup(11, readahead=False)
    assert (info.index, info.hits) == (11, 0)
    for index in range(12, 100):
        info.note_lookup(index, readahead=True)
    assert (info.index, info.hits) == (99, 63)


async def swapped_out(switches: Switches) -> tuple[Machine, Vma, Vma]:
    """Two mappings of 64 pages each, swapped out in turns, so that neighbours in one are not neighbours in swap."""
    machine = Machine(switches=switches)
    memory, swap = machine.node.memory, machine.node.swap
    mappings = Vma(Task("even"), 64), Vma(Task("odd"), 64)
    for index in range(64):
        for vma in mappings:
            slot = swap.get_swap_page()
            swap.swap_duplicate(slot)
            swap.swapcache_free(slot)
            vma.ptes[index] = slot
    assert memory.cache.pages == {}
    return machine, *mappings


@pytest.mark.parametrize(("switches", "even", "odd"), [(CLUSTER, 4, 4), (VMA, 8, 0)])
def test_which_pages_a_fault_brings_in(switches: Switches, even: int, odd: int) -> None:
    async def main() -> None:
        machine, *mappings = await swapped_out(switches)
        await machine.node.memory.handle_mm_fault(mappings[0].owner, mappings[0], 20, write=False)
        cached = set(machine.node.swap_cache.pages)
        assert [len(cached.intersection(vma.ptes)) + (vma is mappings[0]) for vma in mappings] == [even, odd]
        assert machine.node.vmstat.swap_ra == 7

    simulate(main())


@pytest.mark.parametrize(("switches", "major_faults"), [(CLUSTER, 16), (VMA, 9)])
def test_reading_one_mapping_in_order(switches: Switches, major_faults: int) -> None:
    async def main() -> None:
        machine, vma, _other = await swapped_out(switches)
        for index in range(64):
            await machine.node.memory.handle_mm_fault(vma.owner, vma, index, write=False)
        vmstat = machine.node.vmstat
        assert vmstat.pgmajfault == major_faults
        assert vmstat.swap_ra_hit == 64 - major_faults
        assert vmstat.pgpgin == 4 * vmstat.pswpin == 4 * machine.device.reads

    simulate(main())


def test_readahead_that_nobody_uses_shrinks() -> None:
    async def main() -> None:
        machine, vma, _other = await swapped_out(VMA)
        reads = []
        for index in (8, 30, 50, 20, 60):
            before = machine.device.reads
            await machine.node.memory.handle_mm_fault(vma.owner, vma, index, write=False)
            reads.append(machine.device.reads - before)
        assert reads == [8, 4, 2, 1, 1]

    simulate(main())
