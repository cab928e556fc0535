"""bios for swap I/O: a slab that may not use the reserve, a pool of two, and whoever is third waits without end."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.bio import BIO_POOL_SIZE, BIO_SIZE
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.patches import Switches
from tests.mm.census import check_pages
from tests.mm.machine import SERIES, VANILLA, Machine
from tests.mm.test_reclaim import FullQueue
from tests.virtual_time import is_blocked, now, simulate

KSWAPD = Task("kswapd0", pf_kthread=True, pf_memalloc=True)
REST_OF_THE_SLAB = PAGE_SIZE // BIO_SIZE - BIO_POOL_SIZE


def booted(switches: Switches = SERIES) -> Machine:
    """A machine whose pool is full."""
    machine = Machine(switches=switches)
    machine.node.fs_bio_set.init(Task("swapper"))
    return machine


def under_writeback(machine: Machine, count: int) -> list[Page]:
    """Pages of the workload as reclaim hands them to the device."""
    node, pages = machine.node, []
    for _ in range(count):
        page = machine.held.pop()
        assert node.swap_cache.add_to_swap(page, KSWAPD)
        page.writeback = page.lru = True
        node.vmstat.nr_writeback += 1
        node.zone.inactive_anon[page] = None
        pages.append(page)
    return pages


@pytest.mark.parametrize("switches", [SERIES, VANILLA])
def test_no_slab_of_bios_comes_from_below_min(switches: Switches) -> None:
    """Not even kswapd's, which may use the whole reserve for everything else."""

    async def main() -> None:
        machine = booted(switches)
        bios = machine.node.fs_bio_set
        machine.drain(machine.node.zone.watermarks.min)
        assert await bios.bio_alloc(1000, KSWAPD) == REST_OF_THE_SLAB
        assert await bios.bio_alloc(1000, KSWAPD) == BIO_POOL_SIZE
        assert machine.free == machine.node.zone.watermarks.min
        assert await is_blocked(asyncio.create_task(bios.bio_alloc(1, KSWAPD)), 60)

    simulate(main())


def test_above_min_there_are_as_many_as_are_asked_for() -> None:
    async def main() -> None:
        machine = booted()
        free = machine.free
        assert await machine.node.fs_bio_set.bio_alloc(1000, KSWAPD) == 1000
        assert machine.free < free
        machine.node.fs_bio_set.bio_put(1000)
        check_pages(machine.node, machine.held, ())
        assert machine.node.pages_leaked() == 0

    simulate(main())


def test_whoever_waits_goes_on_when_the_pool_gets_one_back() -> None:
    """All are woken: the first may find one in the slab, and the pool, full again, would wake nobody any more."""

    async def main() -> None:
        machine = booted()
        machine.drain(0)
        bios = machine.node.fs_bio_set
        used = await bios.bio_alloc(1000, KSWAPD) + await bios.bio_alloc(1000, KSWAPD)
        waiting = [asyncio.create_task(bios.bio_alloc(2, Task(f"writer{number}"))) for number in range(3)]
        await asyncio.sleep(1)
        assert not any(task.done() for task in waiting)
        began = now()
        bios.bio_put(used)
        assert [await task for task in waiting] == [2, 2, 2]
        assert now() == began
        assert len(bios._in_use) == 6

    simulate(main())


def test_writes_go_out_in_as_many_parts_as_there_are_bios() -> None:
    async def main() -> None:
        machine = booted()
        node, device = machine.node, machine.device
        device.delay = None
        machine.drain(node.zone.watermarks.min)
        pages = under_writeback(machine, 32)
        writer = asyncio.create_task(node.swap_io.swap_writepages(pages, KSWAPD))
        assert await is_blocked(writer, 10)
        assert device.writes == node.vmstat.pswpout == REST_OF_THE_SLAB + BIO_POOL_SIZE
        node.swap_io.end_write(pages[: device.writes], 0)
        await writer
        assert node.vmstat.pswpout == 32
        node.swap_io.end_write(pages[REST_OF_THE_SLAB + BIO_POOL_SIZE :], 0)
        check_pages(node, machine.held, ())

    simulate(main())


def test_who_is_cancelled_in_the_wait_ends_the_writes_that_have_no_bio_with_an_error() -> None:
    async def main() -> None:
        machine = booted()
        node = machine.node
        machine.device.delay = None
        machine.drain(node.zone.watermarks.min)
        pages = under_writeback(machine, 32)
        writer = asyncio.create_task(node.swap_io.swap_writepages(pages, KSWAPD))
        await asyncio.sleep(1)
        writer.cancel()
        await asyncio.sleep(0)
        sent = REST_OF_THE_SLAB + BIO_POOL_SIZE
        assert [page.writeback for page in pages] == [True] * sent + [False] * (32 - sent)
        assert node.swap_io.write_errors == 32 - sent
        assert node.vmstat.nr_writeback == sent

    simulate(main())


def test_who_is_cancelled_with_one_part_at_the_device_ends_the_others_too() -> None:
    async def main() -> None:
        machine = booted()
        node = machine.node
        machine.drain(node.zone.watermarks.min)
        pages = under_writeback(machine, 32)
        node.swap_io.device = FullQueue()
        writer = asyncio.create_task(node.swap_io.swap_writepages(pages, KSWAPD))
        await asyncio.sleep(1)
        writer.cancel()
        await asyncio.sleep(0)
        assert node.vmstat.pswpout == REST_OF_THE_SLAB
        assert [page.writeback for page in pages] == [True] * REST_OF_THE_SLAB + [False] * (32 - REST_OF_THE_SLAB)

    simulate(main())
