"""The series' own workload: tasks map anonymous memory, write every page, then read it all in order, over and over.

Each page is filled with a stamp of its own, and every read compares the whole page. Tasks take turns after a few
touches, as many tasks on few processors do, so that none runs far ahead.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from testbed.hosts.cpu_times import SAMPLED, CpuTimes
from testbed.mm.memory import BusError, Killed, Memory, Pte, Vma
from testbed.mm.page import Page
from testbed.mm.sched import Task

TOUCHES_PER_ROUND = 64
"""Touches of all tasks together between two turns of the event loop."""
STAMP = struct.Struct("<IIQ")
LISTED = 300
"""Lost pages that are listed one by one."""
KILLED_BY = {Killed: "the OOM killer", BusError: "SIGBUS"}


@dataclass(frozen=True, slots=True)
class LostPage:
    """A page that came back from `slot` of the swap area as something else than `task` had written."""

    slot: int
    task: str
    page: int


@dataclass(slots=True)
class Progress:
    """What the tasks have done so far; `waiting` is how many are inside a page fault right now.

    `wrong_slots` are the first of those pages that came back wrong, `killed` says of each task that was, why.
    """

    finished_tasks: int = 0
    killed_tasks: int = 0
    touches: int = 0
    checked: int = 0
    corrupt: int = 0
    waiting: int = 0
    wrong_from_swap: int = 0
    wrong_slots: list[LostPage] = field(default_factory=list)
    killed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all tasks of one workload share: memory, RAM's bytes (`page_bytes` of each page), the run's seed, where
    progress and events go, what measures CPU time."""

    memory: Memory
    ram: mmap.mmap
    page_bytes: int
    seed: int
    progress: Progress
    event: Callable[[str, dict[str, object]], None]
    cpu_times: CpuTimes


class LinearTouch:
    """One task of the workload: `pages` pages, read `passes` times, `slice_touches` touches at a turn."""

    def __init__(self, number: int, pages: int, passes: int, slice_touches: int, surroundings: Surroundings) -> None:
        self.task = Task(f"touch{number}")
        self.vma = Vma(self.task, pages)
        self._number = number
        self._passes = passes
        self._slice = slice_touches
        self._memory = surroundings.memory
        self._ram = surroundings.ram
        self._page_bytes = surroundings.page_bytes
        self._seed = surroundings.seed
        self._progress = surroundings.progress
        self._event = surroundings.event
        self._cpu_times = surroundings.cpu_times

    async def run(self) -> None:
        """Write once, read `passes` times, exit."""
        try:
            await self._write()
            for _ in range(self._passes):
                await self._read()
            self._progress.finished_tasks += 1
        except (Killed, BusError) as error:
            self._progress.killed_tasks += 1
            self._progress.killed[self.task.name] = KILLED_BY[type(error)]
            self._event("task_killed", {"task": self.task.name, "why": type(error).__name__, "message": str(error)})
        finally:
            self.task.memdie = False
            self._memory.exit_mmap(self.vma)

    def _stamp(self, index: int) -> bytes:
        return STAMP.pack(self._number, index, self._seed) * (self._page_bytes // STAMP.size)

    async def _fault(self, index: int, write: bool) -> Page | None:
        self._progress.waiting += 1
        try:
            return await self._memory.handle_mm_fault(self.task, self.vma, index, write)
        finally:
            self._progress.waiting -= 1

    def _note_wrong(self, index: int, pte: Pte) -> None:
        """The page is not what was written; `pte` is where it was before it was touched."""
        progress = self._progress
        progress.corrupt += 1
        self._event("corrupt_page", {"task": self.task.name, "page": index})
        if isinstance(pte, int):
            progress.wrong_from_swap += 1
            if len(progress.wrong_slots) < LISTED:
                progress.wrong_slots.append(LostPage(pte, self.task.name, index))

    async def _write(self) -> None:
        for index in range(len(self.vma.ptes)):
            if not index % self._slice:
                await asyncio.sleep(0)
            page = await self._fault(index, True)
            assert page is not None
            sampled = not index % SAMPLED
            if sampled:
                self._cpu_times.touch_begins()
            page.buffer[:] = self._stamp(index)
            if sampled:
                self._cpu_times.touch_ends()
            self._progress.touches += 1

    async def _read(self) -> None:
        ptes, ram, size, progress = self.vma.ptes, self._ram, self._page_bytes, self._progress
        for index in range(len(ptes)):
            if not index % self._slice:
                await asyncio.sleep(0)
            pte = ptes[index]
            if isinstance(pte, Page):
                pte.young = True
                page: Page | None = pte
            else:
                page = await self._fault(index, False)
            sampled = not index % SAMPLED
            if sampled:
                self._cpu_times.touch_begins()
            offset = 0 if page is None else page.pfn * size
            wrong = page is None or ram[offset : offset + size] != self._stamp(index)
            if sampled:
                self._cpu_times.touch_ends()
            progress.touches += 1
            if wrong:
                self._note_wrong(index, pte)
            progress.checked += 1
