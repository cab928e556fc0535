"""Who is running: the parts of `task_struct` and of the preempt count that memory allocation looks at.

The model has no implicit `current`; every function that needs it takes it as an argument. A softirq runs on top
of whatever task it interrupted, so it shares that task's flags: `do_softirq` shows what patch 05 does about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.mm.mempolicy import Mempolicy


class Task:
    """A task (or the context that interrupted it) as the page allocator sees it.

    `node` is the memory node of the CPU it runs on, `mempolicy` where it wants its memory instead (None: there), and
    `rt_task` says that it has a real-time priority, `pf_wq_worker` that it serves a workqueue, `memdie` that the OOM
    killer has chosen it (TIF_MEMDIE, `tsk_is_oom_victim`), `fatal_signal` that it has been killed, by whomever
    (`fatal_signal_pending`). `hardirq`, `serving_softirq` and `bh_disabled` are the three parts of the preempt count:
    `in_hardirq`, `in_serving_softirq`, and what `local_bh_disable` adds. `rss` and `swapents` count its pages in RAM
    and in swap.
    """

    __slots__ = (
        "bh_disabled",
        "fatal_signal",
        "hardirq",
        "memdie",
        "mempolicy",
        "name",
        "nice",
        "node",
        "pf_kthread",
        "pf_memalloc",
        "pf_wq_worker",
        "rss",
        "rt_task",
        "serving_softirq",
        "swapents",
    )

    def __init__(self, name: str, *, pf_kthread: bool = False, pf_memalloc: bool = False, nice: int = 0) -> None:
        self.name = name
        self.nice = nice
        self.pf_kthread = pf_kthread
        self.pf_memalloc = pf_memalloc
        self.pf_wq_worker = False
        self.memdie = False
        self.fatal_signal = False
        self.hardirq = False
        self.serving_softirq = False
        self.bh_disabled = False
        self.rss = 0
        self.swapents = 0
        self.rt_task = False
        self.node = 0
        self.mempolicy: Mempolicy | None = None

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    @property
    def in_interrupt(self) -> bool:
        """`in_interrupt()`: a hard or soft interrupt is being served, or bottom halves are disabled."""
        return self.hardirq or self.serving_softirq or self.bh_disabled

    @property
    def in_task(self) -> bool:
        """`in_task()` (4.13): no interrupt is being served; bottom halves may be disabled."""
        return not self.hardirq and not self.serving_softirq


@contextmanager
def do_softirq(current: Task, *, softirq_pf_memalloc: bool) -> Iterator[Task]:
    """`__do_softirq`: run a softirq on top of `current`.

    With patch 05 the handler starts without the interrupted task's PF_MEMALLOC, and the task gets its own value
    back afterwards whatever the handler did (`tsk_restore_flags`, now `current_restore_flags`); without it the flag is
    simply shared (and the allocator ignores it).
    """
    saved = current.pf_memalloc
    if softirq_pf_memalloc:
        current.pf_memalloc = False
    current.serving_softirq = True
    try:
        yield current
    finally:
        current.serving_softirq = False
        if softirq_pf_memalloc:
            current.pf_memalloc = saved
