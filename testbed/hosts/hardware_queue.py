"""Requests on their way to a block device, and the queue they wait in (block/blk-mq.c, block/elevator.c).

Neighbouring slots become one request of limited size; what goes on where a queued request ends needs none of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from testbed.mm.page import Page
from testbed.mm.wait import WaitQueue


@dataclass(slots=True)
class Request:
    """A run of neighbouring slots to write or read; `sent_at` is when it was last handed to a socket, seconds."""

    write: bool
    entry: int
    pages: list[Page]
    sent_at: float = 0.0

    @property
    def end(self) -> tuple[bool, int]:
        """What would go on with it: its direction, and the slot after its last."""
        return self.write, self.entry + len(self.pages)


class HardwareQueue:
    """`struct blk_mq_hw_ctx`: requests of at most `max_pages` pages that nobody has taken up yet."""

    def __init__(self, max_pages: int) -> None:
        self.requests: deque[Request] = deque()
        self.waiting_wq = WaitQueue()
        self.max_pages = max_pages
        self.rqhash: dict[tuple[bool, int], Request] = {}
        """Queued requests that are not full, by their ends (`elv_rqhash_find`)."""

    def attempt_back_merge(self, write: bool, run: list[Page]) -> None:
        """`bio_attempt_back_merge`: move what fits from the run to the request that it goes on from."""
        request = self.rqhash.pop((write, run[0].swap_entry), None)
        if request is None:
            return
        room = self.max_pages - len(request.pages)
        request.pages += run[:room]
        del run[:room]
        self._rqhash_add(request)

    def _rqhash_add(self, request: Request) -> None:
        if len(request.pages) < self.max_pages:
            self.rqhash[request.end] = request

    def insert(self, request: Request) -> None:
        """Queue a new request and wake who sends it."""
        self.requests.append(request)
        self._rqhash_add(request)
        self.waiting_wq.wake(1)

    def requeue(self, requests: Iterable[Request]) -> None:
        """`blk_mq_requeue_request`: what has been taken up before goes first, in the same order as then."""
        self.requests.extendleft(reversed(list(requests)))
        self.waiting_wq.wake(1)

    def take(self) -> Request:
        """The request whose turn it is; it grows no more."""
        request = self.requests.popleft()
        self.rqhash.pop(request.end, None)
        return request

    def take_all(self) -> list[Request]:
        """All of them."""
        requests = list(self.requests)
        self.requests.clear()
        self.rqhash.clear()
        return requests


def merge(pages: Sequence[Page], max_pages: int) -> list[list[Page]]:
    """Runs of pages with neighbouring slots, each at most `max_pages` long, in the order of their slots."""
    runs: list[list[Page]] = []
    last = -2
    for page in sorted(pages, key=lambda page: page.swap_entry):
        if page.swap_entry != last + 1 or len(runs[-1]) == max_pages:
            runs.append([])
        runs[-1].append(page)
        last = page.swap_entry
    return runs
