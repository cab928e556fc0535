"""Reclaim: the order of pages, writes and their end, and what a cancelled reclaimer leaves."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.gfp import GFP_KERNEL, GFP_NOIO
from testbed.mm.lruvec import Lruvec
from testbed.mm.memory import Vma
from testbed.mm.page import Page
from testbed.mm.scan_control import ScanControl
from testbed.mm.sched import Task
from tests.mm.machine import Machine
from tests.virtual_time import simulate


def lruvec(machine: Machine) -> Lruvec:
    """The lists of the machine's only zone."""
    return machine.node.vmscan.pgdat.lruvecs[0]


async def populate(machine: Machine, pages: int) -> Vma:
    """Written pages, none of them recently used, all on the inactive list in order."""
    vma = Vma(Task("owner"), pages)
    for index in range(pages):
        await machine.node.memory.handle_mm_fault(vma.owner, vma, index, write=True)
    machine.node.vmscan.shrink_active_list(lruvec(machine), pages)
    return vma


def scan(gfp_mask: int = GFP_KERNEL, priority: int = 0) -> ScanControl:
    return ScanControl(gfp_mask, Task("reclaimer", pf_memalloc=True), 32, priority)


def test_a_dirty_page_is_written_by_one_scan_and_freed_by_a_later_one() -> None:
    async def main() -> None:
        machine = Machine()
        vma = await populate(machine, 32)
        first = scan()
        await machine.node.vmscan.shrink_zone(lruvec(machine), first)
        assert (first.nr_reclaimed, machine.device.writes, machine.free) == (0, 32, 1024 - 33)
        assert all(isinstance(pte, int) for pte in vma.ptes)
        await asyncio.sleep(1)
        second = scan()
        await machine.node.vmscan.shrink_zone(lruvec(machine), second)
        assert (second.nr_reclaimed, machine.device.writes) == (32, 32)
        assert machine.node.vmstat.pgsteal_direct == 32

    simulate(main())


def test_the_oldest_pages_go_first() -> None:
    async def main() -> None:
        machine = Machine()
        vma = await populate(machine, 400)
        await machine.node.vmscan.shrink_zone(lruvec(machine), scan(priority=2))
        swapped = [index for index, pte in enumerate(vma.ptes) if isinstance(pte, int)]
        assert swapped == list(range(len(swapped)))
        assert 0 < len(swapped) < 400

    simulate(main())


def test_a_page_in_use_is_activated_instead() -> None:
    async def main() -> None:
        machine = Machine()
        vma = await populate(machine, 32)
        used = vma.ptes[7]
        assert isinstance(used, Page)
        used.young = True
        await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, scan())
        assert list(machine.node.zone.active_anon) == [used]
        assert vma.ptes[7] is used
        assert machine.node.vmstat.pgactivate == 1

    simulate(main())


def test_without_io_nothing_dirty_is_touched() -> None:
    async def main() -> None:
        machine = Machine()
        vma = await populate(machine, 200)
        for priority in range(12, -1, -1):
            await machine.node.vmscan.shrink_zone(lruvec(machine), scan(GFP_NOIO, priority))
        assert machine.device.writes == 0
        assert all(isinstance(pte, Page) for pte in vma.ptes)

    simulate(main())


def test_clean_page_cache_goes_before_any_page_is_written() -> None:
    async def main() -> None:
        machine = Machine(page_cache=500)
        await populate(machine, 100)
        sc = ScanControl(GFP_KERNEL, Task("kswapd", pf_memalloc=True), 32, kswapd=True)
        machine.node.vmscan.shrink_file_list(lruvec(machine), 64, sc)
        assert (sc.nr_reclaimed, machine.device.writes, len(machine.node.zone.file)) == (64, 0, 436)
        assert machine.node.vmstat.pgsteal_kswapd == 64

    simulate(main())


def test_little_page_cache_is_left_alone() -> None:
    machine = Machine(page_cache=10)
    machine.drain(80)
    assert lruvec(machine).get_scan_count(1, swap_full=False, force_scan=True).file == 0
    machine.give_back(7)
    assert lruvec(machine).get_scan_count(1, swap_full=False, force_scan=True).file > 0


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_reclaimer_that_is_cancelled_leaves_no_page_under_writeback_for_ever(turns: int) -> None:
    async def main() -> None:
        machine = Machine(4096)
        node = machine.node
        vma = await populate(machine, 3600)
        reclaimer = asyncio.create_task(node.vmscan.shrink_zone(lruvec(machine), scan()))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert node.vmstat.nr_writeback
        reclaimer.cancel()
        await asyncio.wait([reclaimer])
        await asyncio.sleep(1)
        assert node.vmstat.nr_writeback == 0
        node.memory.exit_mmap(vma)
        assert node.pages_leaked() == 0

    simulate(main())


def test_a_direct_reclaimer_is_pf_memalloc_for_as_long_as_it_reclaims() -> None:
    async def main() -> None:
        machine = Machine(delay=None)
        node = machine.node
        await populate(machine, 700)
        task = Task("user")
        reclaim = asyncio.create_task(node.vmscan.try_to_free_pages(GFP_KERNEL, task))
        await asyncio.sleep(0)
        assert not reclaim.done()
        assert task.pf_memalloc
        await reclaim
        assert not task.pf_memalloc

    simulate(main())
