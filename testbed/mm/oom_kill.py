"""The OOM killer (mm/oom_kill.c): kills the task with the most memory, in RAM and in swap, one at a time."""

from __future__ import annotations

from testbed.mm.sched import Task
from testbed.mm.vmstat import VmStat
from testbed.mm.wait import WaitQueue


class OomKiller:
    """Chooses among `tasks`; a victim may use the reserve until it has exited."""

    def __init__(self, vmstat: VmStat, wake: list[WaitQueue]) -> None:
        self.vmstat = vmstat
        self.tasks: set[Task] = set()
        self._wake = wake

    def out_of_memory(self, _current: Task) -> None:
        """Kill one task, unless a victim is still on its way out or there is nobody to kill."""
        if any(task.memdie for task in self.tasks):
            return
        victim = max(self.tasks, key=lambda task: (_badness(task), task.name), default=None)
        if victim is None:
            return
        victim.memdie = victim.fatal_signal = True
        self.vmstat.oom_kill += 1
        for queue in self._wake:
            queue.wake_all()


def _badness(task: Task) -> int:
    """`oom_badness`, but for page tables, which the model has not, and privilege: pages."""
    return task.rss + task.swapents
