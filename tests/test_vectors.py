"""What each kernel version does with one input, end to end: a preset, a situation, and what comes of it."""

from __future__ import annotations

import asyncio

import pytest

from testbed.hosts.nbd_device import NbdDevice
from testbed.mm.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_NOFS
from testbed.mm.memory import Vma
from testbed.mm.page import Page
from testbed.mm.scan_control import ScanControl
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE, Watermarks
from testbed.mm.zone import Zone
from testbed.net.dev import ETH_P_IPX
from testbed.net.drop_reason import DropReason
from testbed.net.page_frag import PageFrag
from testbed.net.sock import Sock
from testbed.patches import PRESETS, Switches
from tests.hosts.test_nbd_device import FakeClient, Rig
from tests.mm.machine import Machine, machine_64m
from tests.net.host import Host
from tests.virtual_time import is_blocked, now, simulate

SERIES = ("v9", "3.6", "6.1")
ALL = ("vanilla", *SERIES)
DELIVERED, PFMEMALLOC, UNHANDLED = DropReason.DELIVERED, DropReason.PFMEMALLOC, DropReason.UNHANDLED_PROTO

series = pytest.mark.parametrize("preset", SERIES)


def switches_of(preset: str) -> Switches:
    return Switches.of(PRESETS[preset].patches, PRESETS[preset].rules)


def machine_of(preset: str, free: int | None = None) -> Machine:
    """The watermarks of 64 MiB, with so many pages free."""
    machine = machine_64m(switches_of(preset))
    if free is not None:
        machine.drain(free)
    return machine


def host_of(preset: str, *, memalloc: bool = True) -> Host:
    """A host whose ring lies in the reserve."""
    host = Host(switches_of(preset))
    if memalloc:
        host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.device.alloc_rx_buffers()
    ring = host.device.ring
    ring.pfmemalloc = bytearray(b"\1" * len(ring))
    return host


# --- page allocator ---


@pytest.mark.parametrize(
    ("preset", "free", "marked"),
    [
        *[(preset, 330, False) for preset in ALL],
        ("vanilla", 300, False),
        ("v9", 300, True),
        ("3.6", 300, False),
        ("6.1", 300, False),
        ("vanilla", 200, False),
        *[(preset, 200, True) for preset in SERIES],
    ],
)
def test_which_pages_of_an_entitled_caller_are_marked(preset: str, free: int, marked: bool) -> None:
    page = machine_of(preset, free).node.page_alloc.alloc_page_nowait(GFP_KERNEL, Task("user", pf_memalloc=True))
    assert page is not None
    assert page.pfmemalloc == marked


@pytest.mark.parametrize("preset", ALL)
def test_a_pf_memalloc_task_finds_nothing_and_does_not_reclaim(preset: str) -> None:
    async def main() -> None:
        machine = machine_of(preset, 0)
        task = Task("user", pf_memalloc=True)
        assert await machine.node.page_alloc.alloc_page(GFP_KERNEL, task) is None
        assert (now(), machine.node.vmstat.allocstall) == (0, 0)

    simulate(main())


# --- throttling ---


@pytest.mark.parametrize(("free", "sleeps"), [(128, True), (129, False)])
@series
def test_throttled_at_half_of_the_reserve(preset: str, free: int, sleeps: bool) -> None:
    async def main() -> None:
        machine = machine_of(preset, free)
        throttle = machine.node.vmscan.throttle
        sleeper = asyncio.create_task(throttle.throttle_direct_reclaim(GFP_KERNEL, Task("user")))
        assert await is_blocked(sleeper, 60) == sleeps
        assert machine.node.vmstat.pgscan_direct_throttle == sleeps

    simulate(main())


@series
def test_kernel_threads_pass_and_callers_without_fs_after_a_second(preset: str) -> None:
    async def main() -> None:
        machine = machine_of(preset, 10)
        throttle, vmstat = machine.node.vmscan.throttle, machine.node.vmstat
        await throttle.throttle_direct_reclaim(GFP_KERNEL, Task("nbd0", pf_kthread=True))
        assert (now(), vmstat.pgscan_direct_throttle) == (0, 0)
        await throttle.throttle_direct_reclaim(GFP_NOFS, Task("user"))
        assert now() == pytest.approx(1)
        assert vmstat.pgscan_direct_throttle == 1

    simulate(main())


@pytest.mark.parametrize(
    ("preset", "counted", "reclaims"), [("vanilla", 0, 1), ("v9", 1, 0), ("3.6", 1, 0), ("6.1", 0, 1)]
)
@pytest.mark.parametrize("gfp_mask", [GFP_KERNEL, GFP_NOFS])
def test_a_dying_task(preset: str, gfp_mask: int, counted: int, reclaims: int) -> None:
    async def main() -> None:
        machine = machine_of(preset, 10)
        task = Task("killed")
        task.fatal_signal = True
        progress = await machine.node.vmscan.try_to_free_pages(gfp_mask, task)
        vmstat = machine.node.vmstat
        assert (vmstat.pgscan_direct_throttle, vmstat.allocstall, vmstat.oom_kill) == (counted, reclaims, 0)
        assert progress == 1 or reclaims
        assert now() == 0

    simulate(main())


@pytest.mark.parametrize(("preset", "reclaims"), [("v9", 0), ("3.6", 0), ("6.1", 1)])
def test_a_dying_task_with_memory_at_hand(preset: str, reclaims: int) -> None:
    """Before 3.8 whoever is dying skips reclaim, throttled or not."""

    async def main() -> None:
        machine = machine_of(preset, 200)
        task = Task("killed")
        task.fatal_signal = True
        await machine.node.vmscan.try_to_free_pages(GFP_KERNEL, task)
        assert machine.node.vmstat.allocstall == reclaims

    simulate(main())


@series
@pytest.mark.parametrize("gfp_mask", [GFP_KERNEL, GFP_NOFS])
def test_a_task_killed_while_it_is_throttled_wakes_and_does_not_reclaim(preset: str, gfp_mask: int) -> None:
    async def main() -> None:
        machine = machine_of(preset, 10)
        task = Task("user")
        sleeper = asyncio.create_task(machine.node.vmscan.try_to_free_pages(gfp_mask, task))
        assert await is_blocked(sleeper, 0.5)
        task.fatal_signal = True
        machine.node.vmscan.pfmemalloc_wait.wake_all()
        assert not await is_blocked(sleeper, 0.1)
        assert (sleeper.result(), machine.node.vmstat.allocstall) == (1, 0)

    simulate(main())


@series
@pytest.mark.parametrize("gfp_mask", [GFP_KERNEL, GFP_NOFS])
def test_no_wake_up_is_lost_between_the_test_and_the_sleep(preset: str, gfp_mask: int) -> None:
    """Whoever has tested the reserve is on the queue before anybody else runs."""

    async def main() -> None:
        machine = machine_of(preset, 128)
        vmscan = machine.node.vmscan
        sleeper = asyncio.create_task(vmscan.throttle.throttle_direct_reclaim(gfp_mask, Task("user")))
        while not machine.node.vmstat.nr_throttled:
            await asyncio.sleep(0)
        machine.give_back(1)
        machine.node.page_alloc.drain_all_pages()
        vmscan.pfmemalloc_wait.wake_all()
        assert not await is_blocked(sleeper, 0.5)

    simulate(main())


@pytest.mark.parametrize(("preset", "sleeps"), [("v9", False), ("3.6", False), ("6.1", True)])
def test_kswapd_with_a_waiter_and_every_zone_balanced(preset: str, sleeps: bool) -> None:
    async def main() -> None:
        machine = machine_of(preset)
        queue = machine.node.vmscan.pfmemalloc_wait
        waiter = asyncio.create_task(queue.wait())
        await asyncio.sleep(0)
        assert machine.node.kswapd.prepare_kswapd_sleep() == sleeps
        assert not await is_blocked(waiter, 1)
        assert machine.node.kswapd.prepare_kswapd_sleep()

    simulate(main())


@series
@pytest.mark.parametrize(("free", "woken"), [(128, 0), (129, 3)])
def test_kswapd_wakes_all_the_throttled_while_it_is_still_balancing(preset: str, free: int, woken: int) -> None:
    async def main() -> None:
        machine = machine_of(preset, free)
        zone, queue = machine.node.zone, machine.node.vmscan.pfmemalloc_wait
        zone.inactive_anon[machine.held[0]] = None
        machine.held[0].writeback = True
        waiters = [asyncio.create_task(queue.wait()) for _ in range(3)]
        balance = asyncio.create_task(machine.node.kswapd.balance_pgdat())
        await asyncio.sleep(1)
        assert sum(waiter.done() for waiter in waiters) == woken
        for task in (balance, *waiters):
            task.cancel()

    simulate(main())


@series
def test_one_pass_of_kswapd_wakes_all_the_throttled(preset: str) -> None:
    async def main() -> None:
        machine = machine_of(preset, 129)
        kswapd, queue = machine.node.kswapd, machine.node.vmscan.pfmemalloc_wait
        waiters = [asyncio.create_task(queue.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        await kswapd._pass(ScanControl(GFP_KERNEL, kswapd.task, 1 << 62, kswapd=True))
        await asyncio.sleep(0)
        assert all(waiter.done() for waiter in waiters)

    simulate(main())


@pytest.mark.parametrize(("preset", "failures", "ok"), [("6.1", 15, False), ("6.1", 16, True), ("3.6", 16, False)])
def test_nobody_is_throttled_once_kswapd_has_given_up(preset: str, failures: int, ok: bool) -> None:
    machine = machine_of(preset, 0)
    machine.node.vmscan.pgdat.kswapd_failures = failures
    zone = machine.node.zone
    zone.inactive_anon[machine.held[0]] = None
    assert machine.node.vmscan.throttle.pfmemalloc_watermark_ok() == ok


@pytest.mark.parametrize(("preset", "rounds"), [("v9", 0), ("3.6", 0), ("6.1", 1)])
def test_a_round_of_kswapd_that_frees_nothing_is_a_failure_from_4_12_on(preset: str, rounds: int) -> None:
    async def main() -> None:
        machine = machine_of(preset, 10)
        machine.held[0].writeback = True
        machine.node.zone.inactive_anon[machine.held[0]] = None
        balance = asyncio.create_task(machine.node.kswapd.balance_pgdat())
        await is_blocked(balance, 1)
        balance.cancel()
        assert machine.node.vmscan.pgdat.kswapd_failures == rounds

    simulate(main())


# --- reclaim ---


async def populate(machine: Machine, pages: int) -> Vma:
    """A mapping whose pages are all written, none in use lately, all on the inactive list."""
    vma = Vma(Task("owner"), pages)
    zone = machine.node.zone
    for index in range(pages):
        page = await machine.node.memory.handle_mm_fault(vma.owner, vma, index, write=True)
        assert page is not None
        page.young = page.active = False
        zone.active_anon.pop(page, None)
        zone.inactive_anon[page] = None
    return vma


def direct(gfp_mask: int = GFP_KERNEL) -> ScanControl:
    return ScanControl(gfp_mask, Task("reclaimer", pf_memalloc=True), 32)


async def scan(machine: Machine, sc: ScanControl) -> ScanControl:
    """One look at 32 pages of the inactive list."""
    vmscan = machine.node.vmscan
    await vmscan.shrink_inactive_list(vmscan.pgdat.lruvecs[0], 32, sc)
    return sc


@pytest.mark.parametrize(("preset", "starts_active", "scans"), [("v9", True, 1), ("3.6", True, 1), ("6.1", False, 2)])
def test_where_a_page_starts_and_how_often_it_must_be_used(preset: str, starts_active: bool, scans: int) -> None:
    async def main() -> None:
        machine = machine_of(preset)
        vma = Vma(Task("owner"), 1)
        page = await machine.node.memory.handle_mm_fault(vma.owner, vma, 0, write=True)
        assert page is not None
        assert page.active == (page in machine.node.zone.active_anon) == starts_active
        (page,) = [pte for pte in (await populate(machine, 1)).ptes if isinstance(pte, Page)]
        needed = 0
        while not page.active:
            page.young = True
            await scan(machine, direct())
            needed += 1
        assert needed == scans

    simulate(main())


@pytest.mark.parametrize(("preset", "activated"), [("v9", False), ("3.6", False), ("6.1", True)])
def test_a_page_found_under_writeback(preset: str, activated: bool) -> None:
    """6.1 keeps it on the active list; once it is written it comes back to where the next scan begins."""

    async def main() -> None:
        machine = machine_of(preset)
        machine.device.delay = None
        vma = await populate(machine, 4)
        first = next(iter(machine.node.zone.inactive_anon))
        await scan(machine, direct())
        await scan(machine, direct())
        assert first.writeback
        assert first.active == (first in machine.node.zone.active_anon) == activated
        await populate(machine, 2)
        for request in list(machine.device.pending):
            machine.device.complete(request)
        assert not first.active
        assert first in list(machine.node.zone.inactive_anon)[:4]
        assert len(vma.ptes) == 4

    simulate(main())


@pytest.mark.parametrize(("preset", "stays"), [("v9", True), ("3.6", True), ("6.1", False)])
def test_the_end_of_a_write_leaves_active_pages_alone_until_4_11(preset: str, stays: bool) -> None:
    async def main() -> None:
        machine = machine_of(preset)
        machine.device.delay = None
        await populate(machine, 1)
        zone = machine.node.zone
        (page,) = zone.inactive_anon
        await scan(machine, direct())
        del zone.inactive_anon[page]
        zone.active_anon[page] = None
        page.active = True
        machine.device.complete(machine.device.pending[0])
        assert page.active == (page in zone.active_anon) == stays

    simulate(main())


@pytest.mark.parametrize(
    ("preset", "gfp_mask", "isolated", "waits", "taken"),
    [
        ("3.6", GFP_KERNEL, 32, False, 32),
        ("3.6", GFP_KERNEL, 33, True, 0),
        ("6.1", GFP_KERNEL, 4, False, 32),
        ("6.1", GFP_KERNEL, 5, False, 0),
        ("6.1", GFP_NOFS, 32, False, 32),
        ("6.1", GFP_NOFS, 33, False, 0),
    ],
)
def test_too_many_isolated(preset: str, gfp_mask: int, isolated: int, waits: bool, taken: int) -> None:
    """3.6 waits for as long as it takes, 6.1 once and gives up, already when an eighth is isolated."""

    async def main() -> None:
        machine = machine_of(preset)
        await populate(machine, 32)
        machine.node.vmscan.pgdat.lruvecs[0].nr_isolated_anon = isolated
        sc = direct(gfp_mask)
        reclaim = asyncio.create_task(scan(machine, sc))
        assert await is_blocked(reclaim, 60) == waits
        assert sc.nr_taken == taken
        reclaim.cancel()

    simulate(main())


@pytest.mark.parametrize(("preset", "worth_trying"), [("v9", 1), ("3.6", 1), ("6.1", 0)])
def test_direct_reclaim_that_frees_nothing(preset: str, worth_trying: int) -> None:
    """Until 4.12 it is progress so long as kswapd has not given every zone up."""

    async def main() -> None:
        machine = machine_of(preset, 200)
        assert await machine.node.vmscan.try_to_free_pages(GFP_KERNEL, Task("user")) == worth_trying

    simulate(main())


# --- swap and block layer ---


@pytest.mark.parametrize("preset", ALL)
def test_a_read_of_memory_never_written_costs_nothing(preset: str) -> None:
    async def main() -> None:
        machine = machine_of(preset)
        task = Task("user")
        vma = Vma(task, 1)
        assert await machine.node.memory.handle_mm_fault(task, vma, 0, write=False) is None
        assert (machine.node.vmstat.pgalloc, machine.node.vmstat.pswpin) == (0, 0)

    simulate(main())


@pytest.mark.parametrize(("preset", "together"), [("3.6", list(range(16, 24))), ("6.1", list(range(14, 30, 2)))])
def test_what_a_major_fault_reads(preset: str, together: list[int]) -> None:
    """3.6 reads the slots around; 6.1 the slots of the neighbours in the mapping, wherever those are."""

    async def main() -> None:
        machine = machine_of(preset)
        swap, task = machine.node.swap, Task("user")
        vma = Vma(task, 20)
        for slot in range(1, 41):
            assert swap.get_swap_page() == slot
            swap.swap_duplicate(slot)
            swap.swapcache_free(slot)
        vma.ptes = list(range(2, 42, 2))
        await machine.node.memory.handle_mm_fault(task, vma, 9, write=False)
        pages = [pte for pte in vma.ptes if isinstance(pte, Page)]
        assert len(pages) == 1
        assert sorted({*machine.node.swap_cache.pages, 20}) == together

    simulate(main())


def at_slot(slot: int) -> Page:
    page = Zone(memoryview(bytearray(PAGE_SIZE)), Watermarks(0, 0, 0, 0)).pages[0]
    page.swap_entry = slot
    return page


@pytest.mark.parametrize(("preset", "number", "waits"), [("v9", 128, False), ("3.6", 128, False), ("6.1", 256, True)])
def test_128_requests_for_each_direction_or_256_for_both(preset: str, number: int, waits: bool) -> None:
    """Blk-mq's queue has a depth of 128, and its scheduler twice as many requests (`blk_mq_init_sched`)."""

    async def main() -> None:
        device = NbdDevice(switches_of(preset))
        reads = [at_slot(slot) for slot in range(2, 2 * number + 2, 2)]
        assert not await is_blocked(asyncio.create_task(device.submit_read(reads, 0)), 1)
        assert len(device.channels[0].hctx.requests) == number
        late = [asyncio.create_task(submit([at_slot(1000)], 0)) for submit in (device.submit_read, device.submit_write)]
        assert [await is_blocked(task, 1) for task in late] == [True, waits]
        for task in late:
            task.cancel()

    simulate(main())


@pytest.mark.parametrize(("preset", "lengths"), [("3.6", [31] * 12 + [28]), ("6.1", [32] * 12 + [16])])
def test_the_largest_request(preset: str, lengths: list[int]) -> None:
    async def main() -> None:
        device = NbdDevice(switches_of(preset))
        await device.submit_read([at_slot(slot) for slot in range(1, 401)], 0)
        assert [len(request.pages) for request in device.channels[0].hctx.requests] == lengths

    simulate(main())


@pytest.mark.parametrize("preset", ALL)
def test_nbd_thread_has_pf_memalloc_while_it_sends_and_then_no_more(preset: str) -> None:
    async def main() -> None:
        client = FakeClient()
        rig = Rig(client, switches_of(preset), sndbuf=1)
        during: list[bool] = []
        send_pending = client.send_pending

        def watched(most: int | None = None) -> bool:
            during.append(rig.channels[0].thread.pf_memalloc)
            return send_pending(most)

        client.send_pending = watched  # type: ignore[method-assign]
        await rig.swap_out(rig.dirty_pages(20))
        await asyncio.sleep(1)
        rig.acknowledge()
        await asyncio.sleep(1)
        assert during[0] == (preset != "vanilla")
        assert not rig.channels[0].thread.pf_memalloc
        rig.threads[0].cancel()
        rig.device.close()
        client.close()

    simulate(main())


# --- network ---


@pytest.mark.parametrize(("preset", "rcvbuf_errors"), [("v9", 1), ("3.6", 1), ("6.1", 0)])
def test_a_datagram_in_the_reserve_for_an_ordinary_socket(preset: str, rcvbuf_errors: int) -> None:
    host = host_of(preset)
    assert host.receive(host.udp) == [PFMEMALLOC]
    netstat = host.netstat
    assert (netstat.PFMemallocDrop, netstat.InErrors, netstat.RcvbufErrors) == (1, 1, rcvbuf_errors)
    assert not host.udp.receive_queue


@series
def test_a_segment_in_the_reserve_for_the_swap_socket(preset: str) -> None:
    host = host_of(preset)
    assert host.receive(host.swap, end_seq=[100]) == [DELIVERED]
    assert host.netstat.receive_pf_memalloc == 1
    assert not host.device.softirq.pf_memalloc


@pytest.mark.parametrize(
    ("preset", "memalloc", "dropped"),
    [("v9", True, True), ("v9", False, True), ("3.6", True, True), ("3.6", False, False), ("6.1", False, False)],
)
def test_a_foreign_protocol_in_the_reserve(preset: str, memalloc: bool, dropped: bool) -> None:
    """3.6 and later care only while there is a memalloc socket; whoever is bound to the protocol gets it then."""
    host = host_of(preset, memalloc=memalloc)
    tap, bound = Sock("tcpdump", 1 << 20), Sock("ipx", 1 << 20)
    host.device.ptype_all.append(tap)
    host.device.ptype_base[ETH_P_IPX] = [bound]
    assert host.receive(None, protocol=ETH_P_IPX) == [UNHANDLED if dropped else DELIVERED]
    assert host.netstat.rx_dropped == dropped
    assert len(tap.receive_queue) == len(bound.receive_queue) == (not dropped)


@series
def test_taps_see_what_does_not_lie_in_the_reserve(preset: str) -> None:
    host = host_of(preset)
    tap = Sock("tcpdump", 1 << 20)
    host.device.ptype_all.append(tap)
    host.device.ring.pfmemalloc[1] = 0
    assert host.receive(host.udp, 2) == [PFMEMALLOC, DELIVERED]
    assert len(tap.receive_queue) == 1


@pytest.mark.parametrize(
    ("free", "memalloc_socks", "pfmemalloc"), [(129, 1, [False]), (128, 1, [True]), (0, 1, []), (128, 0, [])]
)
@series
def test_an_skb_of_slab_objects(preset: str, free: int, memalloc_socks: int, pfmemalloc: list[bool]) -> None:
    """`__alloc_skb` for receive: the second attempt marks, whatever pages it got."""
    host = Host(switches_of(preset))
    memory = host.skb_memory
    kept = memory.alloc_skb(1500, GFP_ATOMIC, host.softirq)
    assert kept is not None
    cache = kept.data.cache
    held = [cache.alloc(GFP_ATOMIC, host.softirq) for _ in range(cache.nr_slabs * cache.objects_per_slab - cache.inuse)]
    assert len(held) == 1
    host.machine.drain(free)
    skb = memory.alloc_skb(1500, memory.rx_gfp_mask(GFP_ATOMIC, memalloc_socks), host.softirq)
    assert ([] if skb is None else [skb.pfmemalloc]) == pfmemalloc


@series
@pytest.mark.parametrize(("mapped", "marked"), [(False, True), (True, False)])
def test_a_fragment_of_the_reserve(preset: str, mapped: bool, marked: bool) -> None:
    """Its page marks the skb, unless the page has a mapping."""
    host = Host(switches_of(preset), driver="frag")
    page = machine_of(preset).node.zone.pages[0]
    page.pfmemalloc = True
    page.mapping = Vma(Task("user"), 1) if mapped else None
    pages = host.skb_memory.frag_pages
    skb = host.skb_memory.alloc_skb(100, GFP_ATOMIC, host.softirq)
    assert pages is not None
    assert skb is not None
    assert not skb.pfmemalloc
    host.skb_memory.skb_fill_page_desc(skb, PageFrag(pages, [page], 1))
    assert skb.pfmemalloc == marked


@series
def test_a_clone_of_an_skb_in_the_reserve(preset: str) -> None:
    host = host_of(preset)
    skb = host.device.ring.popleft()
    heads = host.skb_memory.skbuff_head_cache
    while heads.inuse < heads.nr_slabs * heads.objects_per_slab:
        heads.alloc(GFP_ATOMIC, host.softirq)
    host.machine.drain(10)
    clone = host.skb_memory.skb_clone(skb, GFP_ATOMIC, host.softirq)
    assert clone is not None
    assert clone.pfmemalloc
