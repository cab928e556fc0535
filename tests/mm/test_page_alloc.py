"""The page allocator: how far down each caller gets, what it is given there, and who fails, waits or kills."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from testbed.mm.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_MEMALLOC, GFP_NOIO, GFP_NOMEMALLOC, GFP_NORETRY, GFP_NOWARN
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.patches import Switches
from testbed.rules import LINUX_3_6, LINUX_6_1, V9
from tests.mm.machine import SERIES, VANILLA, Machine, machine_64m, only, without
from tests.virtual_time import is_blocked, now, simulate

PLAIN, ENTITLED = Task("plain"), Task("entitled", pf_memalloc=True)


@pytest.mark.parametrize(
    ("gfp_mask", "task", "switches", "floor"),
    [
        (GFP_KERNEL, PLAIN, SERIES, 256),
        (GFP_NOIO, PLAIN, SERIES, 256),
        (GFP_ATOMIC | GFP_NOMEMALLOC, PLAIN, SERIES, 128),
        (GFP_ATOMIC, PLAIN, SERIES, 96),
        (GFP_ATOMIC | GFP_MEMALLOC, PLAIN, SERIES, 0),
        (GFP_ATOMIC | GFP_MEMALLOC, PLAIN, without(gfp_memalloc=False), 96),
        (GFP_ATOMIC | GFP_MEMALLOC | GFP_NOMEMALLOC, ENTITLED, SERIES, 128),
        (GFP_KERNEL, ENTITLED, SERIES, 0),
        (GFP_KERNEL, ENTITLED, VANILLA, 0),
    ],
)
def test_how_far_down_a_caller_gets(gfp_mask: int, task: Task, switches: Switches, floor: int) -> None:
    machine = machine_64m(switches)
    machine.drain(400)
    while machine.node.page_alloc.alloc_page_nowait(gfp_mask, task) is not None:
        pass
    assert machine.free == floor
    assert machine.node.page_alloc.nr_free_min == floor


@pytest.mark.parametrize(
    ("free", "v9", "merged", "reserve"),
    [
        (330, False, False, False),
        (321, False, False, False),
        (320, True, False, False),
        (300, True, False, False),
        (257, True, False, False),
        (256, True, True, True),
        (200, True, True, True),
    ],
)
@pytest.mark.parametrize("bulk", [True, False])
def test_v9_marks_all_that_the_slow_path_finds_and_3_6_what_the_watermark_would_have_refused(
    free: int, v9: bool, merged: bool, reserve: bool, bulk: bool
) -> None:
    for rules, marked in ((V9, v9), (LINUX_3_6, merged), (LINUX_6_1, merged)):
        machine = machine_64m(replace(SERIES, rules=replace(rules, watermark_scale_factor=0)))
        machine.drain(free)
        page_alloc = machine.node.page_alloc
        if bulk:
            page: Page | None = page_alloc.alloc_pages_nowait(1, GFP_KERNEL, ENTITLED)[0]
        else:
            page = page_alloc.alloc_page_nowait(GFP_KERNEL, ENTITLED)
        assert page is not None
        assert (page.pfmemalloc, page.from_reserve) == (marked, reserve)


def test_v9_marks_nothing_for_callers_who_are_not_entitled() -> None:
    machine = machine_64m()
    machine.drain(300)
    for gfp_mask, task in ((GFP_KERNEL, PLAIN), (GFP_ATOMIC | GFP_MEMALLOC | GFP_NOMEMALLOC, ENTITLED)):
        page = machine.node.page_alloc.alloc_page_nowait(gfp_mask, task)
        assert page is not None
        assert not page.pfmemalloc


@pytest.mark.parametrize(
    ("switches", "marked"),
    [(only(slab_pfmemalloc=True), True), (only(slab_pfmemalloc=True, gfp_memalloc=True), False), (VANILLA, False)],
)
def test_patch_02_alone_marks_by_who_runs_whatever_the_request_says(switches: Switches, marked: bool) -> None:
    machine = machine_64m(switches)
    machine.drain(300)
    page = machine.node.page_alloc.alloc_page_nowait(GFP_ATOMIC | GFP_NOMEMALLOC, ENTITLED)
    assert page is not None
    assert page.pfmemalloc == marked


def test_without_patch_02_a_reserve_page_looks_like_any_other() -> None:
    machine = machine_64m(without(slab_pfmemalloc=False))
    machine.drain(200)
    page = machine.node.page_alloc.alloc_page_nowait(GFP_KERNEL, ENTITLED)
    assert page is not None
    assert (page.pfmemalloc, page.from_reserve) == (False, True)


def test_a_page_forgets_the_reserve_when_it_is_freed() -> None:
    machine = machine_64m()
    machine.drain(200)
    page_alloc = machine.node.page_alloc
    page = page_alloc.alloc_page_nowait(GFP_KERNEL, ENTITLED)
    assert page is not None
    machine.give_back()
    page_alloc.free_page(page)
    assert page_alloc.alloc_page_nowait(GFP_KERNEL, PLAIN) is page
    assert not page.pfmemalloc
    assert not page.from_reserve


@pytest.mark.parametrize(("free", "woken"), [(321, 0), (320, 1)])
def test_kswapd_is_woken_once_free_pages_are_at_low(free: int, woken: int) -> None:
    machine = machine_64m()
    machine.drain(free)
    machine.node.page_alloc.alloc_page_nowait(GFP_KERNEL, PLAIN)
    assert machine.node.vmstat.kswapd_wake == woken


@pytest.mark.parametrize(("gfp_mask", "failures"), [(GFP_ATOMIC, 1), (GFP_ATOMIC | GFP_NOWARN, 0)])
def test_an_atomic_failure_is_reported_unless_the_caller_does_not_mind(gfp_mask: int, failures: int) -> None:
    machine = machine_64m()
    machine.drain(96)
    assert machine.node.page_alloc.alloc_page_nowait(gfp_mask, PLAIN) is None
    assert machine.node.vmstat.page_allocation_failure == failures


@pytest.mark.parametrize("gfp_mask", [GFP_KERNEL, GFP_NOIO])
def test_a_pf_memalloc_caller_fails_rather_than_reclaim(gfp_mask: int) -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(0)
        assert await machine.node.page_alloc.alloc_page(gfp_mask, ENTITLED) is None
        vmstat = machine.node.vmstat
        assert (vmstat.allocstall, vmstat.no_watermark_failures, now()) == (0, 1, 0)

    simulate(main())


@pytest.mark.parametrize("switches", [SERIES, VANILLA])
def test_gfp_noio_neither_returns_nor_kills_until_there_is_memory(switches: Switches) -> None:
    async def main() -> None:
        machine = machine_64m(switches)
        node = machine.node
        machine.drain(0)
        victim = Task("victim")
        victim.rss = 1000
        node.oom_killer.tasks.add(victim)
        kswapd = asyncio.create_task(node.kswapd.run())
        request = asyncio.create_task(node.page_alloc.alloc_page(GFP_NOIO, Task("nbd0", pf_kthread=True)))
        assert await is_blocked(request, 300)
        assert (node.vmstat.oom_kill, victim.fatal_signal) == (0, False)
        assert node.vmstat.allocstall > 100
        machine.give_back()
        assert await request is not None
        kswapd.cancel()

    simulate(main())


def test_gfp_kernel_without_progress_calls_the_oom_killer() -> None:
    async def main() -> None:
        machine = machine_64m(VANILLA)
        node = machine.node
        machine.drain(100)
        victim, bystander = Task("victim"), Task("bystander")
        victim.rss = 1000
        node.oom_killer.tasks |= {victim, bystander}
        kswapd = asyncio.create_task(node.kswapd.run())
        request = asyncio.create_task(node.page_alloc.alloc_page(GFP_KERNEL, bystander))
        assert await is_blocked(request, 60)
        assert node.vmstat.oom_kill == 1
        assert (victim.memdie, bystander.memdie) == (True, False)
        page = await node.page_alloc.alloc_page(GFP_KERNEL, victim)
        assert page is not None
        assert page.from_reserve
        kswapd.cancel()

    simulate(main())


def test_noretry_asks_once() -> None:
    async def main() -> None:
        machine = machine_64m(VANILLA)
        machine.drain(100)
        assert await machine.node.page_alloc.alloc_page(GFP_KERNEL | GFP_NORETRY, PLAIN) is None
        assert machine.node.vmstat.allocstall == 1

    simulate(main())


def test_a_killed_task_that_finds_no_memory_does_not_stop_the_machine() -> None:
    async def main() -> None:
        machine = machine_64m()
        machine.drain(100)
        killed = Task("killed")
        killed.fatal_signal = True
        request = asyncio.create_task(machine.node.page_alloc.alloc_page(GFP_KERNEL, killed))
        assert await is_blocked(request, 1)
        assert machine.node.vmstat.oom_kill == 0
        machine.give_back()
        assert await request is not None

    simulate(main())


def test_allocations_less_frees_are_the_pages_in_use() -> None:
    machine = Machine()
    machine.drain(500)
    machine.give_back(100)
    vmstat = machine.node.vmstat
    assert vmstat.pgalloc - vmstat.pgfree == machine.node.zone.managed - machine.free == 424
