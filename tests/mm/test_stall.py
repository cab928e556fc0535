"""Where reclaimers wait, for what, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.gfp import GFP_KERNEL
from testbed.mm.scan_control import ScanControl
from testbed.mm.sched import Task
from testbed.mm.stall import CongestionWait, Reason, ReclaimThrottle
from tests.mm.machine import Machine, with_rules
from tests.virtual_time import now, simulate

TODAY = with_rules(reclaim_throttle=True, max_kswapd_failures=16)


def congestion_wait(machine: Machine) -> CongestionWait:
    stall = machine.node.vmscan.stall
    assert isinstance(stall, CongestionWait)
    return stall


def reclaim_throttle(machine: Machine) -> ReclaimThrottle:
    stall = machine.node.vmscan.stall
    assert isinstance(stall, ReclaimThrottle)
    return stall


def scanned(priority: int, *, taken: int = 32, writeback: int = 0, kswapd: bool = False) -> ScanControl:
    """A reclaimer that has just scanned `taken` pages, `writeback` of them under writeback, and freed none."""
    task = Task("kswapd0" if kswapd else "user", pf_kthread=kswapd)
    return ScanControl(
        GFP_KERNEL, task, 32, priority, kswapd, nr_scanned=taken, nr_taken=taken, nr_writeback=writeback
    )


@pytest.mark.parametrize(
    ("priority", "writeback", "waits"),
    [(12, 31, False), (12, 32, True), (11, 15, False), (11, 16, True), (9, 4, True), (9, 3, False), (7, 1, True)]
    + [(priority, 0, False) for priority in (12, 6, 0)]
    + [(priority, 1, True) for priority in (6, 3, 0)],
)
def test_the_share_under_writeback_that_makes_a_reclaimer_wait(priority: int, writeback: int, waits: bool) -> None:
    async def main() -> None:
        await congestion_wait(Machine()).zone_scanned(scanned(priority, writeback=writeback))
        assert now() == (pytest.approx(0.1) if waits else 0)

    simulate(main())


@pytest.mark.parametrize(
    ("priority", "kswapd", "under_min", "seconds", "skipped"),
    [
        (10, True, False, 0, 0),
        (9, True, False, 0.1, 0),
        (9, True, True, 0, 1),
        (10, True, True, 0, 0),
        (0, False, False, 0, 0),
    ],
)
def test_kswapd_waits_from_the_fourth_pass_on_unless_a_zone_is_below_min(
    priority: int, kswapd: bool, under_min: bool, seconds: float, skipped: int
) -> None:
    async def main() -> None:
        machine = Machine()
        sc = scanned(priority, kswapd=kswapd)
        sc.under_min = under_min
        await congestion_wait(machine).zones_scanned(sc)
        assert now() == pytest.approx(seconds)
        assert machine.node.vmstat.kswapd_skip_congestion_wait == skipped

    simulate(main())


def test_a_write_that_leaves_the_queue_uncongested_ends_a_congestion_wait() -> None:
    async def main() -> None:
        bdi = Machine().node.swap_io.bdi
        asyncio.get_running_loop().call_later(0.03, bdi.clear_bdi_congested)
        await bdi.congestion_wait(0.1)
        assert now() == pytest.approx(0.03)
        await bdi.congestion_wait(0.1)
        assert now() == pytest.approx(0.13)

    simulate(main())


@pytest.mark.parametrize(
    ("reason", "seconds"), [(Reason.WRITEBACK, 0.1), (Reason.ISOLATED, 0.02), (Reason.NOPROGRESS, 0.01)]
)
@pytest.mark.parametrize(
    ("task", "kswapd", "exempt"),
    [
        (Task("user"), False, False),
        (Task("kswapd0", pf_kthread=True), True, False),
        (Task("nbd0", pf_kthread=True), False, True),
    ],
)
def test_each_reason_has_its_time_and_kernel_threads_are_exempt(
    reason: Reason, seconds: float, task: Task, kswapd: bool, exempt: bool
) -> None:
    async def main() -> None:
        await reclaim_throttle(Machine(switches=TODAY)).reclaim_throttle(reason, task, kswapd=kswapd)
        assert now() == (0 if exempt else pytest.approx(seconds))

    simulate(main())


@pytest.mark.parametrize("sleepers", [1, 3])
def test_enough_pages_written_for_each_end_the_wait_for_writeback(sleepers: int) -> None:
    async def main() -> None:
        machine = Machine(switches=TODAY)
        stall = reclaim_throttle(machine)
        stall.acct_reclaim_writeback(1000)
        assert machine.node.vmstat.nr_throttled_written == 0
        waiting = [
            asyncio.create_task(stall.reclaim_throttle(Reason.WRITEBACK, Task("user"))) for _ in range(sleepers)
        ]
        await asyncio.sleep(0.01)
        stall.acct_reclaim_writeback(32 * sleepers)
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        stall.acct_reclaim_writeback(1)
        await asyncio.gather(*waiting)
        assert now() == pytest.approx(0.02)
        assert machine.node.vmstat.nr_throttled_written == 32 * sleepers + 1

    simulate(main())


@pytest.mark.parametrize(
    ("priority", "reclaimed", "writeback", "failures", "waits"),
    [
        (1, 0, 60, 0, True),
        (2, 0, 60, 0, False),
        (1, 1, 60, 0, False),
        (1, 0, 50, 0, False),
        (1, 0, 60, 16, False),
    ],
)
def test_no_progress_is_a_reason_to_wait_when_most_of_memory_is_being_written(
    priority: int, reclaimed: int, writeback: int, failures: int, waits: bool
) -> None:
    async def main() -> None:
        machine = Machine(switches=TODAY, page_cache=100)
        machine.node.vmstat.nr_writeback = writeback
        machine.node.vmscan.pgdat.kswapd_failures = failures
        sc = scanned(priority)
        sc.nr_reclaimed = reclaimed
        await machine.node.vmscan.stall.zones_scanned(sc)
        assert now() == (pytest.approx(0.01) if waits else 0)

    simulate(main())


@pytest.mark.parametrize(("reclaimed", "wakes"), [(4, False), (5, True)])
def test_progress_of_one_in_eight_wakes_those_who_had_none(reclaimed: int, wakes: bool) -> None:
    async def main() -> None:
        machine = Machine(switches=TODAY)
        stall = reclaim_throttle(machine)
        sleeper = asyncio.create_task(stall.reclaim_throttle(Reason.NOPROGRESS, Task("user")))
        await asyncio.sleep(0.001)
        sc = scanned(6)
        sc.nr_reclaimed = reclaimed
        await stall.zones_scanned(sc)
        await asyncio.sleep(0.001)
        assert sleeper.done() == wakes

    simulate(main())


def test_kswapd_waits_when_pages_come_round_again_under_writeback() -> None:
    async def main() -> None:
        machine = Machine(switches=TODAY)
        pgdat = machine.node.vmscan.pgdat
        stall = reclaim_throttle(machine)
        await stall.zone_scanned(scanned(12, writeback=31, kswapd=True))
        assert not pgdat.writeback
        await stall.zone_scanned(scanned(12, writeback=32, kswapd=True))
        assert pgdat.writeback
        assert now() == 0
        sc = scanned(12, kswapd=True)
        sc.nr_immediate = 1
        await stall.zone_scanned(sc)
        assert now() == pytest.approx(0.1)
        assert machine.node.kswapd.prepare_kswapd_sleep()
        assert not pgdat.writeback

    simulate(main())
