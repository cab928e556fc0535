"""Reclaim: the order of pages, writes and their end, and what a cancelled reclaimer leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from testbed.mm.bio import UnlimitedBioSet
from testbed.mm.gfp import GFP_KERNEL, GFP_NOFS, GFP_NOIO
from testbed.mm.lruvec import Lruvec
from testbed.mm.memory import Vma
from testbed.mm.page import Page
from testbed.mm.scan_control import ScanControl
from testbed.mm.sched import Task
from testbed.patches import Switches
from tests.mm.census import check_pages, check_swap
from tests.mm.machine import SERIES, FakeSwapDevice, Machine, with_rules
from tests.virtual_time import is_blocked, now, simulate


def lruvec(machine: Machine) -> Lruvec:
    """The lists of the machine's only zone."""
    return machine.node.vmscan.pgdat.lruvecs[0]


async def populate(machine: Machine, pages: int) -> Vma:
    """Written pages, none of them recently used, all on the inactive list in order."""
    vma = Vma(Task("owner"), pages)
    for index in range(pages):
        await machine.node.memory.handle_mm_fault(vma.owner, vma, index, write=True)
    machine.node.vmscan.shrink_active_list(lruvec(machine), pages)
    return vma


def scan(gfp_mask: int = GFP_KERNEL, priority: int = 0) -> ScanControl:
    return ScanControl(gfp_mask, Task("reclaimer", pf_memalloc=True), 32, priority)


def test_a_dirty_page_is_written_by_one_scan_and_freed_by_a_later_one() -> None:
    async def main() -> None:
        machine = Machine()
        machine.node.swap_io.bio_set = UnlimitedBioSet()
        vma = await populate(machine, 32)
        first = scan()
        await machine.node.vmscan.shrink_zone(lruvec(machine), first)
        assert (first.nr_reclaimed, machine.device.writes, machine.free) == (0, 32, 1024 - 33)
        assert all(isinstance(pte, int) for pte in vma.ptes)
        await asyncio.sleep(1)
        second = scan()
        await machine.node.vmscan.shrink_zone(lruvec(machine), second)
        assert (second.nr_reclaimed, machine.device.writes) == (32, 32)
        assert machine.node.vmstat.pgsteal_direct == 32

    simulate(main())


def test_the_oldest_pages_go_first() -> None:
    async def main() -> None:
        machine = Machine()
        vma = await populate(machine, 400)
        await machine.node.vmscan.shrink_zone(lruvec(machine), scan(priority=2))
        swapped = [index for index, pte in enumerate(vma.ptes) if isinstance(pte, int)]
        assert swapped == list(range(len(swapped)))
        assert 0 < len(swapped) < 400

    simulate(main())


def test_a_page_in_use_is_activated_instead() -> None:
    async def main() -> None:
        machine = Machine()
        vma = await populate(machine, 32)
        used = vma.ptes[7]
        assert isinstance(used, Page)
        used.young = True
        await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, scan())
        assert list(machine.node.zone.active_anon) == [used]
        assert vma.ptes[7] is used
        assert machine.node.vmstat.pgactivate == 1

    simulate(main())


def test_without_io_nothing_dirty_is_touched() -> None:
    async def main() -> None:
        machine = Machine()
        vma = await populate(machine, 200)
        for priority in range(12, -1, -1):
            await machine.node.vmscan.shrink_zone(lruvec(machine), scan(GFP_NOIO, priority))
        assert machine.device.writes == 0
        assert all(isinstance(pte, Page) for pte in vma.ptes)

    simulate(main())


def test_clean_page_cache_goes_before_any_page_is_written() -> None:
    async def main() -> None:
        machine = Machine(page_cache=500)
        await populate(machine, 100)
        sc = ScanControl(GFP_KERNEL, Task("kswapd", pf_memalloc=True), 32, kswapd=True)
        machine.node.vmscan.shrink_file_list(lruvec(machine), 64, sc)
        assert (sc.nr_reclaimed, machine.device.writes, len(machine.node.zone.file)) == (64, 0, 436)
        assert machine.node.vmstat.pgsteal_kswapd == 64

    simulate(main())


@pytest.mark.parametrize("cache_trim_mode", [False, True])
def test_where_cache_is_trimmed_first_no_page_is_written_meanwhile(cache_trim_mode: bool) -> None:
    async def main() -> None:
        machine = Machine(switches=with_rules(cache_trim_mode=cache_trim_mode), page_cache=500)
        await populate(machine, 300)
        await machine.node.vmscan.shrink_zone(lruvec(machine), scan(priority=2))
        assert len(machine.node.zone.file) < 500
        assert (machine.device.writes == 0) == cache_trim_mode

    simulate(main())


def test_little_page_cache_is_left_alone() -> None:
    machine = Machine(page_cache=10)
    machine.drain(80)
    assert lruvec(machine).get_scan_count(1, swap_full=False, force_scan=True).file == 0
    machine.give_back(7)
    assert lruvec(machine).get_scan_count(1, swap_full=False, force_scan=True).file > 0


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_reclaimer_that_is_cancelled_leaves_no_page_under_writeback_for_ever(turns: int) -> None:
    async def main() -> None:
        machine = Machine(4096)
        node = machine.node
        vma = await populate(machine, 3600)
        reclaimer = asyncio.create_task(node.vmscan.shrink_zone(lruvec(machine), scan()))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert node.vmstat.nr_writeback
        reclaimer.cancel()
        await asyncio.wait([reclaimer])
        await asyncio.sleep(1)
        assert node.vmstat.nr_writeback == 0
        node.memory.exit_mmap(vma)
        assert node.pages_leaked() == 0

    simulate(main())


def test_a_direct_reclaimer_is_pf_memalloc_for_as_long_as_it_reclaims() -> None:
    async def main() -> None:
        machine = Machine(delay=None)
        node = machine.node
        await populate(machine, 700)
        task = Task("user")
        reclaim = asyncio.create_task(node.vmscan.try_to_free_pages(GFP_KERNEL, task))
        await asyncio.sleep(0)
        assert not reclaim.done()
        assert task.pf_memalloc
        await reclaim
        assert not task.pf_memalloc

    simulate(main())


class FullQueue(FakeSwapDevice):
    """Has no request for a write until `requests` is set."""

    def __init__(self) -> None:
        super().__init__(8192, 0.001)
        self.requests = asyncio.Event()

    async def submit_write(self, pages: Sequence[Page], nice: int) -> None:
        await self.requests.wait()
        await super().submit_write(pages, nice)


def with_full_queue(switches: Switches = SERIES) -> tuple[Machine, FullQueue]:
    """A machine whose writers all wait."""
    machine, device = Machine(switches=switches), FullQueue()
    machine.device = device
    device.swap_io = machine.node.swap_io
    machine.node.swap_io.device = device
    machine.node.swap_io.bio_set = UnlimitedBioSet()
    return machine, device


@pytest.mark.parametrize("exits", [False, True])
def test_pages_whose_write_waits_for_a_request_are_isolated(exits: bool) -> None:
    async def main() -> None:
        machine, device = with_full_queue()
        node = machine.node
        vma = await populate(machine, 100)
        reclaimer = asyncio.create_task(node.vmscan.shrink_inactive_list(lruvec(machine), 32, scan()))
        await asyncio.sleep(1)
        assert (node.vmstat.nr_isolated_anon, len(node.zone.inactive_anon)) == (32, 68)
        check_pages(node, (), ())
        if exits:
            node.memory.exit_mmap(vma)
            assert (machine.free, node.vmstat.nr_isolated_anon) == (1024 - 33, 32)
        device.requests.set()
        await reclaimer
        assert node.vmstat.nr_isolated_anon == 0
        check_pages(node, (), ())
        await asyncio.sleep(1)
        check_swap(node, [vma])
        node.memory.exit_mmap(vma)
        assert node.pages_leaked() == 0

    simulate(main())


@pytest.mark.parametrize(
    ("limit", "gfp_mask", "kswapd", "isolated", "waits"),
    [
        ("inactive", GFP_KERNEL, False, 801, True),
        ("inactive", GFP_KERNEL, False, 800, False),
        ("inactive", GFP_KERNEL, True, 801, False),
        ("eighth", GFP_KERNEL, False, 101, True),
        ("eighth", GFP_KERNEL, False, 100, False),
        ("eighth", GFP_NOFS, False, 101, False),
        ("eighth", GFP_NOIO, False, 801, True),
        ("eighth", GFP_KERNEL, True, 801, False),
    ],
)
def test_too_many_isolated_pages_stop_direct_reclaimers(
    limit: str, gfp_mask: int, kswapd: bool, isolated: int, waits: bool
) -> None:
    async def main() -> None:
        machine = Machine(switches=with_rules(too_many_isolated=limit))
        await populate(machine, 800)
        lruvec(machine).nr_isolated_anon = isolated
        sc = scan(gfp_mask)
        sc.kswapd = kswapd
        work = asyncio.create_task(machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, sc))
        assert await is_blocked(work, 10) == waits
        assert (sc.nr_scanned == 0) == waits
        lruvec(machine).nr_isolated_anon = 0
        assert not await is_blocked(work, 1)
        assert sc.nr_scanned == 32

    simulate(main())


def test_6_1_waits_once_for_isolated_pages_and_then_does_without() -> None:
    async def main() -> None:
        machine = Machine(switches=with_rules(reclaim_throttle=True))
        await populate(machine, 100)
        lruvec(machine).nr_isolated_anon = 500
        sc = scan()
        await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, sc)
        assert now() == pytest.approx(0.02)
        assert sc.nr_scanned == 0

    simulate(main())


def test_a_dying_reclaimer_does_not_wait_for_isolated_pages_again() -> None:
    async def main() -> None:
        machine = Machine()
        await populate(machine, 100)
        lruvec(machine).nr_isolated_anon = 500
        sc = scan()
        sc.current.fatal_signal = True
        await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, sc)
        assert now() == pytest.approx(0.1)
        assert (sc.nr_scanned, sc.nr_reclaimed) == (0, 32)

    simulate(main())


@pytest.mark.parametrize(("starts_active", "scans"), [(True, 1), (False, 2)])
def test_where_a_new_page_starts_and_how_often_it_must_be_seen_in_use(starts_active: bool, scans: int) -> None:
    async def main() -> None:
        machine = Machine(switches=with_rules(anon_starts_active=starts_active))
        zone = machine.node.zone
        vma = Vma(Task("owner"), 1)
        page = await machine.node.memory.handle_mm_fault(vma.owner, vma, 0, write=True)
        assert page is not None
        assert [*(zone.active_anon if starts_active else zone.inactive_anon)] == [page]
        machine.node.vmscan.shrink_active_list(lruvec(machine), 1)
        for seen in range(1, scans + 1):
            page.young = True
            await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, scan())
            assert (page in zone.active_anon) == (seen == scans)
        assert machine.device.writes == 0

    simulate(main())


def test_a_page_seen_in_use_once_and_then_no_more_is_written() -> None:
    async def main() -> None:
        machine = Machine(switches=with_rules(anon_starts_active=False))
        vma = Vma(Task("owner"), 1)
        await machine.node.memory.handle_mm_fault(vma.owner, vma, 0, write=True)
        for _ in range(2):
            await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, scan())
        assert machine.device.writes == 1

    simulate(main())


@pytest.mark.parametrize("activates", [False, True])
def test_a_page_under_writeback_comes_back_to_where_the_next_scan_begins(activates: bool) -> None:
    async def main() -> None:
        machine = Machine(switches=with_rules(writeback_activates=activates), delay=None)
        zone = machine.node.zone
        await populate(machine, 40)
        first = [*zone.inactive_anon][:32]
        await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, scan())
        assert not zone.active_anon
        await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 40, scan(GFP_NOIO))
        assert [*zone.active_anon] == (first if activates else [])
        for request in list(machine.device.pending):
            machine.device.complete(request)
        assert not zone.active_anon
        assert {*[*zone.inactive_anon][:32]} == {*first}

    simulate(main())


def test_kswapd_counts_pages_that_are_still_being_written_when_they_come_round_again() -> None:
    async def main() -> None:
        machine = Machine(switches=with_rules(reclaim_throttle=True), delay=None)
        await populate(machine, 32)
        for stuck, writeback, immediate in ((False, 0, 0), (False, 32, 0), (True, 0, 32)):
            machine.node.vmscan.pgdat.writeback = stuck
            sc = scan()
            sc.kswapd = True
            await machine.node.vmscan.shrink_inactive_list(lruvec(machine), 32, sc)
            assert (sc.nr_writeback, sc.nr_immediate) == (writeback, immediate)

    simulate(main())


def test_what_is_counted() -> None:
    async def main() -> None:
        machine = Machine()
        await populate(machine, 64)
        for _ in range(2):
            sc = scan()
            sc.nr_to_reclaim = 64
            await machine.node.vmscan.shrink_zone(lruvec(machine), sc)
            await asyncio.sleep(1)
        vmstat = machine.node.vmstat
        assert vmstat.pgrefill == vmstat.pgdeactivate == 64
        assert (vmstat.pgscan_anon, vmstat.pgscan_direct) == (128, 128)
        assert (vmstat.pgsteal_anon, vmstat.pgsteal_direct) == (64, 64)
        assert (vmstat.pswpout, vmstat.pgpgout) == (64, 256)

    simulate(main())


def test_with_swap_full_memory_is_left_alone() -> None:
    async def main() -> None:
        machine = Machine(swap_pages=33, page_cache=200)
        await populate(machine, 500)
        for _ in range(32):
            machine.node.swap.get_swap_page()
        sc = scan()
        await machine.node.vmscan.shrink_zone(lruvec(machine), sc)
        assert (sc.nr_reclaimed, machine.node.vmstat.pgscan_anon) == (200, 0)
        assert machine.node.vmscan.pgdat.zone_reclaimable_pages(machine.node.zone) == 0

    simulate(main())


@pytest.mark.parametrize(("young", "turns"), [(True, 1024 // 512), (False, 1024 // 64)])
def test_a_reclaimers_turn_is_512_pages_to_look_at_or_64_to_write(young: bool, turns: int) -> None:
    async def main() -> None:
        machine = Machine(2048)
        machine.node.swap_io.bio_set = UnlimitedBioSet()
        await populate(machine, 1024)
        for page in machine.node.zone.inactive_anon:
            page.young = young
        others = 0

        async def somebody_else() -> None:
            nonlocal others
            while True:
                await asyncio.sleep(0)
                others += 1

        other = asyncio.create_task(somebody_else())
        await machine.node.vmscan._shrink_anon_lists(lruvec(machine), 0, 1024, scan(priority=12), 0)
        assert machine.device.writes == (0 if young else 1024)
        assert others == pytest.approx(turns, abs=1)
        other.cancel()

    simulate(main())
