"""An event loop with virtual time: its clock jumps to the next timer as soon as nothing is left to do.

Hours of sleeping take no time, and the order of events is the same in every run. A program that waits for something
nobody will ever do raises `Stuck`, and one that keeps itself busy without any time passing raises `Livelock`.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TURNS_AT_ONE_MOMENT = 100_000
"""Turns of the loop without any time passing that count as a livelock."""


class Stuck(RuntimeError):
    """Everybody waits, and no timer is set."""


class Livelock(RuntimeError):
    """The loop is busy, but its clock stands still."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            self._turns += 1
            if self._turns > TURNS_AT_ONE_MOMENT:
                self._turns = 0
                raise Livelock(f"busy at {self.now:g} s, with no time passing")
            return ready
        if timeout is None:
            raise Stuck(f"nothing left to do at {self.now:g} s")
        self.now += timeout
        self._turns = 0
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop whose `time` starts at 0 and moves only by jumps."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on virtual time; what it leaves running is cancelled."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        with contextlib.suppress(Stuck, Livelock):
            loop.run_until_complete(_cancel_the_rest())
        loop.close()


async def _cancel_the_rest() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def now() -> float:
    """Virtual seconds since the start."""
    return asyncio.get_running_loop().time()


async def is_blocked(task: asyncio.Task[Any], seconds: float) -> bool:
    """Does `task` still not return after that many virtual seconds?"""
    await asyncio.wait([task], timeout=seconds)
    return not task.done()
