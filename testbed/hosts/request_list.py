"""How many requests a block device may have at once, and who waits for one (block/blk-core.c, block/blk-mq-tag.c).

Until blk-mq reads and writes have a list each, and many writes make the queue congested. With blk-mq they share the
tags of the device's scheduler (mq-deadline), and there is no congestion.
"""

from __future__ import annotations

from testbed.mm.backing_dev import BackingDev
from testbed.mm.wait import WaitQueue


class RequestList:
    """`nr_requests` requests for each direction, or for both together (`shared`)."""

    bdi: BackingDev

    def __init__(self, nr_requests: int, *, shared: bool) -> None:
        self.nr_requests = nr_requests
        self.nr_congestion_on = min(nr_requests - nr_requests // 8 + 1, nr_requests)
        self.nr_congestion_off = max(nr_requests - nr_requests // 8 - nr_requests // 16 - 1, 1)
        self._shared = shared
        self._count = {True: 0, False: 0}
        self._wait = {True: WaitQueue(), False: WaitQueue()}
        self._closed = False

    async def get_request(self, write: bool, nice: int) -> bool:
        """Take a request, waiting until there is one; False if the device has been closed."""
        direction = write or self._shared
        while self._count[direction] >= self.nr_requests and not self._closed:
            await self._wait[direction].wait(nice=nice)
        if self._closed:
            return False
        self._count[direction] += 1
        if write and not self._shared and self._count[write] >= self.nr_congestion_on:
            self.bdi.set_bdi_congested()
        return True

    def freed_request(self, write: bool) -> None:
        """Give a request back."""
        direction = write or self._shared
        self._count[direction] -= 1
        if write and not self._shared and self._count[write] < self.nr_congestion_off:
            self.bdi.clear_bdi_congested()
        self._wait[direction].wake(1)

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        for waiters in self._wait.values():
            waiters.wake_all()
