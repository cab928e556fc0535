"""The block device under the swap area, after drivers/block/nbd.c: a request queue, `nbd_thread` that sends, and the
receive loop that completes.

The queue merges neighbouring slots into requests of limited size and number; who finds none waits. `nbd_thread` must
find memory for what it sends. Patch 14 lets it use the reserve while it does, and makes its socket SOCK_MEMALLOC;
without it the thread asks with GFP_NOIO like anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from testbed.hosts.request_list import RequestList
from testbed.mm.gfp import GFP_MEMALLOC, GFP_NOIO
from testbed.mm.page import Page
from testbed.mm.page_io import SwapIO
from testbed.mm.sched import Task
from testbed.mm.wait import WaitQueue
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.client import NbdClient
from testbed.nbd.errors import NbdError
from testbed.net.sock import SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tcp_output import TcpSendQueue
from testbed.patches import Switches

NBD_REQUEST_SIZE = 28
EIO = 5


@dataclass(slots=True)
class Request:
    """A run of neighbouring slots to write or read."""

    write: bool
    entry: int
    pages: list[Page]

    @property
    def end(self) -> tuple[bool, int]:
        """What would go on with it: its direction, and the slot after its last."""
        return self.write, self.entry + len(self.pages)


class NbdDevice:
    """A swap device behind one NBD connection. `completions` and `max_gap_s` tell how steadily requests complete."""

    def __init__(self, switches: Switches) -> None:
        self.switches = switches
        self.on_first_write: Callable[[], None] = _nothing
        self.thread = Task("nbd0", pf_kthread=True, nice=-20)
        self.queue: deque[Request] = deque()
        self._rqhash: dict[tuple[bool, int], Request] = {}
        """Queued requests that are not full, by their ends (`elv_rqhash_find`)."""
        self.in_flight: dict[int, Request] = {}
        self.max_gap_s = 0.0
        self.thread_blocked_since: float | None = None
        self.pf_memalloc_sends = 0
        self.ordinary_sends = 0
        self.failed: str | None = None
        rules = switches.rules
        self._request_list = RequestList(rules.nr_requests, shared=rules.shared_tags)
        self._max_pages = int(rules.max_sectors_kb * 1024) // PAGE_SIZE
        self._waiting_wq = WaitQueue()
        self._writable = WaitQueue()
        self._handle = 0
        self._waiting_since: float | None = None
        self._closed = False

    def attach(
        self,
        client: NbdClient,
        swap_io: SwapIO,
        receive_queue: TcpReceiveQueue,
        send_queue: TcpSendQueue,
        socket_memory: SocketMemory,
    ) -> None:
        """`nbd_do_it`: take over a connection in its transmission phase and start to receive from it.

        Its socket stays SOCK_MEMALLOC for good: nothing here ever calls `sk_clear_memalloc`, as in 2012.
        """
        self.client = client
        self.swap_io = swap_io
        self._request_list.bdi = swap_io.bdi
        self.receive_queue = receive_queue
        self.send_queue = send_queue
        self._read_before = client.bytes_received
        send_queue.write_seq = client.bytes_sent
        if self.switches.nbd_memalloc:
            socket_memory.sk_set_memalloc(receive_queue.sk)
        asyncio.get_running_loop().add_reader(client.fileno(), self.receive)

    async def submit_write(self, pages: Sequence[Page], nice: int) -> None:
        """Queue swapped-out pages, neighbouring slots merged; waits while all write requests are taken."""
        await self._submit(True, pages, nice)

    async def submit_read(self, pages: Sequence[Page], nice: int) -> None:
        """Queue pages to be swapped in; waits while all read requests are taken."""
        await self._submit(False, pages, nice)

    async def _submit(self, write: bool, pages: Sequence[Page], nice: int) -> None:
        runs = deque(merge(pages, self._max_pages))
        if self._rqhash:
            for run in runs:
                self._attempt_back_merge(write, run)
            runs = deque(run for run in runs if run)
        try:
            while runs and await self._request_list.get_request(write, nice):
                self._make_request(write, runs.popleft())
        finally:
            for run in runs:
                self._end(Request(write, run[0].swap_entry, run), EIO)

    def _attempt_back_merge(self, write: bool, run: list[Page]) -> None:
        """`bio_attempt_back_merge`: what goes on where a queued request ends needs no request of its own."""
        request = self._rqhash.pop((write, run[0].swap_entry), None)
        if request is None:
            return
        room = self._max_pages - len(request.pages)
        request.pages += run[:room]
        del run[:room]
        self._rqhash_add(request)

    def _rqhash_add(self, request: Request) -> None:
        if len(request.pages) < self._max_pages:
            self._rqhash[request.end] = request

    def _make_request(self, write: bool, run: list[Page]) -> None:
        if write:
            self.on_first_write()
            self.on_first_write = _nothing
        if self._waiting_since is None:
            self._waiting_since = asyncio.get_running_loop().time()
        request = Request(write, run[0].swap_entry, run)
        self.queue.append(request)
        self._rqhash_add(request)
        self._waiting_wq.wake(1)

    async def nbd_thread(self) -> None:
        """Send one queued request after the other, until cancelled; those that need not wait go out together."""
        while True:
            while not self.queue:
                await self._waiting_wq.wait()
            while self.queue:
                await self._sock_xmit(self.queue[0])
            while not self._closed and not self._push():
                await self._wait_writable()

    async def _sock_xmit(self, request: Request) -> None:
        """Find memory for the request's bytes; whoever has to wait hands the real socket first what has its memory."""
        size = NBD_REQUEST_SIZE + (len(request.pages) * PAGE_SIZE if request.write else 0)
        self.thread_blocked_since = asyncio.get_running_loop().time()
        saved = self.thread.pf_memalloc
        if self.switches.nbd_memalloc:
            self.pf_memalloc_sends += 1
            self.thread.pf_memalloc = True
            self.send_queue.sk.sk_allocation = GFP_NOIO | GFP_MEMALLOC
        else:
            self.ordinary_sends += 1
            self.send_queue.sk.sk_allocation = GFP_NOIO
        self.queue.popleft()
        self._rqhash.pop(request.end, None)
        self._handle += 1
        self.in_flight[self._handle] = request
        start = self.client.write if request.write else self.client.read
        start(self._handle, request.entry * PAGE_SIZE, [page.buffer for page in request.pages])
        try:
            await self.send_queue.tcp_sendmsg(size, self.thread, self._push_some)
        finally:
            self.thread.pf_memalloc = saved
        self.thread_blocked_since = None

    def _push_some(self) -> None:
        if not self._closed:
            self._push()

    def _push(self) -> bool:
        """Send what has its memory; True when all of it is out."""
        try:
            paid = self.send_queue.write_seq - self.client.bytes_sent
            return self.client.send_pending(paid) or self.client.bytes_sent == self.send_queue.write_seq
        except NbdError as error:
            self._fail(error)
            return True

    async def _wait_writable(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_writer(self.client.fileno(), self._writable.wake_all)
        try:
            await self._writable.wait()
        finally:
            loop.remove_writer(self.client.fileno())

    def receive(self) -> None:
        """Complete every request whose reply has arrived."""
        try:
            replies = self.client.receive()
        except NbdError as error:
            self._fail(error)
            return
        received = self.client.bytes_received
        self.receive_queue.copied(received - self._read_before)
        self._read_before = received
        for handle, error_number in replies:
            self._complete(self.in_flight.pop(handle), error_number)

    def tcp_ack(self) -> None:
        """TCP may have taken in acknowledgements: free the send memory they cover, and send what the socket had no room
        for before.
        """
        if self.client.bytes_sent < self.send_queue.write_seq:
            self._push()
        if not self._closed:
            self.send_queue.tcp_clean_rtx_queue(self.client.bytes_sent - self.client.unacknowledged())

    def _complete(self, request: Request, error: int) -> None:
        now = asyncio.get_running_loop().time()
        self._note_gap(now)
        self._waiting_since = None if self.idle else now
        self._end(request, error)
        self._request_list.freed_request(request.write)

    def _end(self, request: Request, error: int) -> None:
        if request.write:
            self.swap_io.end_write(request.pages, error)
        else:
            self.swap_io.end_read(request.pages, error)

    def _note_gap(self, now: float) -> None:
        if self._waiting_since is not None:
            self.max_gap_s = max(self.max_gap_s, now - self._waiting_since)

    def _fail(self, error: Exception) -> None:
        """The connection is gone: what was asked of it ends with EIO, and so does whatever is asked later."""
        self.failed = self.failed or str(error)
        self.close()

    @property
    def idle(self) -> bool:
        """Nothing is queued or in flight."""
        return not self.queue and not self.in_flight

    def disconnect(self) -> None:
        """`nbd_disconnect`: tell the server goodbye if nothing is under way, and close."""
        if self.idle and not self._closed:
            with contextlib.suppress(NbdError):
                self.client.disconnect()
                self.client.send_pending()
        self.close()

    def close(self) -> None:
        """`nbd_clear_que`: end everything with EIO and free what the socket holds."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        self._note_gap(loop.time())
        loop.remove_reader(self.client.fileno())
        requests = [*self.in_flight.values(), *self.queue]
        self.in_flight.clear()
        self.queue.clear()
        self._rqhash.clear()
        for request in requests:
            self._end(request, EIO)
        self.receive_queue.purge()
        self._request_list.close()


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


def _nothing() -> None:
    return
