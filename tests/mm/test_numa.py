"""Two memory nodes: where requests go, what policies change, and what patch 06 makes of policies in the reserve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.mm.gfp import GFP_ATOMIC, GFP_HIGHUSER_MOVABLE, GFP_KERNEL, GFP_MEMALLOC
from testbed.mm.mempolicy import Mempolicy, mpol_parse_str
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.patches import Switches
from testbed.rules import LINUX_3_6, LINUX_6_1, V9, Rules
from tests.mm.machine import SERIES, Machine, without
from tests.mm.zones import DMA, DMA32, NORMAL, allocator, drain

ZONES = ((DMA, 0, 512), (DMA32, 0, 1024), (DMA32, 1, 512), (NORMAL, 1, 1024))
TWO = ((NORMAL, 0, 1024), (NORMAL, 1, 1024))


def task(node: int = 0, policy: Mempolicy | None = None, *, pf_memalloc: bool = False) -> Task:
    task = Task("task", pf_memalloc=pf_memalloc)
    task.node, task.mempolicy = node, policy
    return task


def nodes_of(pages: list[Page]) -> set[int]:
    return {page.zone.span.node for page in pages}


@pytest.mark.parametrize(
    ("node", "expected"),
    [(0, [(DMA32, 0), (DMA, 0), (NORMAL, 1), (DMA32, 1)]), (1, [(NORMAL, 1), (DMA32, 1), (DMA32, 0), (DMA, 0)])],
)
def test_a_zonelist_has_the_nodes_own_zones_first(node: int, expected: list[object]) -> None:
    zonelist = allocator(*ZONES).zonelists.of(GFP_KERNEL, task(node))
    assert [(zone.span.kind, zone.span.node) for zone in zonelist.zones] == expected


@pytest.mark.parametrize("node", [0, 1])
def test_without_a_policy_a_task_gets_near_memory_until_it_is_low(node: int) -> None:
    page_alloc = allocator(*TWO)
    pages = page_alloc.alloc_pages_nowait(1500, GFP_KERNEL, task(node))
    near = [page for page in pages if page.zone.span.node == node]
    assert pages[: len(near)] == near
    assert page_alloc.zones[node].nr_free_pages == page_alloc.zones[node].watermarks.low
    assert page_alloc.zones[1 - node].nr_free_pages == 2048 - 1500 - page_alloc.zones[node].watermarks.low


def test_bind_allows_no_other_node() -> None:
    page_alloc = allocator(*TWO)
    bound = task(0, Mempolicy("bind", [1]))
    pages = page_alloc.alloc_pages_nowait(2000, GFP_HIGHUSER_MOVABLE, bound)
    assert nodes_of(pages) == {1}
    assert page_alloc.zones[0].nr_free_pages == 1024
    assert page_alloc.zones[1].nr_free_pages == page_alloc.zones[1].watermarks.min


def test_bind_does_not_hold_for_requests_below_the_highest_zone_nor_for_interrupts() -> None:
    page_alloc = allocator((DMA, 0, 1024), (NORMAL, 0, 1024), (NORMAL, 1, 1024))
    bound = task(0, Mempolicy("bind", [1]))
    assert nodes_of([*page_alloc.alloc_pages_nowait(1, GFP_KERNEL, bound)]) == {1}
    assert nodes_of([*page_alloc.alloc_pages_nowait(1, GFP_KERNEL | 0x01, bound)]) == {0}
    bound.serving_softirq = True
    assert nodes_of([*page_alloc.alloc_pages_nowait(1, GFP_ATOMIC, bound)]) == {0}


def test_preferred_begins_there_and_goes_on_elsewhere() -> None:
    page_alloc = allocator(*TWO)
    pages = page_alloc.alloc_pages_nowait(1500, GFP_KERNEL, task(0, Mempolicy("preferred", [1])))
    assert [page.zone.span.node for page in (pages[0], pages[-1])] == [1, 0]


def test_interleave_takes_turns() -> None:
    page_alloc = allocator(*TWO)
    current = task(0, Mempolicy("interleave", [0, 1]))
    pages = [page_alloc.alloc_page_nowait(GFP_HIGHUSER_MOVABLE, current) for _ in range(6)]
    assert [page.zone.span.node for page in pages if page is not None] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("bind:1", Mempolicy("bind", [1])),
        ("prefer:0", Mempolicy("preferred", [0])),
        ("interleave:0,1", Mempolicy("interleave", [0, 1])),
    ],
)
def test_a_policy_in_the_words_of_mpol(text: str, policy: Mempolicy) -> None:
    assert mpol_parse_str(text) == policy


@pytest.mark.parametrize(
    "text", ["", "local", "preferred:1", "bind", "bind:", "bind:a", "bind:-1", "prefer:0,1", "bind:1,"]
)
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(ValueError, match=r"memory policy|names no nodes|prefers several"):
        mpol_parse_str(text)


def test_a_policy_needs_a_node() -> None:
    with pytest.raises(ValueError, match="needs a node"):
        Mempolicy("bind", [])


def short_of_memory(rules: Rules, *, patch_06: bool, free: tuple[int, int]) -> PageAllocator:
    page_alloc = allocator(*TWO, switches=replace(SERIES, ignore_mempolicies=patch_06, rules=rules))
    for zone, left in zip(page_alloc.zones, free, strict=True):
        drain(zone, left)
    return page_alloc


@pytest.mark.parametrize(
    ("rules", "patch_06", "node"), [(LINUX_6_1, True, 0), (LINUX_6_1, False, None), (V9, True, None), (V9, False, None)]
)
def test_bound_to_a_node_that_is_empty(rules: Rules, patch_06: bool, node: int | None) -> None:
    """Patch 06 was meant to help here; until 4.19 the nodemask of the policy still kept the request out."""
    page_alloc = short_of_memory(rules, patch_06=patch_06, free=(50, 0))
    page = page_alloc.alloc_page_nowait(GFP_KERNEL, task(0, Mempolicy("bind", [1]), pf_memalloc=True))
    assert (None if page is None else page.zone.span.node) == node
    if node is not None:
        assert page is not None
        assert page.pfmemalloc


@pytest.mark.parametrize(("patch_06", "node", "counters"), [(True, 0, (1, 0)), (False, 1, (0, 1))])
@pytest.mark.parametrize("rules", [V9, LINUX_3_6, LINUX_6_1])
@pytest.mark.parametrize("bulk", [True, False])
def test_the_reserve_near_the_cpu_comes_before_the_preferred_nodes(
    rules: Rules, patch_06: bool, node: int, counters: tuple[int, int], bulk: bool
) -> None:
    page_alloc = short_of_memory(rules, patch_06=patch_06, free=(50, 50))
    current = task(0, Mempolicy("preferred", [1]), pf_memalloc=True)
    if bulk:
        (page,) = page_alloc.alloc_pages_nowait(1, GFP_KERNEL, current)
    else:
        page, *_ = page_alloc.alloc_order_nowait(0, GFP_KERNEL, current) or []
    assert page.zone.span.node == node
    assert (page_alloc.vmstat.mempolicy_ignored, page_alloc.vmstat.mempolicy_kept) == counters


@pytest.mark.parametrize("switches", [SERIES, without(ignore_mempolicies=False)])
def test_patch_06_has_no_occasion_without_a_policy_or_on_one_node(switches: Switches) -> None:
    for zones, policy in ((TWO, None), (((NORMAL, 0, 2048),), Mempolicy("preferred", [0]))):
        page_alloc = allocator(*zones, switches=switches)
        for zone in page_alloc.zones:
            drain(zone, 10)
        assert page_alloc.alloc_page_nowait(GFP_ATOMIC | GFP_MEMALLOC, task(0, policy)) is not None
        assert (page_alloc.vmstat.mempolicy_ignored, page_alloc.vmstat.mempolicy_kept) == (0, 0)


def test_a_node_with_two_memory_nodes_gives_every_page_back() -> None:
    machine = Machine(4096, zones="x86_64", nodes=2)
    page_alloc = machine.node.page_alloc
    pages = page_alloc.alloc_pages_nowait(3000, GFP_HIGHUSER_MOVABLE, Task("user"))
    assert nodes_of(pages) == {0, 1}
    page_alloc.free_pages(pages)
    assert machine.node.pages_leaked() == 0
