"""Wait queues: the only way in which the model waits. The event loop under them may keep real or virtual time."""

from __future__ import annotations

import asyncio
from collections import deque


class WaitQueue:
    """A kernel wait queue. A sleeper with a lower `nice` is woken first, as the scheduler would run it first."""

    __slots__ = ("_favoured", "_ordinary")

    def __init__(self) -> None:
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
        if timeout is None:
            return await sleeper
        timer = loop.call_later(timeout, _expire, sleeper)
        try:
            return await sleeper
        finally:
            timer.cancel()

    def wake(self, count: int) -> None:
        """`wake_up_nr`: wake up to `count` sleepers, favoured ones first."""
        for queue in (self._favoured, self._ordinary):
            while count > 0 and queue:
                sleeper = queue.popleft()
                if not sleeper.done():
                    sleeper.set_result(True)
                    count -= 1

    def wake_all(self) -> None:
        """`wake_up_all`."""
        self.wake(len(self._favoured) + len(self._ordinary))


def _expire(sleeper: asyncio.Future[bool]) -> None:
    if not sleeper.done():
        sleeper.set_result(False)
