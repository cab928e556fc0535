"""Patches 15 and 16: who is put to sleep on pfmemalloc_wait, for how long, and what is counted."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.gfp import GFP_KERNEL, GFP_NOFS, GFP_NOIO
from testbed.mm.sched import Task
from tests.mm.machine import Machine, machine_64m, without
from tests.virtual_time import is_blocked, now, simulate


def throttled(machine: Machine, gfp_mask: int, task: Task) -> asyncio.Task[bool]:
    """`throttle_direct_reclaim`, running."""
    return asyncio.create_task(machine.node.vmscan.throttle.throttle_direct_reclaim(gfp_mask, task))


@pytest.mark.parametrize(("free", "sleeps"), [(129, False), (128, True), (0, True)])
def test_the_throttle_point_is_half_of_min(free: int, sleeps: bool) -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(free)
        assert await is_blocked(throttled(machine, GFP_KERNEL, Task("user")), 600) == sleeps
        vmstat = machine.node.vmstat
        assert vmstat.pgscan_direct_throttle == vmstat.nr_throttled == sleeps

    simulate(main())


def test_kernel_threads_are_neither_throttled_nor_counted() -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(0)
        await throttled(machine, GFP_KERNEL, Task("nbd0", pf_kthread=True))
        assert machine.node.vmstat.pgscan_direct_throttle == 0
        assert now() == 0

    simulate(main())


@pytest.mark.parametrize("gfp_mask", [GFP_NOIO, GFP_NOFS])
@pytest.mark.parametrize("kswapd_runs", [False, True])
def test_a_caller_without_fs_sleeps_for_a_second_and_then_reclaims(gfp_mask: int, kswapd_runs: bool) -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(50)
        if kswapd_runs:
            asyncio.create_task(machine.node.kswapd.run())  # noqa: RUF006
        await machine.node.vmscan.try_to_free_pages(gfp_mask, Task("user"))
        assert now() == pytest.approx(1)
        vmstat = machine.node.vmstat
        assert (vmstat.pgscan_direct_throttle, vmstat.allocstall, vmstat.nr_throttled) == (1, 1, 0)

    simulate(main())


@pytest.mark.parametrize("gfp_mask", [GFP_NOIO, GFP_KERNEL])
def test_a_sleeper_that_is_woken_too_early_sleeps_on(gfp_mask: int) -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(128)
        sleeper = throttled(machine, gfp_mask, Task("user"))
        for _ in range(5):
            assert await is_blocked(sleeper, 0.1)
            machine.node.vmscan.pfmemalloc_wait.wake_all()
        assert await is_blocked(sleeper, 0.1)
        machine.give_back(1)
        machine.node.vmscan.pfmemalloc_wait.wake_all()
        assert not await is_blocked(sleeper, 0.1)
        assert machine.node.vmstat.pgscan_direct_throttle == 1

    simulate(main())


def test_fatal_signal_ends_the_sleep_and_counts_as_progress() -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(10)
        task = Task("killed")
        task.fatal_signal = True
        assert await machine.node.vmscan.try_to_free_pages(GFP_KERNEL, task) == 1
        vmstat = machine.node.vmstat
        assert (vmstat.pgscan_direct_throttle, vmstat.allocstall, vmstat.oom_kill, now()) == (1, 0, 0, 0)

    simulate(main())


def test_a_victim_of_the_oom_killer_leaves_the_queue() -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(10)
        victim, other = Task("victim"), Task("other")
        victim.rss = 5
        machine.node.oom_killer.tasks |= {victim, other}
        sleepers = [throttled(machine, GFP_KERNEL, task) for task in (victim, other)]
        await asyncio.sleep(1)
        machine.node.oom_killer.out_of_memory(other)
        assert not await is_blocked(sleepers[0], 1)
        assert await is_blocked(sleepers[1], 1)

    simulate(main())


@pytest.mark.parametrize(("free", "sleeps"), [(128, True), (129, False)])
def test_every_sleeper_has_woken_kswapd(free: int, sleeps: bool) -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(free)
        await is_blocked(throttled(machine, GFP_KERNEL, Task("user")), 1)
        assert machine.node.vmstat.kswapd_wake == sleeps

    simulate(main())


def test_kswapd_wakes_all_sleepers_once_half_of_min_is_free() -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(20)
        asyncio.create_task(machine.node.kswapd.run())  # noqa: RUF006
        sleepers = [throttled(machine, GFP_KERNEL, Task(f"user{number}")) for number in range(8)]
        await asyncio.sleep(30)
        assert not any(sleeper.done() for sleeper in sleepers)
        assert machine.node.vmstat.nr_throttled == 8
        machine.give_back(109)
        await asyncio.sleep(1)
        assert all(sleeper.done() for sleeper in sleepers)
        assert machine.node.vmstat.pgscan_direct_throttle == 8

    simulate(main())


def test_without_patch_15_nobody_sleeps() -> None:
    async def main() -> None:
        machine = machine_64m(without(throttle_direct_reclaim=False))
        machine.drain(0)
        await throttled(machine, GFP_KERNEL, Task("user"))
        vmstat = machine.node.vmstat
        assert (now(), vmstat.throttle_waits, vmstat.throttle_low_reserve) == (0, 0, 1)

    simulate(main())


def test_without_patch_16_sleepers_are_not_counted() -> None:
    async def main() -> None:
        machine = machine_64m(without(count_throttle=False))
        machine.drain(0)
        assert await is_blocked(throttled(machine, GFP_KERNEL, Task("user")), 10)
        vmstat = machine.node.vmstat
        assert (vmstat.pgscan_direct_throttle, vmstat.throttle_waits, vmstat.throttle_uncounted) == (0, 1, 1)

    simulate(main())


def test_a_cancelled_sleeper_is_no_longer_counted_as_asleep() -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(0)
        sleeper = throttled(machine, GFP_KERNEL, Task("user"))
        await asyncio.sleep(1)
        sleeper.cancel()
        await asyncio.sleep(0)
        assert machine.node.vmstat.nr_throttled == 0
        assert not machine.node.vmscan.pfmemalloc_wait

    simulate(main())
