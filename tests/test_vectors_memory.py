"""What each kernel does with one number more: watermarks, floors, masks, slabs, readahead, slots. All by hand."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.hosts.request_list import RequestList
from testbed.mm.array_cache import cache_estimate
from testbed.mm.backing_dev import BackingDev
from testbed.mm.gfp import (
    GFP_ATOMIC,
    GFP_DMA,
    GFP_HIGH,
    GFP_KERNEL,
    GFP_MEMALLOC,
    GFP_NOFAIL,
    GFP_NOFS,
    GFP_NOIO,
    GFP_NOMEMALLOC,
    GFP_NORETRY,
    GFP_REPEAT,
    GFP_WAIT,
    gfp_to_alloc_flags,
)
from testbed.mm.lruvec import Lruvec
from testbed.mm.per_cpu_pages import zone_batchsize
from testbed.mm.pgdat import Pgdat
from testbed.mm.readahead import SwapReadaheadInfo
from testbed.mm.sched import Task
from testbed.mm.slab import KmemCache
from testbed.mm.slub import KmemCache as SlubCache
from testbed.mm.swapfile import SwapInfo
from testbed.mm.throttle import Throttle
from testbed.mm.vmstat import VmStat
from testbed.mm.watermarks import PAGE_SIZE, Watermarks, compute, setup_per_zone_wmarks
from testbed.mm.zone import Zone
from testbed.mm.zone_layout import ZoneType, lowmem_reserve, zone_spans
from testbed.patches import PRESETS, Switches
from tests.mm.machine import Machine, machine_64m, without
from tests.mm.zones import DMA, DMA32, HIGHMEM, NORMAL, allocator, drain, spans_of
from tests.virtual_time import is_blocked, simulate

MIB = 256
"""Pages."""
NOWAIT = 0


def switches_of(preset: str) -> Switches:
    return Switches.of(PRESETS[preset].patches, PRESETS[preset].rules)


# --- watermarks ---


@pytest.mark.parametrize(
    ("mib", "old", "today"),
    [
        (16, (512, 128, 160, 192), (512, 128, 160, 192)),
        (96, (1254, 313, 391, 469), (1254, 313, 391, 469)),
        (3 << 10, (7094, 1773, 2216, 2659), (7094, 1773, 2559, 3345)),
        (8 << 10, (11585, 2896, 3620, 4344), (11585, 2896, 4993, 7090)),
        (64 << 10, (32768, 8192, 10240, 12288), (32768, 8192, 24969, 41746)),
        (512 << 10, (65536, 16384, 20480, 24576), (92681, 23170, 157387, 291604)),
    ],
)
@pytest.mark.parametrize("preset", ["v9", "3.6", "6.1"])
def test_watermarks_of_other_machines(
    preset: str, mib: int, old: tuple[int, int, int, int], today: tuple[int, int, int, int]
) -> None:
    marks = compute(mib * MIB, rules=PRESETS[preset].rules)
    expected = today if preset == "6.1" else old
    assert (marks.min_free_kbytes, marks.min, marks.low, marks.high) == expected


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("3.6", [(11, 13, 16), (1436, 1795, 2154)]), ("6.1", [(11, 14, 17), (1436, 1955, 2474)])],
)
def test_a_2_gib_machine_with_two_zones(preset: str, expected: list[tuple[int, int, int]]) -> None:
    marks = setup_per_zone_wmarks(spans_of((DMA, 0, 3976), (DMA32, 0, 519000)), 5792, PRESETS[preset].rules)
    assert [(mark.min, mark.low, mark.high) for mark in marks] == expected


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("3.6", [(23, 28, 34), (1000, 1250, 1500), (128, 378, 628)]),
        ("6.1", [(23, 28, 33), (1000, 1250, 1500), (128, 378, 628)]),
    ],
)
def test_high_memory_has_its_own_min_and_the_gaps_of_its_share(
    preset: str, expected: list[tuple[int, int, int]]
) -> None:
    """Its min is 1/1024 of it, at most 128; low and high stand off by what its share of min_free_kbytes would be."""
    zones = spans_of((DMA, 0, 5120), (NORMAL, 0, 220000), (HIGHMEM, 0, 220000))
    marks = setup_per_zone_wmarks(zones, 4096, PRESETS[preset].rules)
    assert [(mark.min, mark.low, mark.high) for mark in marks] == expected


@pytest.mark.parametrize(
    ("layout", "mib", "reserves"),
    [
        ("x86_64", 2048, {DMA: (0, 2032, 2032, 2032), DMA32: (0, 0, 0, 0)}),
        ("x86_64", 8192, {DMA: (0, 4080, 8176, 8176), DMA32: (0, 0, 4096, 4096), NORMAL: (0, 0, 0, 0)}),
        ("i386", 2048, {DMA: (0, 0, 880, 2032), NORMAL: (0, 0, 0, 9216), HIGHMEM: (0, 0, 0, 0)}),
        ("normal", 64, {NORMAL: (0, 0, 0, 0)}),
    ],
)
def test_lowmem_reserve(layout: str, mib: int, reserves: dict[ZoneType, tuple[int, ...]]) -> None:
    spans = zone_spans(mib * MIB, layout)
    assert {span.kind: lowmem_reserve(span, spans) for span in spans} == reserves


BLOCKS = [
    # order asked for, mark, free blocks by order, 3.6, 6.1
    (1, 256, (250, 0, 0, 20), True, True),
    (1, 256, (281, 0, 0, 16), False, True),
    (2, 256, (100, 50, 0, 25), True, True),
    (2, 256, (200, 70, 0, 8), False, True),
    (2, 256, (0, 130, 0, 0), False, False),
    (2, 256, (130, 67, 0, 0), False, False),
    (3, 256, (0, 0, 65, 0), False, False),
    (3, 256, (0, 0, 60, 5), True, True),
    (3, 256, (0, 0, 61, 4), False, True),
]


@pytest.mark.parametrize(("order", "mark", "blocks", "old", "today"), BLOCKS)
@pytest.mark.parametrize("preset", ["3.6", "6.1"])
def test_a_block_among_other_blocks(
    *, preset: str, order: int, mark: int, blocks: tuple[int, ...], old: bool, today: bool
) -> None:
    zone = Zone(memoryview(bytearray(4096 * PAGE_SIZE)), Watermarks(0, mark, mark, mark), rules=PRESETS[preset].rules)
    zone.free.take(4096)
    start = 0
    for size, count in enumerate(blocks):
        for _ in range(count):
            zone.free.give_block(start, size)
            start += 2 << size
    assert zone.free.counts()[:4] == list(blocks)
    assert zone.watermark_ok(order, NORMAL, 0) == (today if preset == "6.1" else old)


# --- masks and floors ---

MASKS = [
    # gfp mask, context, 3.6, 6.1
    (GFP_KERNEL, {}, 0x40, 0x40),
    (GFP_NOIO, {}, 0x40, 0x40),
    (GFP_HIGH | GFP_WAIT, {}, 0x60, 0x60),
    (NOWAIT, {}, 0x10, 0x50),
    (GFP_NOMEMALLOC, {}, 0x00, 0x40),
    (GFP_ATOMIC, {}, 0x30, 0x30),
    (GFP_ATOMIC | GFP_NOMEMALLOC, {}, 0x20, 0x20),
    (GFP_ATOMIC | GFP_MEMALLOC, {}, 0x34, 0x34),
    (GFP_ATOMIC | GFP_MEMALLOC | GFP_NOMEMALLOC, {"pf_memalloc": True}, 0x20, 0x20),
    (GFP_ATOMIC, {"pf_memalloc": True, "serving_softirq": True}, 0x34, 0x34),
    (GFP_ATOMIC, {"pf_memalloc": True, "hardirq": True}, 0x30, 0x30),
    (GFP_ATOMIC, {"pf_memalloc": True, "bh_disabled": True}, 0x30, 0x30),
    (GFP_KERNEL, {"memdie": True}, 0x44, 0x48),
    (GFP_KERNEL, {"memdie": True, "pf_memalloc": True}, 0x44, 0x44),
    (GFP_KERNEL, {"rt_task": True}, 0x50, 0x60),
    (GFP_KERNEL, {"rt_task": True, "bh_disabled": True}, 0x40, 0x60),
    (GFP_KERNEL, {"rt_task": True, "serving_softirq": True}, 0x40, 0x40),
    (GFP_ATOMIC, {"rt_task": True}, 0x30, 0x30),
]


def task_with(context: dict[str, bool]) -> Task:
    task = Task("any")
    for name, value in context.items():
        setattr(task, name, value)
    return task


@pytest.mark.parametrize(("gfp_mask", "context", "old", "today"), MASKS)
def test_gfp_to_alloc_flags(gfp_mask: int, context: dict[str, bool], old: int, today: int) -> None:
    task = task_with(context)
    assert [gfp_to_alloc_flags(gfp_mask, task, switches_of(preset)) for preset in ("v9", "3.6", "6.1")] == [
        old,
        old,
        today,
    ]


FLOORS = [
    # gfp mask, context, the fewest free pages with which it succeeds (min 256): vanilla, 3.6, 6.1
    (GFP_KERNEL, {}, 257, 257, 257),
    (NOWAIT, {}, 193, 193, 257),
    (GFP_ATOMIC, {}, 97, 97, 97),
    (GFP_ATOMIC | GFP_NOMEMALLOC, {}, 129, 129, 129),
    (GFP_ATOMIC | GFP_MEMALLOC, {}, 97, 1, 1),
    (GFP_ATOMIC | GFP_MEMALLOC | GFP_NOMEMALLOC, {}, 129, 129, 129),
    (GFP_KERNEL, {"pf_memalloc": True}, 1, 1, 1),
    (GFP_KERNEL | GFP_NOMEMALLOC, {"pf_memalloc": True}, 257, 257, 257),
    (GFP_ATOMIC, {"pf_memalloc": True, "serving_softirq": True}, 97, 1, 1),
    (GFP_ATOMIC, {"pf_memalloc": True, "bh_disabled": True}, 97, 97, 97),
    (GFP_KERNEL, {"memdie": True}, 1, 1, 129),
    (GFP_ATOMIC, {"memdie": True}, 1, 1, 97),
    (GFP_KERNEL, {"rt_task": True}, 193, 193, 129),
]


@pytest.mark.parametrize(("gfp_mask", "context", "vanilla", "old", "today"), FLOORS)
def test_how_far_down_a_request_goes(
    gfp_mask: int, context: dict[str, bool], vanilla: int, old: int, today: int
) -> None:
    for preset, floor in (("vanilla", vanilla), ("v9", old), ("3.6", old), ("6.1", today)):
        page_alloc = allocator((NORMAL, 0, 1024), switches=switches_of(preset))
        drain(page_alloc.zone, floor)
        assert page_alloc.alloc_page_nowait(gfp_mask, task_with(context)) is not None, preset
        page_alloc.drain_all_pages()
        assert page_alloc.alloc_page_nowait(gfp_mask, task_with(context)) is None, preset


@pytest.mark.parametrize(("preset", "marked"), [("vanilla", False), ("v9", True), ("3.6", True), ("6.1", False)])
def test_the_page_of_an_oom_victim(preset: str, marked: bool) -> None:
    """ALLOC_OOM is no mark."""
    page_alloc = allocator((NORMAL, 0, 1024), switches=switches_of(preset))
    drain(page_alloc.zone, 200)
    page = page_alloc.alloc_page_nowait(GFP_KERNEL, task_with({"memdie": True}))
    assert page is not None
    assert page.pfmemalloc == marked


RETRIES = [
    # gfp mask, order, does it come back, is the OOM killer called
    (GFP_KERNEL, 0, False, True),
    (GFP_KERNEL, 3, False, True),
    (GFP_KERNEL, 4, True, False),
    (GFP_NOIO, 0, False, False),
    (GFP_NOIO, 3, False, False),
    (GFP_NOIO, 4, True, False),
    (GFP_NOFS, 1, False, False),
    (GFP_NOFS, 4, True, False),
    (GFP_KERNEL | GFP_NORETRY, 0, True, False),
    (GFP_NOIO | GFP_NORETRY, 0, True, False),
    (GFP_KERNEL | GFP_NOFAIL, 4, False, True),
    (GFP_NOIO | GFP_NOFAIL, 4, False, False),
    (GFP_NOIO | GFP_REPEAT, 4, False, False),
    (GFP_ATOMIC, 0, True, False),
    (GFP_ATOMIC | GFP_MEMALLOC, 0, True, False),
]


@pytest.mark.parametrize(("gfp_mask", "order", "returns", "kills"), RETRIES)
@pytest.mark.parametrize("preset", ["v9", "3.6", "6.1"])
def test_who_gives_up_where_nothing_can_be_reclaimed(
    preset: str, gfp_mask: int, order: int, returns: bool, kills: bool
) -> None:
    async def main() -> None:
        page_alloc = allocator((NORMAL, 0, 1024), switches=switches_of(preset))
        drain(page_alloc.zone, 0)
        killed: list[Task] = []
        page_alloc.out_of_memory = killed.append
        request = asyncio.create_task(page_alloc.alloc_order(order, gfp_mask, Task("user")))
        assert await is_blocked(request, 30) == (not returns)
        assert bool(killed) == kills
        request.cancel()

    simulate(main())


def test_nobody_is_killed_for_the_lowest_zones() -> None:
    async def main() -> None:
        page_alloc = allocator((DMA, 0, 512), (NORMAL, 0, 1024))
        drain(page_alloc.zones[0], 0)
        killed: list[Task] = []
        page_alloc.out_of_memory = killed.append
        request = asyncio.create_task(page_alloc.alloc_page(GFP_KERNEL | GFP_DMA, Task("user")))
        assert await is_blocked(request, 10)
        assert not killed
        request.cancel()

    simulate(main())


@pytest.mark.parametrize(
    ("mib", "batch", "today"),
    [(4, 0, 0), (16, 0, 0), (64, 3, 3), (128, 7, 7), (512, 31, 31), (1024, 31, 63), (4096, 31, 63)],
)
def test_batches_of_the_per_cpu_list(mib: int, batch: int, today: int) -> None:
    assert zone_batchsize(mib * MIB, PRESETS["3.6"].rules) == batch
    assert zone_batchsize(mib * MIB, PRESETS["6.1"].rules) == today


# --- throttling and lists ---


@pytest.mark.parametrize(("free", "ok"), [((11, 712), False), ((12, 712), True), ((0, 723), False), ((0, 724), True)])
@pytest.mark.parametrize("preset", ["v9", "3.6", "6.1"])
def test_half_of_an_odd_reserve(preset: str, free: tuple[int, int], ok: bool) -> None:
    """A reserve of 11 and 1436 pages: half of 1447 is 723, and that is not enough."""
    page_alloc = allocator((DMA, 0, 256), (DMA32, 0, 2048), switches=switches_of(preset))
    for zone, mark, left in zip(page_alloc.zones, (11, 1436), free, strict=True):
        zone.set_watermarks(Watermarks(5792, mark, mark, mark))
        zone.file[drain(zone, left)[0]] = None
    pgdat = Pgdat(page_alloc.zones, SwapInfo(64), page_alloc.switches.rules)
    assert Throttle(page_alloc, pgdat).pfmemalloc_watermark_ok() == ok


@pytest.mark.parametrize(("mib", "ratio"), [(512, 1), (1023, 1), (1024, 3), (2048, 4), (4096, 6), (8192, 8)])
def test_how_many_active_pages_go_with_an_inactive_one(mib: int, ratio: int) -> None:
    zone: Any = SimpleNamespace(managed=mib * MIB)
    assert Lruvec(zone).inactive_ratio == ratio


# --- slab allocators ---

PLAIN = Task("plain")
MEMALLOC = GFP_ATOMIC | GFP_MEMALLOC
SERIES, CALLED, NO_02 = Switches(), without(slab_inline=False), without(slab_pfmemalloc=False)

ARRAYS = [
    # tags from the bottom, switches, memalloc sockets, mask, the object got (None: none), tags left
    ("01", SERIES, 1, GFP_ATOMIC, 0, "1"),
    ("10", SERIES, 1, GFP_ATOMIC, 1, "1"),
    ("011", SERIES, 1, GFP_ATOMIC, 0, "11"),
    ("101", SERIES, 1, GFP_ATOMIC, 1, "11"),
    ("0101", SERIES, 1, GFP_ATOMIC, 0, "110"),
    ("01", SERIES, 1, MEMALLOC, 1, "0"),
    ("01", SERIES, 1, MEMALLOC | GFP_NOMEMALLOC, 0, "1"),
    ("11", SERIES, 1, GFP_ATOMIC, None, "11"),
    ("11", SERIES, 1, MEMALLOC, 1, "1"),
    ("01", SERIES, 0, GFP_ATOMIC, 1, "0"),
    ("01", CALLED, 0, GFP_ATOMIC, 0, "1"),
    ("11", CALLED, 0, GFP_ATOMIC, None, "11"),
]


@pytest.mark.parametrize(("tags", "switches", "socks", "gfp_mask", "got", "left"), ARRAYS)
def test_which_object_of_slabs_array_a_caller_gets(
    *, tags: str, switches: Switches, socks: int, gfp_mask: int, got: int | None, left: str
) -> None:
    """`ac_get_obj`: memory is short, so that the cache cannot grow."""
    machine = Machine(switches=switches, slab="slab")
    machine.memalloc_socks = socks
    cache = machine.node.kmem_cache_create("test", PAGE_SIZE)
    assert isinstance(cache, KmemCache)
    objects = [cache.alloc(GFP_ATOMIC, PLAIN) for _ in tags]
    for slab, tag in zip(objects, tags, strict=True):
        assert slab is not None
        slab.pfmemalloc = tag == "1"
        cache.array.push([slab], bytes([slab.pfmemalloc]))
    cache.nr_pfmemalloc = tags.count("1")
    machine.drain(10)
    taken = cache.alloc(gfp_mask, PLAIN)
    assert taken is (None if got is None else objects[got])
    assert cache.array.tags == bytes(map(int, left))


@pytest.mark.parametrize(
    ("size", "objects"), [(64, 59), (108, 36), (128, 30), (256, 15), (512, 8), (1024, 4), (4096, 1)]
)
def test_the_mark_is_the_pages_so_a_slab_holds_as_many_objects_as_before(size: int, objects: int) -> None:
    """V9: a page flag instead of a field of `struct slab`, whose 48 bytes stay 48."""
    assert cache_estimate(size) == objects
    for switches in (SERIES, NO_02):
        assert Machine(switches=switches, slab="slab").node.kmem_cache_create("x", size).objects_per_slab == objects


LEAKS = [
    # switches, mask of the second caller, is its object in the reserve, objects leaked, fast paths refused
    (SERIES, GFP_ATOMIC, True, 1, 0),
    (SERIES, MEMALLOC, True, 0, 0),
    (SERIES, MEMALLOC | GFP_NOMEMALLOC, True, 1, 0),
    (without(slub_unchecked_fast_path=False), GFP_ATOMIC, False, 0, 1),
    (without(slub_unchecked_fast_path=False), MEMALLOC, True, 0, 0),
    (NO_02, GFP_ATOMIC, True, 0, 0),
    (switches_of("3.6"), GFP_ATOMIC, True, 1, 0),
    (switches_of("6.1"), GFP_ATOMIC, True, 1, 0),
]


@pytest.mark.parametrize(("switches", "gfp_mask", "reserve", "leaked", "refused"), LEAKS)
def test_the_cpu_slab_that_an_entitled_caller_left(
    switches: Switches, gfp_mask: int, reserve: bool, leaked: int, refused: int
) -> None:
    """SLUB, a slab of four objects of which three are left; memory is not short any more."""
    machine = machine_64m(switches)
    cache = machine.node.kmem_cache_create("test", 1024)
    assert isinstance(cache, SlubCache)
    machine.drain(10)
    first = cache.alloc(MEMALLOC, PLAIN)
    machine.give_back()
    assert first is not None
    assert first.page.pfmemalloc == switches.slab_pfmemalloc
    assert (cache.alloc(gfp_mask, PLAIN) is first) == reserve
    vmstat = machine.node.vmstat
    assert (vmstat.slab_pfmemalloc_leaked, vmstat.slab_fast_path_refused) == (leaked, refused)


# --- swap ---


@pytest.mark.parametrize(
    "faults",
    [
        # (page that faults, hits since the last fault, the page last found there, pages read)
        [(0, 0, 0, range(5)), (5, 4, 4, range(5, 13)), (13, 7, 12, range(13, 21)), (21, 7, 20, range(21, 29))],
        [(63, 0, 0, range(60, 64)), (59, 3, 60, range(52, 60)), (51, 7, 52, range(44, 52))],
        [(30, 0, 0, range(27, 35)), (8, 0, 30, range(7, 11)), (50, 0, 8, range(50, 52)), (20, 0, 50, range(20, 21))],
        [(30, 0, 0, range(27, 35)), (8, 1, 31, range(7, 11)), (50, 3, 9, range(47, 55)), (10, 0, 50, range(9, 13))],
        [(30, 0, 0, range(27, 35)), (31, 0, 30, range(31, 35)), (32, 0, 31, range(32, 34)), (33, 0, 32, range(33, 35))],
        [(30, 0, 0, range(27, 35)), (29, 0, 30, range(26, 30)), (28, 0, 29, range(27, 29)), (27, 0, 28, range(26, 28))],
    ],
    ids=["forwards", "backwards", "at random", "some hits", "forwards in vain", "backwards in vain"],
)
def test_windows_of_faults_one_after_the_other(faults: list[tuple[int, int, int, range]]) -> None:
    """6.1, a mapping of 64 pages: `swap_ra_info` and `__swapin_nr_pages`."""
    info = SwapReadaheadInfo()
    for index, hits, last, window in faults:
        for _ in range(hits):
            info.note_lookup(last, readahead=True)
        assert info.window(index, 64) == window


def test_slots_are_handed_out_cluster_by_cluster_and_then_wherever_one_is_free() -> None:
    swap = SwapInfo(1000)
    assert [swap.get_swap_page() for _ in range(256)] == list(range(1, 257))
    swap.swapcache_free(5)
    assert [swap.get_swap_page() for _ in range(256)] == list(range(257, 513))
    for slot in range(1, 257):
        if slot != 5:
            swap.swapcache_free(slot)
    assert [swap.get_swap_page() for _ in range(256)] == list(range(513, 769))
    assert [swap.get_swap_page() for _ in range(256)] == list(range(1, 257)), "the only free run of 256"
    assert [swap.get_swap_page() for _ in range(232)] == [*range(769, 1000), 0], "no run of 256 left"


@pytest.mark.parametrize(
    ("slots", "used", "full"), [(100, 50, False), (100, 51, True), (101, 50, False), (101, 51, True)]
)
def test_swap_counts_as_full_beyond_half(slots: int, used: int, full: bool) -> None:
    swap = SwapInfo(slots + 1)
    for _ in range(used):
        swap.get_swap_page()
    assert swap.vm_swap_full() == full


@pytest.mark.parametrize(("nr_requests", "on", "off"), [(128, 113, 103), (64, 57, 51), (4, 4, 3)])
def test_when_a_queue_is_congested_and_when_no_more(nr_requests: int, on: int, off: int) -> None:
    """On from `on` writes, and off again below `off`; reads do not count."""

    async def main() -> None:
        requests = RequestList(nr_requests, shared=False)
        vmstat = VmStat()
        requests.bdi = BackingDev(vmstat)
        for _ in range(nr_requests):
            await requests.get_request(write=False, nice=0)
        congested = []
        for _ in range(nr_requests):
            await requests.get_request(write=True, nice=0)
            congested.append(vmstat.nr_bdi_congested)
        assert congested == [0] * (on - 1) + [1] * (nr_requests - on + 1)
        congested = []
        for _ in range(nr_requests):
            requests.freed_request(write=True)
            congested.append(vmstat.nr_bdi_congested)
        assert congested == [1] * (nr_requests - off) + [0] * off

    simulate(main())
