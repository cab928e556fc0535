"""Who may use the reserve: the truth table, with each patch's part of it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from testbed.mm.gfp import (
    ALLOC_CPUSET,
    ALLOC_HARDER,
    ALLOC_HIGH,
    ALLOC_NO_WATERMARKS,
    ALLOC_OOM,
    ALLOC_WMARK_MASK,
    ALLOC_WMARK_MIN,
    GFP_ATOMIC,
    GFP_KERNEL,
    GFP_MEMALLOC,
    GFP_NOIO,
    GFP_NOMEMALLOC,
    gfp_pfmemalloc_allowed,
    gfp_to_alloc_flags,
    reserve_flags,
)
from testbed.mm.sched import Task, do_softirq
from testbed.mm.zone import lowered_mark
from testbed.patches import Switches
from testbed.rules import LINUX_3_6, LINUX_6_1, V9, Rules
from tests.mm.machine import SERIES, VANILLA, only, without

P04 = only(gfp_memalloc=True)
P05 = only(softirq_pf_memalloc=True)
TASK, SOFTIRQ, HARDIRQ, BH_DISABLED = "task", "softirq", "hardirq", "bh_disabled"
CONTEXTS = (TASK, SOFTIRQ, HARDIRQ, BH_DISABLED)


def context(kind: str, pf_memalloc: bool = False, memdie: bool = False) -> Task:
    """Somebody who runs in a context of this kind."""
    task = Task(kind, pf_memalloc=pf_memalloc)
    task.memdie = memdie
    task.serving_softirq = kind == SOFTIRQ
    task.hardirq = kind == HARDIRQ
    task.bh_disabled = kind == BH_DISABLED
    return task


def allowed(gfp_mask: int, task: Task, switches: Switches) -> bool:
    return gfp_pfmemalloc_allowed(gfp_mask, task, switches)


EVERYBODY = [
    context(kind, pf_memalloc, memdie)
    for kind, pf_memalloc, memdie in itertools.product(CONTEXTS, (False, True), (False, True))
]
ALL_SWITCHES = [SERIES, VANILLA, P04, P05]


@pytest.mark.parametrize("switches", ALL_SWITCHES)
@pytest.mark.parametrize("gfp_mask", [GFP_NOMEMALLOC, GFP_NOMEMALLOC | GFP_MEMALLOC])
def test_nomemalloc_wins_over_everything(switches: Switches, gfp_mask: int) -> None:
    assert not any(allowed(gfp_mask, task, switches) for task in EVERYBODY)


@pytest.mark.parametrize("task", EVERYBODY, ids=lambda task: task.name)
def test_memalloc_is_enough_in_any_context(task: Task) -> None:
    assert allowed(GFP_MEMALLOC, task, SERIES)
    assert allowed(GFP_MEMALLOC, task, P04)


@pytest.mark.parametrize("switches", [VANILLA, P05])
@pytest.mark.parametrize("task", EVERYBODY, ids=lambda task: task.name)
def test_memalloc_means_nothing_without_patch_04(switches: Switches, task: Task) -> None:
    assert allowed(GFP_MEMALLOC, task, switches) == allowed(0, task, switches)


ROWS = [
    # context, PF_MEMALLOC, TIF_MEMDIE, whole series, all off
    (TASK, True, False, True, True),
    (TASK, True, True, True, True),
    (SOFTIRQ, True, False, True, False),
    (SOFTIRQ, True, True, True, False),
    (HARDIRQ, True, False, False, False),
    (HARDIRQ, True, True, False, False),
    (BH_DISABLED, True, False, False, False),
    (BH_DISABLED, True, True, False, False),
    (TASK, False, True, True, True),
    (SOFTIRQ, False, True, False, False),
    (HARDIRQ, False, True, False, False),
    (BH_DISABLED, False, True, False, False),
    (TASK, False, False, False, False),
    (SOFTIRQ, False, False, False, False),
    (HARDIRQ, False, False, False, False),
    (BH_DISABLED, False, False, False, False),
]


@pytest.mark.parametrize(("kind", "pf_memalloc", "memdie", "series", "vanilla"), ROWS)
def test_truth_table(kind: str, pf_memalloc: bool, memdie: bool, series: bool, vanilla: bool) -> None:
    task = context(kind, pf_memalloc, memdie)
    by_switches = {"series": SERIES, "vanilla": VANILLA, "04": P04, "05": P05}
    answers = {name: allowed(GFP_ATOMIC, task, switches) for name, switches in by_switches.items()}
    assert answers == {"series": series, "vanilla": vanilla, "04": vanilla, "05": series}


def test_a_hard_interrupt_over_a_softirq_handler_still_counts_as_serving() -> None:
    task = context(SOFTIRQ, pf_memalloc=True)
    task.hardirq = True
    assert allowed(0, task, SERIES)


P02 = only(slab_pfmemalloc=True)


@pytest.mark.parametrize("task", EVERYBODY, ids=lambda task: task.name)
@pytest.mark.parametrize("gfp_mask", [GFP_ATOMIC, GFP_NOMEMALLOC, GFP_MEMALLOC, GFP_MEMALLOC | GFP_NOMEMALLOC])
def test_patch_02_as_posted_asks_only_who_is_running(task: Task, gfp_mask: int) -> None:
    """But that is about marks: what lets a request below the watermarks is what it was without the patch."""
    assert allowed(gfp_mask, task, P02) == (task.pf_memalloc or task.memdie)
    assert reserve_flags(gfp_mask, task, P02) == reserve_flags(gfp_mask, task, VANILLA)
    for more in (replace(P02, gfp_memalloc=True), replace(P02, softirq_pf_memalloc=True)):
        assert allowed(gfp_mask, task, more) == bool(reserve_flags(gfp_mask, task, more))
    assert allowed(gfp_mask, task, replace(P02, rules=LINUX_3_6)) == allowed(gfp_mask, task, VANILLA)


@pytest.mark.parametrize(("rules", "expected"), [(V9, ALLOC_NO_WATERMARKS), (LINUX_6_1, ALLOC_OOM)])
def test_a_victim_gets_all_of_the_reserve_or_half(rules: Rules, expected: int) -> None:
    victim = context(TASK, memdie=True)
    switches = replace(SERIES, rules=rules)
    assert reserve_flags(GFP_KERNEL, victim, switches) == expected
    assert allowed(GFP_KERNEL, victim, switches)
    assert reserve_flags(GFP_KERNEL | GFP_MEMALLOC, victim, switches) == ALLOC_NO_WATERMARKS
    victim.pf_memalloc = True
    assert reserve_flags(GFP_KERNEL, victim, switches) == ALLOC_NO_WATERMARKS


@pytest.mark.parametrize(
    ("rules", "kind", "expected"),
    [
        (V9, TASK, ALLOC_HARDER),
        (V9, BH_DISABLED, 0),
        (V9, SOFTIRQ, 0),
        (V9, HARDIRQ, 0),
        (LINUX_6_1, TASK, ALLOC_HIGH),
        (LINUX_6_1, BH_DISABLED, ALLOC_HIGH),
        (LINUX_6_1, SOFTIRQ, 0),
        (LINUX_6_1, HARDIRQ, 0),
    ],
)
def test_a_real_time_task_goes_further_down_while_it_may_sleep(rules: Rules, kind: str, expected: int) -> None:
    """3.6 asks for `!in_interrupt()`, 6.1 for `in_task()`."""
    task = context(kind)
    task.rt_task = True
    flags = gfp_to_alloc_flags(GFP_KERNEL, task, replace(SERIES, rules=rules))
    assert flags & (ALLOC_HIGH | ALLOC_HARDER) == expected


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("handler", [False, True])
def test_a_softirq_neither_inherits_nor_leaks_pf_memalloc(before: bool, handler: bool) -> None:
    task = Task("interrupted", pf_memalloc=before)
    with do_softirq(task, softirq_pf_memalloc=True) as current:
        assert current.in_interrupt
        assert not allowed(0, current, SERIES)
        current.pf_memalloc = handler
        assert allowed(0, current, SERIES) == handler
    assert (task.pf_memalloc, task.in_interrupt) == (before, False)


def test_without_patch_05_a_softirq_leaves_its_flag_behind() -> None:
    task = Task("interrupted")
    with do_softirq(task, softirq_pf_memalloc=False) as current:
        current.pf_memalloc = True
        assert not allowed(0, current, without(softirq_pf_memalloc=False))
    assert task.pf_memalloc


def test_the_flag_comes_back_when_the_handler_fails() -> None:
    task = Task("interrupted", pf_memalloc=True)
    with pytest.raises(ZeroDivisionError), do_softirq(task, softirq_pf_memalloc=True):
        raise ZeroDivisionError
    assert (task.pf_memalloc, task.in_interrupt) == (True, False)


@pytest.mark.parametrize(
    ("gfp_mask", "expected"),
    [
        (GFP_KERNEL, ALLOC_CPUSET),
        (GFP_NOIO, ALLOC_CPUSET),
        (GFP_ATOMIC, ALLOC_HIGH | ALLOC_HARDER),
        (GFP_ATOMIC | GFP_NOMEMALLOC, ALLOC_HIGH),
        (GFP_ATOMIC | GFP_MEMALLOC, ALLOC_HIGH | ALLOC_HARDER | ALLOC_NO_WATERMARKS),
        (GFP_NOIO | GFP_MEMALLOC, ALLOC_CPUSET | ALLOC_NO_WATERMARKS),
        (GFP_ATOMIC | GFP_MEMALLOC | GFP_NOMEMALLOC, ALLOC_HIGH),
    ],
)
def test_alloc_flags(gfp_mask: int, expected: int) -> None:
    flags = gfp_to_alloc_flags(gfp_mask, Task("plain"), SERIES)
    assert (flags & ~ALLOC_WMARK_MASK, flags & ALLOC_WMARK_MASK) == (expected, ALLOC_WMARK_MIN)


@pytest.mark.parametrize(
    ("gfp_mask", "mark", "last_refused"),
    [
        (GFP_KERNEL, 256, 256),
        (GFP_ATOMIC | GFP_NOMEMALLOC, 256, 128),
        (GFP_ATOMIC, 256, 96),
        (GFP_ATOMIC, 1448, 543),
        (GFP_ATOMIC | GFP_NOMEMALLOC, 1447, 724),
    ],
)
def test_the_zone_test_passes_strictly_above_the_reduced_mark(gfp_mask: int, mark: int, last_refused: int) -> None:
    flags = gfp_to_alloc_flags(gfp_mask, Task("plain"), SERIES)
    assert not last_refused > lowered_mark(mark, flags)
    assert last_refused + 1 > lowered_mark(mark, flags)
