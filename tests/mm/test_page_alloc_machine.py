"""The page allocator under random requests: no page has two owners, none is lost, nobody goes too low."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from testbed.mm.gfp import (
    ALLOC_NO_WATERMARKS,
    ALLOC_OOM,
    GFP_ATOMIC,
    GFP_DMA,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_MEMALLOC,
    GFP_NOMEMALLOC,
    gfp_pfmemalloc_allowed,
    gfp_to_alloc_flags,
)
from testbed.mm.mempolicy import Mempolicy
from testbed.mm.page import Page
from testbed.mm.per_cpu_pages import PerCpuPages
from testbed.mm.sched import Task
from testbed.mm.zone import Zone, lowered_mark
from testbed.mm.zone_layout import ZoneType
from testbed.patches import Switches
from testbed.rules import LINUX_6_1
from tests.mm.machine import SERIES
from tests.mm.zones import DMA, HIGHMEM, NORMAL, allocator

GFP = st.sampled_from(
    [
        GFP_KERNEL,
        GFP_HIGHUSER_MOVABLE,
        GFP_ATOMIC,
        GFP_ATOMIC | GFP_MEMALLOC,
        GFP_ATOMIC | GFP_NOMEMALLOC,
        GFP_KERNEL | GFP_DMA,
    ]
)
POLICIES = st.sampled_from(
    [None, None, Mempolicy("bind", [1]), Mempolicy("preferred", [1]), Mempolicy("interleave", [0, 1])]
)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    task = Task("task", pf_memalloc=draw(st.booleans()))
    task.memdie, task.node, task.mempolicy = draw(st.booleans()), draw(st.integers(0, 1)), draw(POLICIES)
    task.serving_softirq = draw(st.booleans())
    return task


class PageAllocMachine(RuleBasedStateMachine):
    switches = SERIES
    per_cpu = 2048

    def __init__(self) -> None:
        super().__init__()
        zones = ((DMA, 0, 64), (NORMAL, 0, 192), (HIGHMEM, 0, 128), (NORMAL, 1, 192), (HIGHMEM, 1, 64))
        self.page_alloc = allocator(*zones, switches=self.switches, min_free_kbytes=192)
        for zone in self.page_alloc.zones:
            zone.pcp = PerCpuPages(self.per_cpu, self.switches.rules)
        self.blocks: list[list[Page]] = []

    def free_by_zone(self) -> dict[Zone, int]:
        return {zone: zone.nr_free_pages for zone in self.page_alloc.zones}

    def refused(self, gfp_mask: int, task: Task, before: dict[Zone, int]) -> Iterator[Zone]:
        """Zones that had no page for this caller, not even with all that it may ask for."""
        flags = gfp_to_alloc_flags(gfp_mask, task, self.switches)
        if flags & ALLOC_NO_WATERMARKS:
            return
        classzone = self.page_alloc.zonelists.of(gfp_mask, task).classzone
        for zone, free in before.items():
            lowest = lowered_mark(zone.watermarks.min, flags & ~ALLOC_OOM, self.switches.rules)
            if flags & ALLOC_OOM:
                lowest = min(lowest, lowered_mark(zone.watermarks.min, ALLOC_OOM, self.switches.rules))
            if free <= lowest + zone.lowmem_reserve[classzone]:
                yield zone

    def check(self, pages: list[Page], gfp_mask: int, task: Task) -> None:
        limit = self.page_alloc.zonelists.gfp_zone(gfp_mask)
        assert all(page.zone.span.kind <= limit for page in pages)
        bound = task.mempolicy is not None and task.mempolicy.mode == "bind" and not task.in_interrupt
        if bound and limit == ZoneType.HIGHMEM and not any(page.from_reserve for page in pages):
            assert all(page.zone.span.node == 1 for page in pages)
        if not gfp_pfmemalloc_allowed(gfp_mask, task, self.switches):
            assert not any(page.pfmemalloc or page.from_reserve for page in pages)

    @rule(order=st.integers(0, 5), gfp_mask=GFP, task=tasks())
    def take_block(self, order: int, gfp_mask: int, task: Task) -> None:
        before = self.free_by_zone()
        refused = set(self.refused(gfp_mask, task, before))
        block = self.page_alloc.alloc_order_nowait(order, gfp_mask, task)
        if block is None:
            return
        assert len(block) == 1 << order
        assert [page.pfn for page in block] == list(range(block[0].pfn, block[0].pfn + len(block)))
        assert block[0].pfn % len(block) == 0
        assert block[0].zone not in refused
        assert len({(page.pfmemalloc, page.from_reserve, page.zone) for page in block}) == 1
        self.check(block, gfp_mask, task)
        self.blocks.append(block)

    @rule(count=st.integers(1, 40), gfp_mask=GFP, task=tasks())
    def take_many(self, count: int, gfp_mask: int, task: Task) -> None:
        refused = set(self.refused(gfp_mask, task, self.free_by_zone()))
        pages = self.page_alloc.alloc_pages_nowait(count, gfp_mask, task)
        assert not refused & {page.zone for page in pages}
        self.check(pages, gfp_mask, task)
        self.blocks += [[page] for page in pages]

    @rule(data=st.data(), count=st.integers(1, 60))
    def give_back(self, data: st.DataObject, count: int) -> None:
        singles: list[Page] = []
        for _ in range(min(count, len(self.blocks))):
            block = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
            if len(block) == 1:
                singles += block
            else:
                self.page_alloc.free_order(block)
        self.page_alloc.free_pages(singles)

    @rule()
    def drain(self) -> None:
        self.page_alloc.drain_all_pages()
        assert not any(zone.pcp.pages for zone in self.page_alloc.zones)

    @invariant()
    def every_page_has_one_owner(self) -> None:
        held = [page for block in self.blocks for page in block]
        for zone in self.page_alloc.zones:
            mine = [page for page in held if page.zone is zone]
            everywhere = [*zone.free, *zone.pcp.pages, *mine]
            assert sorted(page.pfn for page in everywhere) == [page.pfn for page in zone.pages]
            assert len(zone.pcp.pages) <= max(zone.pcp.high, zone.pcp.batch)
            assert not any(page.pfmemalloc or page.from_reserve for page in (*zone.free, *zone.pcp.pages))
        vmstat = self.page_alloc.vmstat
        assert vmstat.pgalloc - vmstat.pgfree == len(held)

    def teardown(self) -> None:
        for block in self.blocks:
            self.page_alloc.free_order(block)
        self.page_alloc.drain_all_pages()
        for zone in self.page_alloc.zones:
            blocks = zone.free.counts()
            assert sum(count << order for order, count in enumerate(blocks)) == zone.managed
            assert sum(blocks) <= 3


class TodaysPageAllocMachine(PageAllocMachine):
    """The rules of 6.1, and longer per-cpu lists."""

    switches = Switches(rules=LINUX_6_1)
    per_cpu = 32768


PROFILE = settings(max_examples=50, stateful_step_count=40)
TestPageAlloc = PageAllocMachine.TestCase
TestPageAlloc.settings = PROFILE
TestTodaysPageAlloc = TodaysPageAllocMachine.TestCase
TestTodaysPageAlloc.settings = PROFILE
