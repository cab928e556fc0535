"""The workload notices what it is there to notice: wrong bytes, being killed, and its own progress."""

from __future__ import annotations

import asyncio
import mmap

from testbed.hosts.cpu_times import SAMPLED, CpuTimes
from testbed.hosts.workload import LinearTouch, Progress, Surroundings
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.watermarks import PAGE_SIZE
from tests.mm.machine import SERIES, FakeSwapDevice
from tests.virtual_time import simulate


class Bench:
    """A node over an mmap, as the client has it, and one task."""

    def __init__(self, pages: int, ram_pages: int = 512, passes: int = 2) -> None:
        self.ram = mmap.mmap(-1, ram_pages * PAGE_SIZE)
        self.device = FakeSwapDevice(4000, 0.001)
        self.node = Node(memoryview(self.ram), self.device, 4000, SERIES)
        self.device.swap_io = self.node.swap_io
        self.progress = Progress()
        self.events: list[str] = []
        self.clock_readings = 0
        surroundings = Surroundings(
            *(self.node.memory, self.ram, PAGE_SIZE, 7, self.progress),
            event=lambda name, _fields: self.events.append(name),
            cpu_times=CpuTimes(self._read_clock),
        )
        self.touch = LinearTouch(3, pages, passes, 16, surroundings)
        self.node.oom_killer.tasks.add(self.touch.task)

    def _read_clock(self) -> float:
        self.clock_readings += 1
        return 0.0

    async def run(self) -> None:
        kswapd = asyncio.create_task(self.node.kswapd.run())
        await self.touch.run()
        kswapd.cancel()
        await asyncio.sleep(1)
        assert (self.node.pages_leaked(), self.progress.waiting) == (0, 0)


def test_every_pass_checks_every_page() -> None:
    bench = Bench(1500)
    simulate(bench.run())
    progress = bench.progress
    assert (progress.finished_tasks, progress.touches, progress.checked, progress.corrupt) == (1, 4500, 3000, 0)
    assert bench.node.vmstat.pswpin > 2000


def test_one_touch_in_many_is_timed() -> None:
    bench = Bench(10 * SAMPLED)
    simulate(bench.run())
    assert bench.clock_readings == 10 * 3 * 3


def test_a_wrong_byte_on_the_device_is_found() -> None:
    async def main() -> None:
        bench = Bench(1500, passes=1)
        work = asyncio.create_task(bench.run())
        while not bench.progress.checked:
            await asyncio.sleep(0.0005)
        slots = [pte for pte in bench.touch.vma.ptes[1000:] if isinstance(pte, int)]
        written = [slot for slot in slots if slot not in bench.node.swap_cache.pages]
        bench.device.store[written[0] * PAGE_SIZE + 4000] ^= 1
        await work
        assert (bench.progress.corrupt, bench.events) == (1, ["corrupt_page"])

    simulate(main())


def test_a_wrong_byte_in_memory_is_found() -> None:
    async def main() -> None:
        bench = Bench(100, passes=1)
        work = asyncio.create_task(bench.run())
        while bench.progress.touches < 100:
            await asyncio.sleep(0)
        page = bench.touch.vma.ptes[99]
        assert isinstance(page, Page)
        page.buffer[0] ^= 1
        await work
        assert bench.progress.corrupt == 1

    simulate(main())


def test_a_page_that_cannot_be_read_ends_the_task() -> None:
    async def main() -> None:
        bench = Bench(1500, passes=1)
        work = asyncio.create_task(bench.run())
        while not bench.progress.checked:
            await asyncio.sleep(0.0005)
        bench.device.error = 5
        await work
        assert (bench.progress.killed_tasks, bench.progress.finished_tasks) == (1, 0)
        assert bench.events == ["task_killed"]

    simulate(main())
