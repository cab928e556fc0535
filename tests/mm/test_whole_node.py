"""A whole node under the series' workload: tasks write, then read, four times as much as fits."""

from __future__ import annotations

import asyncio
import random

import pytest

from testbed.mm.bio import UnlimitedBioSet
from testbed.mm.memory import Killed, Vma
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.patches import Switches
from tests.mm.census import check_pages, check_rss, check_swap
from tests.mm.machine import SERIES, VANILLA, Machine
from tests.virtual_time import simulate

RAM_PAGES = 512


class Worker:
    """One task: `pages` pages, each holding a stamp of its own."""

    def __init__(self, machine: Machine, number: int, pages: int) -> None:
        self.memory = machine.node.memory
        self.number = number
        self.vma = Vma(Task(f"worker{number}"), pages)
        self.checked = 0

    def stamp(self, index: int) -> bytes:
        return (self.number << 32 | index).to_bytes(8, "big") * (PAGE_SIZE // 8)

    async def write(self) -> None:
        for index in range(len(self.vma.ptes)):
            page = await self.memory.handle_mm_fault(self.vma.owner, self.vma, index, write=True)
            assert page is not None
            page.buffer[:] = self.stamp(index)
            await asyncio.sleep(0)

    async def read(self) -> None:
        for index in range(len(self.vma.ptes)):
            page = await self.memory.handle_mm_fault(self.vma.owner, self.vma, index, write=False)
            assert page is not None
            assert page.buffer == self.stamp(index)
            self.checked += 1
            await asyncio.sleep(0)

    async def run(self) -> None:
        await self.write()
        await self.read()


@pytest.mark.parametrize("switches", [SERIES, VANILLA])
@pytest.mark.parametrize(("tasks", "delay", "swap_pages"), [(1, 0.001, 9000), (6, 0.01, 9000), (8, 0.002, 2400)])
def test_four_times_ram_is_written_and_read_back(switches: Switches, tasks: int, delay: float, swap_pages: int) -> None:
    async def main() -> None:
        machine = Machine(RAM_PAGES, switches, delay=delay, swap_pages=swap_pages, page_cache=50)
        node = machine.node
        kswapd = asyncio.create_task(node.kswapd.run())
        workers = [Worker(machine, number, 4 * RAM_PAGES // tasks) for number in range(tasks)]
        vmas = [worker.vma for worker in workers]
        async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.run())
        assert all(worker.checked == 4 * RAM_PAGES // tasks for worker in workers)
        assert node.vmstat.pswpout >= 3 * RAM_PAGES
        assert node.vmstat.pswpin >= 3 * RAM_PAGES
        check_pages(node, (), ())
        check_swap(node, vmas)
        check_rss(vmas)
        for vma in vmas:
            node.memory.exit_mmap(vma)
        kswapd.cancel()
        await asyncio.sleep(1)
        node.drop_caches()
        check_pages(node, (), ())
        check_swap(node, ())
        assert node.pages_leaked() == 0
        assert (node.swap.inuse_pages, node.swap_cache.radix_tree_node.inuse, node.vmstat.nr_writeback) == (0, 0, 0)

    simulate(main())


@pytest.mark.parametrize(("switches", "throttles"), [(SERIES, True), (VANILLA, False)])
def test_a_device_that_never_completes_stops_everybody_for_ever(switches: Switches, throttles: bool) -> None:
    """Nobody finishes and nobody is killed while pages are under writeback; with patch 15 tasks end up throttled.

    Patch 15 keeps half of min free; without it reclaimers may take the reserve down to the limit of what they ask for.
    """

    async def main() -> None:
        machine = Machine(RAM_PAGES, switches, delay=None)
        node = machine.node
        node.swap_io.bio_set = UnlimitedBioSet()
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        workers = [Worker(machine, number, RAM_PAGES) for number in range(4)]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        await asyncio.sleep(60)
        machine.drain(node.zone.watermarks.min // 2)
        await asyncio.sleep(60)
        touched, submitted = node.vmstat.pgalloc, machine.device.writes
        await asyncio.sleep(600)
        assert not any(task.done() for task in running)
        assert (node.vmstat.pgalloc, machine.device.writes) == (touched, submitted)
        assert (node.vmstat.nr_writeback, node.vmstat.pgsteal_direct) == (submitted, 0)
        assert node.vmstat.oom_kill == 0
        assert (node.vmstat.nr_throttled == 4) == throttles
        assert bool(node.vmstat.pgscan_direct_throttle) == throttles
        check_pages(node, machine.held, ())
        check_swap(node, [worker.vma for worker in workers])

    simulate(main())


def test_with_swap_full_the_oom_killer_ends_it() -> None:
    async def main() -> None:
        machine = Machine(RAM_PAGES, swap_pages=600)
        node = machine.node
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        workers = [Worker(machine, number, 100 + 100 * number) for number in range(6)]
        killed: list[int] = []

        async def live(worker: Worker) -> None:
            node.oom_killer.tasks.add(worker.vma.owner)
            try:
                await worker.run()
            except Killed:
                killed.append(worker.number)
            node.memory.exit_mmap(worker.vma)
            node.oom_killer.tasks.discard(worker.vma.owner)

        async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(live(worker))
        await asyncio.sleep(1)
        assert node.vmstat.oom_kill == len(killed) > 0
        assert all(worker.checked == len(worker.vma.ptes) for worker in workers if worker.number not in killed)
        assert (node.pages_leaked(), node.swap.inuse_pages) == (0, 0)

    simulate(main())


def test_random_writes_reads_and_late_completions() -> None:
    async def main() -> None:
        machine = Machine(RAM_PAGES, swap_pages=4000)
        node, chance = machine.node, random.Random(36)
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        vma = Vma(Task("random"), 1500)
        expected: dict[int, bytes] = {}
        for step in range(6000):
            machine.device.delay = chance.choice([0, 0.001, 0.05])
            index = chance.randrange(1500)
            write = chance.random() < 0.5
            page = await node.memory.handle_mm_fault(vma.owner, vma, index, write)
            if page is None:
                assert index not in expected
            elif write:
                expected[index] = step.to_bytes(4, "big") * 1024
                page.buffer[:] = expected[index]
            else:
                assert page.buffer == expected[index]
        check_swap(node, [vma])
        check_pages(node, (), ())

    simulate(main())
