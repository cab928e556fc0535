"""What kswapd counts, which zones it scans, and when it gives up."""

from __future__ import annotations

import asyncio

import pytest

from testbed.mm.gfp import GFP_KERNEL
from testbed.mm.sched import Task
from testbed.patches import PRESETS, Switches
from tests.mm.machine import SERIES, Machine, machine_64m, with_rules
from tests.mm.two_zones import TwoZones, take
from tests.virtual_time import simulate

TODAY = Switches.of(PRESETS["6.1"].patches, PRESETS["6.1"].rules)


@pytest.mark.parametrize(("rule", "may_sleep"), [(False, False), (True, True)])
@pytest.mark.parametrize(("free", "balanced"), [(385, True), (384, False)])
def test_sleep_with_a_waiter_in_the_queue(rule: bool, may_sleep: bool, free: int, balanced: bool) -> None:
    """The waiter is woken in any case; from 3.19 on only the watermarks decide."""

    async def main() -> None:
        machine = machine_64m(with_rules(kswapd_sleeps_with_waiters=rule))
        machine.drain(free)
        waiter = asyncio.create_task(machine.node.vmscan.pfmemalloc_wait.wait())
        await asyncio.sleep(0)
        assert machine.node.kswapd.prepare_kswapd_sleep() == (may_sleep and balanced)
        await asyncio.sleep(0)
        assert waiter.done()

    simulate(main())


@pytest.mark.parametrize(
    ("at", "drain", "low_hit", "high_hit"), [(0.05, False, 1, 0), (0.09, True, 0, 1), (0.2, False, 0, 0)]
)
def test_a_nap_that_ends_too_early(at: float, drain: bool, low_hit: int, high_hit: int) -> None:
    """Woken in its nap of HZ/10 it has hit low quickly; finding the high watermark failed after it, high."""

    async def main() -> None:
        machine = machine_64m()
        node = machine.node
        node.kswapd.balance_pgdat = asyncio.Event().wait  # type: ignore[method-assign, assignment]
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        await asyncio.sleep(at)
        if drain:
            machine.drain(384)
        else:
            node.kswapd.wakeup_kswapd()
        await asyncio.sleep(1)
        vmstat = node.vmstat
        assert (vmstat.kswapd_low_wmark_hit_quickly, vmstat.kswapd_high_wmark_hit_quickly) == (low_hit, high_hit)

    simulate(main())


def test_kswapd_gives_up_after_16_failures_and_starts_again_once_a_page_has_been_freed() -> None:
    async def main() -> None:
        machine = machine_64m(TODAY)
        node = machine.node
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        machine.drain(100)
        await asyncio.sleep(60)
        assert (node.vmscan.pgdat.kswapd_failures, node.vmstat.pageoutrun) == (16, 16)
        wakes = node.vmstat.kswapd_wake
        node.kswapd.wakeup_kswapd()
        await asyncio.sleep(1)
        assert (node.vmstat.kswapd_wake, node.vmstat.pageoutrun) == (wakes, 16)
        for _ in range(500):
            node.zone.file[machine.held.pop()] = None
        assert await node.vmscan.try_to_free_pages(GFP_KERNEL, Task("user")) > 0
        assert node.vmscan.pgdat.kswapd_failures == 0
        node.kswapd.wakeup_kswapd()
        await asyncio.sleep(1)
        assert node.vmstat.kswapd_wake == wakes + 1
        assert node.vmstat.pgsteal_kswapd > 0

    simulate(main())


def test_without_the_rule_kswapd_never_gives_up_but_the_zone() -> None:
    async def main() -> None:
        machine = machine_64m()
        node = machine.node
        asyncio.create_task(node.kswapd.run())  # noqa: RUF006
        machine.drain(200)
        await asyncio.sleep(60)
        assert node.zone.all_unreclaimable
        assert node.vmscan.pgdat.kswapd_failures == 0
        assert await node.vmscan.try_to_free_pages(GFP_KERNEL, Task("user")) == 0

    simulate(main())


@pytest.mark.parametrize(
    ("lower", "upper", "lower_scanned", "upper_scanned"),
    [
        (150, 200, True, False),
        (200, 150, False, True),
        (155, 150, True, True),
        (151, 200, False, False),
    ],
)
def test_kswapd_scans_up_to_the_highest_zone_that_fails(
    lower: int, upper: int, lower_scanned: bool, upper_scanned: bool
) -> None:
    """A lower zone that passes is scanned too, unless it has a gap of 10 pages more than high."""

    async def main() -> None:
        zones = TwoZones(SERIES)
        take(zones.lower, free=lower, file=500)
        take(zones.upper, free=upper, file=500)
        await zones.kswapd.balance_pgdat()
        assert (len(zones.lower.file) < 500, len(zones.upper.file) < 500) == (lower_scanned, upper_scanned)
        assert all(zone.nr_free_pages > 150 for zone in (zones.lower, zones.upper))

    simulate(main())


def test_a_direct_reclaimer_skips_a_zone_given_up_after_its_first_pass() -> None:
    async def main() -> None:
        zones = TwoZones(SERIES)
        take(zones.lower, free=80)
        take(zones.upper, free=80)
        zones.upper.all_unreclaimable = True
        scanned: list[tuple[str, int]] = []

        async def shrink_zone(lruvec: object, sc: object) -> None:
            scanned.append((lruvec.zone.span.kind.title, sc.priority))  # type: ignore[attr-defined]

        zones.vmscan.shrink_zone = shrink_zone  # type: ignore[method-assign]
        assert await zones.vmscan.try_to_free_pages(GFP_KERNEL, Task("user")) == 1
        assert scanned[:2] == [("Normal", 12), ("DMA32", 12)]
        assert scanned[2:] == [("DMA32", priority) for priority in range(11, -1, -1)]
        zones.lower.all_unreclaimable = True
        assert await zones.vmscan.try_to_free_pages(GFP_KERNEL, Task("user")) == 0

    simulate(main())


def test_kswapd_forces_its_way_into_a_zone_given_up() -> None:
    async def main() -> None:
        machine = Machine(page_cache=100)
        node = machine.node
        machine.drain(10)
        node.zone.all_unreclaimable = True
        await node.kswapd.balance_pgdat()
        assert node.vmstat.pgsteal_kswapd >= 32

    simulate(main())


def turn_to_cache(machine: Machine, pages: int) -> None:
    """The highest of the pages held become clean page cache, the oldest first."""
    machine.held.sort(key=lambda page: page.pfn)
    for _ in range(pages):
        page = machine.held.pop()
        page.lru = True
        machine.node.zone.file[page] = None


@pytest.mark.parametrize(("order", "freed"), [(0, 0), (1, 4), (2, 8), (3, 16)])
def test_kswapd_reclaims_for_a_block_what_compaction_needs_and_no_more(order: int, freed: int) -> None:
    """6.1: `compact_gap`, twice the block. It scans 1/4096 of the list at priority 12, 1/2048 at 11, and so on."""

    async def main() -> None:
        machine = machine_64m(TODAY)
        machine.fragment()
        turn_to_cache(machine, 1000)
        assert await machine.node.kswapd.balance_pgdat(order) == (order if order == 0 else 0)
        assert freed <= machine.node.vmstat.pgsteal_kswapd < 2 * freed + 1
        assert machine.node.vmstat.pageoutrun == 1

    simulate(main())


def test_one_round_brings_the_block_that_kswapd_was_woken_for() -> None:
    """Two neighbours become free: the node is balanced for order 1, and kswapd sleeps in spite of having been asked."""

    async def main() -> None:
        machine = machine_64m(TODAY)
        machine.fragment()
        assert not machine.node.kswapd.pgdat_balanced(1)
        machine.give_back(1)
        machine.node.page_alloc.drain_all_pages()
        assert machine.node.kswapd.pgdat_balanced(1)
        assert not machine.node.kswapd.pgdat_balanced(2)
        assert await machine.node.kswapd.balance_pgdat(1) == 1
        assert machine.node.vmstat.pgscan_kswapd == 0

    simulate(main())


def test_in_3_6_memory_that_is_enough_for_compaction_is_left_alone() -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.fragment()
        turn_to_cache(machine, 1000)
        assert await machine.node.kswapd.balance_pgdat(2) == 0
        assert (machine.node.vmstat.pgsteal_kswapd, machine.node.vmstat.pageoutrun) == (0, 1)

    simulate(main())


def test_the_largest_order_asked_for_is_what_kswapd_looks_for_next() -> None:
    """Also one that came while it was awake: it is looked for when kswapd is next woken, and forgotten after that."""

    async def main() -> None:
        machine = machine_64m(TODAY)
        node = machine.node
        orders = []

        async def balance_pgdat(order: int) -> int:
            orders.append(order)
            if len(orders) == 1:
                node.kswapd.wakeup_kswapd(3)
                node.kswapd.wakeup_kswapd(1)
            return order

        node.kswapd.balance_pgdat = balance_pgdat  # type: ignore[method-assign, assignment]
        running = asyncio.create_task(node.kswapd.run())
        await asyncio.sleep(1)
        node.kswapd.wakeup_kswapd(2)
        for _ in range(3):
            node.kswapd.wakeup_kswapd(0)
            await asyncio.sleep(1)
        assert orders == [2, 3, 0]
        running.cancel()

    simulate(main())
