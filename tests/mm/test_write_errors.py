"""A swap device that fails every write, and soon: reclaim gets nowhere, at a rate that is its own, until the OOM killer
has ended who needed the memory.
"""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.bio import UnlimitedBioSet
from testbed.mm.memory import Killed
from testbed.patches import PRESETS, Switches
from tests.mm.machine import Machine
from tests.mm.test_memory import User
from tests.virtual_time import is_blocked, now, simulate

PAGES = 4096
TASKS, TOUCHES = 8, 1500


async def touch(machine: Machine, user: User) -> None:
    """Whoever is done exits as well: a victim that stays, asleep with all its memory, is the last that is killed."""
    try:
        for index in range(TOUCHES):
            await asyncio.sleep(0)
            await user.fault(index, write=True)
    except Killed:
        pass
    finally:
        machine.node.oom_killer.tasks.discard(user.task)
        user.exit()


@pytest.mark.parametrize("victims", ["01234567", "07435621"])
@pytest.mark.parametrize("delay", [0.00005, 0.0005])
@pytest.mark.parametrize(("preset", "rounds"), [("v9", 20), ("3.6", 20), ("6.1", 80)])
def test_each_page_is_tried_so_many_times_a_second_at_most(
    preset: str, rounds: int, delay: float, victims: str
) -> None:
    """Of those with as much memory the one with the greatest name is killed first."""

    async def main() -> None:
        kernel = PRESETS[preset]
        machine = Machine(PAGES, Switches.of(kernel.patches, kernel.rules), swap_pages=20000, delay=delay)
        machine.device.error = 5
        node = machine.node
        node.swap_io.bio_set = UnlimitedBioSet()
        kswapd = asyncio.create_task(node.kswapd.run())
        users = [User(machine, TOUCHES, name) for name in victims]
        node.oom_killer.tasks = {user.task for user in users}
        tasks = [asyncio.create_task(touch(machine, user)) for user in users]
        writes = 0
        while not all(task.done() for task in tasks):
            before = node.vmstat.pswpout
            await asyncio.wait(tasks, timeout=1)
            assert node.vmstat.pswpout - before < rounds * PAGES
            writes = node.vmstat.pswpout
            assert now() < 60, "the OOM killer makes room at last"
        assert writes > PAGES
        assert node.swap_io.write_errors > PAGES
        assert node.vmstat.oom_kill > 0
        kswapd.cancel()

    simulate(main())


@pytest.mark.parametrize(("error", "told"), [(0, True), (5, False)])
def test_only_a_write_that_succeeds_is_progress(error: int, told: bool) -> None:
    async def main() -> None:
        machine = Machine()
        machine.node.swap_io.bio_set = UnlimitedBioSet()
        user = User(machine, 1)
        page = await user.write(0)
        waiting = asyncio.create_task(machine.node.page_alloc.progress.wait())
        await asyncio.sleep(0)
        assert machine.node.swap_cache.add_to_swap(page, user.task)
        page.writeback = True
        machine.node.vmstat.nr_writeback += 1
        machine.node.swap_io.end_write([page], error)
        assert await is_blocked(waiting, 1) != told

    simulate(main())
