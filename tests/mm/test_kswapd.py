"""kswapd: when it may sleep, what it does before, and how it treats a zone it cannot reclaim."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.bio import UnlimitedBioSet
from testbed.mm.gfp import GFP_KERNEL
from testbed.mm.memory import Vma
from testbed.mm.sched import Task
from testbed.mm.wait import Thread, WaitQueue
from testbed.patches import PRESETS, Switches
from tests.mm.machine import Machine, machine_64m
from tests.virtual_time import simulate


@pytest.mark.parametrize(("free", "may_sleep"), [(385, True), (384, False)])
def test_kswapd_sleeps_only_above_high(free: int, may_sleep: bool) -> None:
    machine = machine_64m()
    machine.drain(free)
    assert machine.node.kswapd.prepare_kswapd_sleep() == may_sleep


def test_kswapd_refuses_to_sleep_and_wakes_whoever_is_throttled() -> None:
    async def main() -> None:
        machine = machine_64m()
        waiter = asyncio.create_task(machine.node.vmscan.pfmemalloc_wait.wait())
        await asyncio.sleep(0)
        assert not machine.node.kswapd.prepare_kswapd_sleep()
        await asyncio.sleep(0)
        assert waiter.done()
        assert machine.node.kswapd.prepare_kswapd_sleep()

    simulate(main())


def test_kswapd_reclaims_up_to_high_and_then_sleeps() -> None:
    async def main() -> None:
        machine = machine_64m(page_cache=1000)
        node = machine.node
        machine.drain(300)
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        await asyncio.sleep(1)
        assert 384 < machine.free < 384 + 512
        runs, stolen = node.vmstat.pageoutrun, node.vmstat.pgsteal_kswapd
        await asyncio.sleep(60)
        assert (node.vmstat.pageoutrun, node.vmstat.pgsteal_kswapd) == (runs, stolen)
        assert stolen > 0
        assert node.vmstat.pgsteal_direct == 0

    simulate(main())


def test_a_sleeping_kswapd_leaves_no_throttled_task_behind() -> None:
    async def main() -> None:
        machine = Machine()
        node = machine.node
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        for free in (10, 30, 20, 0):
            await asyncio.sleep(5)
            machine.drain(free)
            sleeper = asyncio.create_task(node.vmscan.throttle.throttle_direct_reclaim(GFP_KERNEL, Task("user")))
            await asyncio.sleep(0)
            assert not sleeper.done()
            machine.give_back()
            await asyncio.sleep(0.2)
            assert sleeper.done()

    simulate(main())


def test_a_zone_given_up_on_is_scanned_again_when_writes_complete_after_all() -> None:
    """A silent server makes every page unreclaimable; when it answers after all, throttled tasks must go on."""

    async def main() -> None:
        machine = Machine(delay=None)
        node = machine.node
        node.swap_io.bio_set = UnlimitedBioSet()
        kswapd = asyncio.create_task(node.kswapd.run())
        tasks = [Task(f"user{number}") for number in range(4)]
        vmas = [Vma(task, 1000) for task in tasks]
        done = []

        async def write(task: Task, vma: Vma) -> None:
            for index in range(1000):
                await node.memory.handle_mm_fault(task, vma, index, write=True)
            done.append(task)

        for task, vma in zip(tasks, vmas, strict=True):
            asyncio.create_task(write(task, vma))  # noqa: RUF006
        await asyncio.sleep(120)
        machine.drain(node.zone.watermarks.min // 2)
        await asyncio.sleep(120)
        assert not done
        assert node.zone.all_unreclaimable
        assert machine.device.pending
        machine.device.delay = 0.001
        for request in list(machine.device.pending):
            machine.device.complete(request)
        async with asyncio.timeout(600):
            while len(done) < 4:
                await asyncio.sleep(1)
        kswapd.cancel()

    simulate(main())


def test_kswapd_wakes_throttled_tasks_before_the_zone_is_balanced() -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.device.delay = None
        node = machine.node
        vma = Vma(Task("owner"), 600)
        for index in range(600):
            await node.memory.handle_mm_fault(vma.owner, vma, index, write=True)
        node.vmscan.shrink_active_list(node.vmscan.pgdat.lruvecs[0], 600)
        machine.drain(120)
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        sleeper = asyncio.create_task(node.vmscan.throttle.throttle_direct_reclaim(GFP_KERNEL, Task("user")))
        await asyncio.sleep(0.5)
        assert not sleeper.done()
        machine.give_back(60)
        await asyncio.sleep(0.05)
        assert not node.zone.all_unreclaimable
        assert node.zone.nr_free_pages < node.zone.watermarks.low
        assert sleeper.done()

    simulate(main())


def test_kswapd_runs_until_it_sleeps_before_whoever_asked_for_memory_below_low() -> None:
    """It has slept for long, and so comes before tasks that have run all the time: none of them reaches min."""

    async def main() -> None:
        kernel = PRESETS["6.1"]
        machine = Machine(2048, Switches.of(kernel.patches, kernel.rules))
        node = machine.node
        low = node.zone.watermarks.low
        kswapd = asyncio.create_task(node.kswapd.run())
        owner = Task("first")
        vma = Vma(owner, machine.free - low)
        for index in range(len(vma.ptes)):
            await node.memory.handle_mm_fault(owner, vma, index, write=True)
        assert node.vmstat.pgscan_kswapd == 0
        scanned = []

        async def touch(number: int) -> None:
            task = Task(f"touch{number}")
            await node.memory.handle_mm_fault(task, Vma(task, 1), 0, write=True)
            scanned.append(node.vmstat.pgscan_kswapd)

        await asyncio.gather(*map(touch, range(20)))
        assert node.vmstat.kswapd_wake >= 1
        assert min(scanned[1:]) > len(vma.ptes)
        kswapd.cancel()

    simulate(main())


def test_nobody_makes_way_for_a_kswapd_that_waits_for_its_writes() -> None:
    """Once kswapd sleeps somewhere, a fault above min is served at once, without a turn of the event loop."""

    async def main() -> None:
        kernel = PRESETS["6.1"]
        machine = Machine(2048, Switches.of(kernel.patches, kernel.rules), delay=None)
        node = machine.node
        node.swap_io.bio_set = UnlimitedBioSet()
        kswapd = asyncio.create_task(node.kswapd.run())
        owner = Task("owner")
        vma = Vma(owner, machine.free - node.zone.watermarks.low + 2)
        for index in range(len(vma.ptes) - 1):
            await node.memory.handle_mm_fault(owner, vma, index, write=True)
        await asyncio.sleep(0.001)
        assert node.zone.watermarks.min < node.zone.nr_free_pages < node.zone.watermarks.low
        assert node.vmstat.nr_writeback > 0
        assert not node.kswapd.running()
        fault = node.memory.handle_mm_fault(owner, vma, len(vma.ptes) - 1, write=True)
        with pytest.raises(StopIteration):
            fault.send(None)
        kswapd.cancel()

    simulate(main())


def test_a_thread_sleeps_until_what_it_waits_for_has_happened() -> None:
    async def main() -> None:
        queue = WaitQueue()

        async def work() -> None:
            await asyncio.sleep(0)
            assert await queue.wait()

        thread = Thread(work())

        async def run() -> None:
            await thread

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        gave_way = thread.sleeping
        await asyncio.sleep(0)
        waits = thread.sleeping
        queue.wake(1)
        assert (gave_way, waits, thread.sleeping) == (False, True, False)
        await task

    simulate(main())
