"""The pages of a program that reads from the network: it cannot go on before it has those that it needs next."""

from __future__ import annotations

from testbed.mm.memory import Memory, Vma
from testbed.mm.sched import Task

WORKING_SET_PAGES = 64
PAGES_PER_READ = 4


class WorkingSet:
    """The memory of `owner`; `memory` may swap it out."""

    def __init__(self, owner: Task, memory: Memory) -> None:
        self.owner = owner
        self._memory = memory
        self._vma = Vma(owner, WORKING_SET_PAGES)
        self._position = 0

    async def touch(self) -> None:
        """Have, and write, the pages for one more read. Raises what `Memory.handle_mm_fault` does."""
        for _ in range(PAGES_PER_READ):
            self._position = (self._position + 1) % WORKING_SET_PAGES
            page = await self._memory.handle_mm_fault(self.owner, self._vma, self._position, write=True)
            if page is not None:
                page.buffer[:1] = b"r"

    def free(self) -> None:
        """The program has ended."""
        self._memory.exit_mmap(self._vma)
