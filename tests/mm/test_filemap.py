"""The page cache of a local file: what takes a page, when reclaim may have it, and who waits for the disk."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.filemap import MAX_PAUSE, RATELIMIT_PAGES, AddressSpace
from testbed.mm.gfp import GFP_KERNEL
from testbed.mm.scan_control import ScanControl
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from tests.mm.machine import VANILLA, Machine, with_rules
from tests.virtual_time import is_blocked, now, simulate

SERVER = Task("nbd-server")
PAGES_PER_SECOND = 1000


def a_file(machine: Machine) -> AddressSpace:
    return AddressSpace(machine.node, PAGES_PER_SECOND * PAGE_SIZE)


def test_a_block_takes_one_page_however_often_it_is_written_and_read() -> None:
    async def main() -> None:
        machine = Machine()
        file = a_file(machine)
        for _ in range(3):
            await file.write(7, SERVER)
            await file.read(7, SERVER)
        assert (machine.free, file.nr_dirty) == (1023, 1)
        await file.write(8, SERVER)
        assert (machine.free, file.nr_dirty) == (1022, 2)
        file.truncate()
        assert machine.node.pages_leaked() == 0

    simulate(main())


def test_reclaim_takes_a_page_only_once_the_disk_has_it() -> None:
    async def main() -> None:
        machine = Machine()
        file = a_file(machine)
        (lruvec,) = machine.node.vmscan.pgdat.lruvecs
        sc = ScanControl(GFP_KERNEL, SERVER, 32)
        for index in range(10):
            await file.write(index, SERVER)
        machine.node.vmscan.shrink_file_list(lruvec, 100, sc)
        assert sc.nr_reclaimed == 0
        flusher = asyncio.create_task(file.flush())
        await asyncio.sleep(0.005)
        await file.write(0, SERVER)
        await asyncio.sleep(0.0055)
        machine.node.vmscan.shrink_file_list(lruvec, 100, sc)
        assert (sc.nr_reclaimed, file.nr_dirty) == (9, 1), "what was written to meanwhile is dirty again"
        assert file.find_get_page(0) is not None
        assert file.find_get_page(1) is None
        await asyncio.sleep(1)
        assert file.nr_dirty == 0
        flusher.cancel()
        file.truncate()
        machine.node.drop_caches()
        assert machine.node.pages_leaked() == 0

    simulate(main())


def test_a_read_waits_for_the_disk_unless_the_page_is_cached() -> None:
    async def main() -> None:
        machine = Machine()
        file = a_file(machine)
        await file.read(3, SERVER)
        assert now() == pytest.approx(1 / PAGES_PER_SECOND)
        await file.read(3, SERVER)
        assert now() == pytest.approx(1 / PAGES_PER_SECOND)
        assert machine.free == 1023
        machine.node.drop_caches()
        await file.read(3, SERVER)
        assert now() == pytest.approx(2 / PAGES_PER_SECOND)

    simulate(main())


def test_a_page_that_reclaim_took_and_the_file_got_again_does_not_stand_for_its_old_block() -> None:
    async def main() -> None:
        machine = Machine()
        file = a_file(machine)
        await file.read(3, SERVER)
        old = file.find_get_page(3)
        machine.node.drop_caches()
        machine.drain(0)
        machine.give_back()
        taken = 4
        while file.find_get_page(taken) is not old:
            taken += 1
            await file.read(taken, SERVER)
        assert file.find_get_page(3) is None

    simulate(main())


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_reader_that_is_gone_leaves_a_page_that_reclaim_can_take(cancelled: bool) -> None:
    async def main() -> None:
        machine = Machine()
        reader = asyncio.create_task(a_file(machine).read(3, SERVER))
        await asyncio.sleep(0)
        if cancelled:
            reader.cancel()
        await asyncio.wait([reader])
        machine.node.drop_caches()
        assert machine.node.pages_leaked() == 0

    simulate(main())


def test_a_writer_waits_while_there_is_no_memory() -> None:
    async def main() -> None:
        machine = Machine(switches=VANILLA)
        machine.drain(0)
        writer = asyncio.create_task(a_file(machine).write(1, SERVER))
        assert await is_blocked(writer, 60)
        machine.give_back()
        assert not await is_blocked(writer, 1)

    simulate(main())


@pytest.mark.parametrize("flushing", [False, True])
def test_a_fifth_of_the_memory_may_be_dirty_and_then_the_writer_pauses(flushing: bool) -> None:
    async def main() -> None:
        machine = Machine()
        file = a_file(machine)
        if flushing:
            asyncio.create_task(file.flush())  # noqa: RUF006

        async def write(count: int) -> None:
            for index in range(count):
                await file.write(index, SERVER)

        await write(6 * RATELIMIT_PAGES)
        assert now() == 0, "192 of 1024 pages are less than a fifth"
        writer = asyncio.create_task(write(8 * RATELIMIT_PAGES))
        assert await is_blocked(writer, MAX_PAUSE / 2)
        assert await is_blocked(writer, 60) != flushing

    simulate(main())


@pytest.mark.parametrize(("anon_is_dirtyable", "waits"), [(True, False), (False, True)])
def test_anonymous_memory_counted_for_the_limit_until_3_14(anon_is_dirtyable: bool, waits: bool) -> None:
    async def main() -> None:
        machine = Machine(switches=with_rules(anon_is_dirtyable=anon_is_dirtyable))
        zone = machine.node.zone
        machine.drain(600)
        zone.inactive_anon.update(dict.fromkeys(machine.held))
        file = a_file(machine)
        for index in range(5 * RATELIMIT_PAGES):
            write = asyncio.create_task(file.write(index, SERVER))
            if blocked := await is_blocked(write, 0.01):
                break
        assert blocked == waits

    simulate(main())


def test_swap_under_writeback_counts_but_does_not_hold_a_writer_whose_disk_is_idle() -> None:
    """In 3.4 the limit is about all disks together, and one with next to nothing to write gets past it, slowly."""

    async def main() -> None:
        machine = Machine()
        machine.node.vmstat.nr_writeback = 500
        file = a_file(machine)
        asyncio.create_task(file.flush())  # noqa: RUF006
        for index in range(10 * RATELIMIT_PAGES):
            await file.write(index, SERVER)
        assert now() == pytest.approx(10 * MAX_PAUSE)

    simulate(main())
