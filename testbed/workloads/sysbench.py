"""sysbench's page faults: a mapping smaller than memory is read before it is written, written, and unmapped again.

The first read of a page finds the zero page, the first write gives it a page of its own, a fault on a page that is
there finds it at once.
"""

from __future__ import annotations

from testbed.mm.memory import Vma
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.workloads.host import Host

MAPPING = 512
"""Pages."""
ORDER = 181
"""The mapping is touched in steps of so many pages, which has no divisor in common with its size."""


class Sysbench:
    """An operation is a page fault."""

    def __init__(self, host: Host) -> None:
        self._memory = host.node.memory
        self._task = Task("sysbench")

    async def run(self, operations: int) -> int:
        done = 0
        while done < operations:
            vma = Vma(self._task, MAPPING)
            for number in range(MAPPING):
                await self._touch(vma, number * ORDER % MAPPING)
            self._memory.exit_mmap(vma)
            done += 3 * MAPPING
        return done

    async def _touch(self, vma: Vma, index: int) -> None:
        fault, task = self._memory.handle_mm_fault, self._task
        assert await fault(task, vma, index, False) is None
        written = await fault(task, vma, index, True)
        assert isinstance(written, Page)
        assert await fault(task, vma, index, False) is written
