"""Patches 15 and 16: who is put to sleep on pfmemalloc_wait, for how long, and what is counted."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.gfp import GFP_KERNEL, GFP_NOFS, GFP_NOIO
from testbed.mm.sched import Task
from testbed.mm.zone_layout import ZoneType
from testbed.patches import Switches
from tests.mm.machine import SERIES, Machine, machine_64m, with_rules, without
from tests.mm.two_zones import TwoZones, take
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


DYING_RECLAIMS_NOT = with_rules(throttle_spares_dying=False)
DYING_IS_SPARED = with_rules(throttle_spares_dying=True)


@pytest.mark.parametrize(
    ("switches", "free", "throttles", "reclaims"),
    [
        (DYING_RECLAIMS_NOT, 10, 1, 0),
        (DYING_RECLAIMS_NOT, 200, 0, 0),
        (DYING_IS_SPARED, 10, 0, 1),
        (DYING_IS_SPARED, 200, 0, 1),
        (without(throttle_direct_reclaim=False), 10, 0, 1),
    ],
)
def test_what_a_task_does_that_is_already_dying(switches: Switches, free: int, throttles: int, reclaims: int) -> None:
    async def main() -> None:
        machine = machine_64m(switches)
        machine.drain(free)
        task = Task("killed")
        task.fatal_signal = True
        await machine.node.vmscan.try_to_free_pages(GFP_KERNEL, task)
        vmstat = machine.node.vmstat
        assert (vmstat.pgscan_direct_throttle, vmstat.allocstall, vmstat.oom_kill) == (throttles, reclaims, 0)

    simulate(main())


@pytest.mark.parametrize("switches", [DYING_RECLAIMS_NOT, DYING_IS_SPARED])
def test_a_task_killed_while_it_is_throttled_does_not_reclaim(switches: Switches) -> None:
    async def main() -> None:
        machine = machine_64m(switches)
        machine.drain(10)
        task = Task("user")
        reclaim = asyncio.create_task(machine.node.vmscan.try_to_free_pages(GFP_KERNEL, task))
        await asyncio.sleep(1)
        task.fatal_signal = True
        machine.node.vmscan.pfmemalloc_wait.wake_all()
        assert await reclaim == 1
        assert (machine.node.vmstat.pgscan_direct_throttle, machine.node.vmstat.allocstall) == (1, 0)

    simulate(main())


@pytest.mark.parametrize(
    ("limit", "failures", "sleeps"), [(16, 16, False), (16, 15, True), (None, 16, True), (None, 1000, True)]
)
def test_nobody_is_throttled_once_kswapd_has_given_up(limit: int | None, failures: int, sleeps: bool) -> None:
    async def main() -> None:
        machine = machine_64m(with_rules(max_kswapd_failures=limit))
        machine.drain(0)
        machine.node.vmscan.pgdat.kswapd_failures = failures
        assert await is_blocked(throttled(machine, GFP_KERNEL, Task("user")), 60) == sleeps

    simulate(main())


@pytest.mark.parametrize("gfp_mask", [GFP_NOIO, GFP_KERNEL])
def test_memory_freed_while_the_reserve_is_tested_is_not_slept_through(gfp_mask: int) -> None:
    """The wake-up comes before anybody is in the queue: only a second look can notice it."""

    async def main() -> None:
        machine = machine_64m()
        machine.drain(100)

        def kswapd_is_quick(_order: int) -> bool:
            machine.give_back(60)
            machine.node.vmscan.pfmemalloc_wait.wake_all()
            return True

        machine.node.page_alloc.wakeup_kswapd = kswapd_is_quick
        assert not await is_blocked(throttled(machine, gfp_mask, Task("user")), 0.5)
        assert machine.node.vmstat.pgscan_direct_throttle == 1

    simulate(main())


@pytest.mark.parametrize("frees_at", [0.3, 0.9, None])
def test_a_caller_without_fs_goes_on_when_it_can_and_after_a_second_at_the_latest(frees_at: float | None) -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(0)
        asyncio.create_task(machine.node.kswapd.run())  # noqa: RUF006
        if frees_at is not None:
            asyncio.get_running_loop().call_later(frees_at, machine.give_back, 200)
        await throttled(machine, GFP_NOIO, Task("user"))
        assert now() == pytest.approx(frees_at or 1, abs=0.11)
        assert now() <= 1

    simulate(main())


@pytest.mark.parametrize(
    ("lower", "upper", "ok"), [(101, 0, True), (100, 0, False), (0, 101, True), (50, 50, False), (50, 51, True)]
)
def test_the_zones_of_a_node_are_tested_together(lower: int, upper: int, ok: bool) -> None:
    zones = TwoZones(SERIES)
    take(zones.lower, free=lower)
    take(zones.upper, free=upper)
    assert zones.vmscan.throttle.pfmemalloc_watermark_ok() == ok


@pytest.mark.parametrize(("free", "ok"), [(50, False), (51, True)])
def test_high_memory_is_no_reserve(free: int, ok: bool) -> None:
    zones = TwoZones(SERIES, upper=ZoneType.HIGHMEM)
    take(zones.lower, free=free)
    assert zones.vmscan.throttle.pfmemalloc_watermark_ok() == ok


@pytest.mark.parametrize(
    ("ignores", "file", "upper", "ok"),
    [(False, 0, 60, False), (True, 0, 60, True), (True, 1, 60, False), (True, 0, 0, True), (True, 1, 0, False)],
)
def test_zones_with_nothing_to_reclaim_do_not_count_from_4_2_on(ignores: bool, file: int, upper: int, ok: bool) -> None:
    """The lower zone has no free page, and page cache or nothing."""
    zones = TwoZones(with_rules(throttle_ignores_unreclaimable=ignores))
    take(zones.lower, free=0, file=file)
    take(zones.upper, free=upper)
    assert zones.vmscan.throttle.pfmemalloc_watermark_ok() == ok


def test_a_zone_that_has_only_free_pages_does_count() -> None:
    zones = TwoZones(with_rules(throttle_ignores_unreclaimable=True))
    take(zones.lower, free=10)
    take(zones.upper, free=80)
    assert not zones.vmscan.throttle.pfmemalloc_watermark_ok()
