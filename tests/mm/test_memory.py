"""Page faults: the zero page, first writes, swap-in with readahead, errors, exit."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.memory import BusError, Killed, Vma
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from tests.mm.machine import Machine
from tests.virtual_time import simulate


class User:
    """One task with one mapping; its page `index` holds the byte `index % 251` all over."""

    def __init__(self, machine: Machine, pages: int, name: str = "user") -> None:
        self.memory = machine.node.memory
        self.task = Task(name)
        self.vma = Vma(self.task, pages)

    async def fault(self, index: int, write: bool) -> Page | None:
        return await self.memory.handle_mm_fault(self.task, self.vma, index, write)

    async def write(self, index: int) -> Page:
        page = await self.fault(index, write=True)
        assert page is not None
        page.buffer[:] = bytes([index % 251]) * PAGE_SIZE
        return page

    async def read(self, index: int) -> Page:
        page = await self.fault(index, write=False)
        assert page is not None
        assert page.buffer == bytes([index % 251]) * PAGE_SIZE
        return page

    def swapped(self) -> list[int]:
        return [index for index, pte in enumerate(self.vma.ptes) if isinstance(pte, int)]

    def exit(self) -> None:
        self.memory.exit_mmap(self.vma)


async def crowd_out(machine: Machine, user: User) -> None:
    """Write all of `user`'s pages, then let somebody else push them out."""
    asyncio.create_task(machine.node.kswapd.run())  # noqa: RUF006
    for index in range(len(user.vma.ptes)):
        await user.write(index)
    other = User(machine, 1800, "other")
    for index in range(1800):
        await other.write(index)
    await asyncio.sleep(1)
    other.exit()


def test_reading_what_was_never_written_costs_nothing() -> None:
    async def main() -> None:
        machine = Machine()
        user = User(machine, 100)
        assert [await user.fault(index, write=False) for index in range(100)] == [None] * 100
        vmstat = machine.node.vmstat
        assert (machine.free, vmstat.pgalloc, vmstat.pgfault, user.task.rss) == (1024, 0, 100, 0)
        assert machine.device.reads == machine.device.writes == 0

    simulate(main())


def test_a_fresh_page_is_zeroed_and_active() -> None:
    async def main() -> None:
        machine = Machine()
        for free in machine.node.zone.free:
            free.buffer[:] = b"x" * PAGE_SIZE
        user = User(machine, 1)
        page = await user.fault(0, write=True)
        assert page is not None
        assert page.buffer == bytes(PAGE_SIZE)
        assert list(machine.node.zone.active_anon) == [page]
        assert (page.dirty, user.task.rss) == (True, 1)

    simulate(main())


def test_swapped_out_pages_come_back_as_they_were() -> None:
    async def main() -> None:
        machine = Machine()
        user = User(machine, 300)
        await crowd_out(machine, user)
        assert len(user.swapped()) == 300
        faults_before = machine.node.vmstat.pgmajfault
        for index in range(300):
            await user.read(index)
        vmstat = machine.node.vmstat
        major = vmstat.pgmajfault - faults_before
        assert 300 // 8 <= major <= 300 // 4
        assert vmstat.swap_ra_hit == 300 - major
        assert user.task.rss == 300 - len(user.swapped())

    simulate(main())


def test_a_page_read_back_keeps_its_slot_until_it_is_written() -> None:
    async def main() -> None:
        machine = Machine()
        user = User(machine, 8)
        await crowd_out(machine, user)
        page = await user.read(3)
        entry = page.swap_entry
        assert entry
        assert not page.dirty
        assert machine.node.swap.swap_count(entry) == 0
        await user.write(3)
        assert (page.swap_entry, page.dirty, machine.node.swap.swap_map[entry]) == (0, True, 0)

    simulate(main())


def test_a_page_read_back_loses_its_slot_while_swap_is_full() -> None:
    async def main() -> None:
        machine = Machine(swap_pages=2800)
        user = User(machine, 1500)
        await crowd_out(machine, user)
        assert machine.node.swap.vm_swap_full()
        page = await user.read(user.swapped()[0])
        assert (page.swap_entry, page.dirty) == (0, True)

    simulate(main())


def test_a_page_that_cannot_be_read_back_kills_with_sigbus() -> None:
    async def main() -> None:
        machine = Machine()
        user = User(machine, 300)
        await crowd_out(machine, user)
        index = user.swapped()[10]
        machine.device.error = 5
        with pytest.raises(BusError):
            await user.fault(index, write=False)
        assert machine.node.swap_io.read_errors
        assert isinstance(user.vma.ptes[index], int)
        assert machine.node.vmstat.sigbus == 1
        user.exit()
        await asyncio.sleep(1)
        assert machine.node.pages_leaked() == 0

    simulate(main())


def test_a_page_that_could_not_be_read_stays_in_the_swap_cache_until_it_is_reclaimed() -> None:
    """Until then whoever touches it gets SIGBUS; then it is read again."""

    async def main() -> None:
        machine = Machine()
        user, neighbour = User(machine, 300), User(machine, 300, "neighbour")
        await crowd_out(machine, user)
        for index in range(300):
            await neighbour.write(index)
        index = user.swapped()[10]
        entry = user.vma.ptes[index]
        assert isinstance(entry, int)
        machine.device.error = 5
        with pytest.raises(BusError):
            await user.fault(index, write=False)
        machine.device.error = 0
        reads = machine.device.reads
        with pytest.raises(BusError):
            await user.fault(index, write=True)
        page = machine.node.swap_cache.pages[entry]
        assert (machine.device.reads, page.uptodate, page.locked, page.lru) == (reads, False, False, True)
        other = User(machine, 1800, "other")
        for number in range(1800):
            await other.write(number)
        assert entry not in machine.node.swap_cache.pages
        await user.read(index)
        await neighbour.read(7)
        assert machine.node.vmstat.sigbus == 2
        for each in (user, neighbour, other):
            each.exit()
        await asyncio.sleep(1)
        assert machine.node.pages_leaked() == 0

    simulate(main())


def test_pages_that_cannot_be_written_stay_dirty_and_are_written_again() -> None:
    async def main() -> None:
        machine = Machine()
        user = User(machine, 1000)
        machine.device.error = 5
        writer = asyncio.create_task(crowd_out(machine, user))
        await asyncio.sleep(5)
        assert not writer.done()
        assert machine.node.swap_io.write_errors
        machine.device.error = 0
        await writer
        for index in range(1000):
            await user.read(index)
        user.exit()
        await asyncio.sleep(1)
        assert machine.node.pages_leaked() == 0

    simulate(main())


def test_exit_gives_everything_back_even_under_io() -> None:
    async def main() -> None:
        machine = Machine(delay=0.5)
        node = machine.node
        user = User(machine, 2000)
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        work = asyncio.create_task(crowd_out(machine, user))
        while not (node.vmstat.nr_writeback and user.swapped()):
            await asyncio.sleep(0.01)
        work.cancel()
        await asyncio.wait([work])
        user.exit()
        assert node.vmstat.nr_writeback
        await asyncio.sleep(5)
        assert (node.pages_leaked(), node.swap.inuse_pages, user.task.rss) == (0, 0, 0)
        assert not node.swap_cache.pages
        assert node.swap_cache.radix_tree_node.inuse == 0

    simulate(main())


def test_a_killed_task_gets_no_page() -> None:
    async def main() -> None:
        machine = Machine()
        user = User(machine, 1)
        user.task.fatal_signal = True
        with pytest.raises(Killed):
            await user.fault(0, write=True)
        assert machine.free == 1024

    simulate(main())


def test_a_task_killed_while_it_waits_for_memory_keeps_none() -> None:
    async def main() -> None:
        machine = Machine()
        user = User(machine, 1)
        machine.drain(20)
        fault = asyncio.create_task(user.fault(0, write=True))
        await asyncio.sleep(10)
        machine.node.oom_killer.tasks.add(user.task)
        machine.node.oom_killer.out_of_memory(user.task)
        with pytest.raises(Killed):
            await fault
        assert machine.free == 20

    simulate(main())
