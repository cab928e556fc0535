"""Wait queues: the only way in which the model waits. The event loop under them may keep real or virtual time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any


class RunQueue:
    """What the scheduler's priorities come to here: how many favoured tasks (nice below 0) are woken but have not run.

    An ordinary task that is about to take scarce memory first lets them run, as they would preempt it.
    """

    __slots__ = ("favoured",)

    def __init__(self) -> None:
        self.favoured = 0

    async def let_favoured_run(self, nice: int) -> None:
        """Step aside while a favoured task is runnable, unless the caller is one."""
        while nice >= 0 and self.favoured:
            await asyncio.sleep(0)


class WaitQueue:
    """A kernel wait queue. A sleeper with a `nice` below 0 is woken first and runs before ordinary tasks."""

    __slots__ = ("_favoured", "_ordinary", "_run_queue")

    def __init__(self, run_queue: RunQueue | None = None) -> None:
        self._run_queue = run_queue or RunQueue()
        self._favoured: deque[asyncio.Future[bool]] = deque()
        self._ordinary: deque[asyncio.Future[bool]] = deque()

    def __len__(self) -> int:
        return sum(not sleeper.done() for queue in (self._favoured, self._ordinary) for sleeper in queue)

    def __bool__(self) -> bool:
        return any(not sleeper.done() for queue in (self._favoured, self._ordinary) for sleeper in queue)

    async def wait(self, timeout: float | None = None, nice: int = 0) -> bool:
        """Sleep until woken (True) or for `timeout` seconds (False)."""
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[bool] = loop.create_future()
        queue = self._favoured if nice < 0 else self._ordinary
        while queue and queue[0].done():
            queue.popleft()
        queue.append(sleeper)
        timer = None if timeout is None else loop.call_later(timeout, _expire, sleeper)
        try:
            return await sleeper
        finally:
            if timer is not None:
                timer.cancel()
            if nice < 0 and not sleeper.cancelled() and sleeper.result():
                self._run_queue.favoured -= 1

    def wake(self, count: int) -> None:
        """`wake_up_nr`: wake up to `count` sleepers, favoured ones first."""
        for queue in (self._favoured, self._ordinary):
            while count > 0 and queue:
                sleeper = queue.popleft()
                if not sleeper.done():
                    sleeper.set_result(True)
                    self._run_queue.favoured += queue is self._favoured
                    count -= 1

    def wake_all(self) -> None:
        """`wake_up_all`."""
        self.wake(len(self._favoured) + len(self._ordinary))


class Thread:
    """What a kernel thread does, to be awaited by its task; others see whether it sleeps or wants the CPU."""

    __slots__ = ("_waits_for", "_work")

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self._waits_for: asyncio.Future[Any] | None = None

    @property
    def sleeping(self) -> bool:
        """It waits for something that has not happened yet."""
        return self._waits_for is not None and not self._waits_for.done()

    def __await__(self) -> Generator[Any, Any, None]:
        work = self._work.__await__()
        try:
            self._waits_for = next(work)
            while True:
                try:
                    yield self._waits_for
                except BaseException as error:
                    self._waits_for = work.throw(error)
                else:
                    self._waits_for = next(work)
        except StopIteration:
            return


def _expire(sleeper: asyncio.Future[bool]) -> None:
    if not sleeper.done():
        sleeper.set_result(False)
