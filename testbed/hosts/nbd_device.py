"""The block device under the swap area, after drivers/block/nbd.c: a queue for each connection, a thread that sends
from it, and the receive loop that completes.

Who finds no free request waits. A thread must find memory for what it sends. Patch 14 lets it use the reserve while it
does, and makes its socket SOCK_MEMALLOC; without it the thread asks with GFP_NOIO like anybody else. Since blk-mq the
thread is a worker of kblockd, which has the same priority but sleeps when it finds no memory.

A connection is dead when it breaks, when the server breaks the protocol, or when a request times out. Its requests,
whose pages stay locked or under writeback, are queued again: for another live connection, or for the one that user
space makes in its place. The driver of 2012 knew none of that, and so it is unless the configuration asks for it: a
lost connection means I/O errors. Today's driver queues a request again when its own timer expires, the model when its
connection dies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from testbed.hosts.hardware_queue import HardwareQueue, Request, merge
from testbed.hosts.nbd_sock import NbdSock, SwapSocket
from testbed.hosts.request_list import RequestList
from testbed.hosts.same_host import SameHostServer
from testbed.mm.gfp import GFP_MEMALLOC, GFP_NOIO
from testbed.mm.page import Page
from testbed.mm.page_io import SwapIO
from testbed.mm.sched import Task
from testbed.mm.wait import WaitQueue
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.client import NbdClient
from testbed.nbd.errors import NbdError
from testbed.net.sock import SocketMemory
from testbed.patches import Switches
from testbed.rules import Rules

EIO = 5
BLK_DEFAULT_TIMEOUT = 30.0
"""Seconds after which a request of a device with several connections is tried on another, if nothing else is set."""


@dataclass(frozen=True, slots=True)
class NbdConfig:
    """`struct nbd_config`. `timeout` is how many seconds a request may take, `dead_conn_timeout` how long requests wait
    for a new connection when none is alive; None for no limit and for not at all.
    """

    num_connections: int = 1
    timeout: float | None = None
    dead_conn_timeout: float | None = None

    @property
    def request_timeout(self) -> float | None:
        """Seconds until `nbd_xmit_timeout` drops a connection; None: it only warns."""
        return self.timeout or (BLK_DEFAULT_TIMEOUT if self.num_connections > 1 else None)


class Channel:
    """A hardware queue, the task that sends from it, and the connection that it sends on."""

    def __init__(self, number: int, max_pages: int, rules: Rules) -> None:
        self.number = number
        self.hctx = HardwareQueue(max_pages)
        self.nsock: NbdSock | None = None
        self.thread = Task(f"nbd{number}", pf_kthread=True, nice=-20)
        self.thread.pf_wq_worker = rules.nbd_sends_from == "workqueue"
        self.blocked_since: float | None = None
        self.writable = WaitQueue()

    @property
    def live(self) -> bool:
        """Has it a connection that works?"""
        return self.nsock is not None and not self.nsock.dead


class NbdDevice:
    """A swap device. `failed` says why a connection was lost last, `max_gap_s` how steadily requests complete.

    `on_dead` is told the number of each connection that dies, and why; `on_close` of each that is about to be closed.
    """

    swap_io: SwapIO
    socket_memory: SocketMemory

    def __init__(self, switches: Switches, config: NbdConfig | None = None) -> None:
        self.switches = switches
        self.config = config or NbdConfig()
        self.on_first_write: Callable[[], None] = _nothing
        self.on_dead: Callable[[int, str], None] = _nothing
        self.on_close: Callable[[NbdClient], None] = _nothing
        self.max_gap_s = 0.0
        self.pf_memalloc_sends = 0
        self.ordinary_sends = 0
        self.nbd_reconnects = 0
        self.nbd_requeued = 0
        self.nbd_timeouts = 0
        self.failed: str | None = None
        rules = switches.rules
        self._request_list = RequestList(rules.nr_requests, shared=rules.shared_tags)
        self._max_pages = int(rules.max_sectors_kb * 1024) // PAGE_SIZE
        self._request_timeout = self.config.request_timeout
        self.channels = [Channel(number, self._max_pages, rules) for number in range(self.config.num_connections)]
        self._next_channels = deque(self.channels)
        self._conn_wait = WaitQueue()
        self._disconnected = False
        self._timer: asyncio.TimerHandle | None = None
        self.handle = 0
        """Of the request sent last."""
        self._waiting_since: float | None = None

    def swapon(self, swap_io: SwapIO, socket_memory: SocketMemory) -> None:
        """Say who hears of requests that end, and who counts SOCK_MEMALLOC sockets."""
        self.swap_io = swap_io
        self.socket_memory = socket_memory
        self._request_list.bdi = swap_io.bdi

    def limit_requests(self, maximum_block_size: int) -> None:
        """Make no request longer than the server takes, bytes (0: it did not say)."""
        if maximum_block_size:
            self._max_pages = min(self._max_pages, maximum_block_size // PAGE_SIZE)
            for channel in self.channels:
                channel.hctx.max_pages = self._max_pages

    def attach(
        self, number: int, client: NbdClient, socket: SwapSocket, server: SameHostServer | None = None
    ) -> NbdSock:
        """Take over a connection in its transmission phase as `number`: the first one, or one in place of a dead one.
        This is where patch 14 has `nbd_do_it` call `sk_set_memalloc`.

        `server` is its other end, if that is on this machine.
        Its socket stays SOCK_MEMALLOC for good: nothing here ever calls `sk_clear_memalloc`, as in 2012.
        """
        channel = self.channels[number]
        self.nbd_reconnects += channel.nsock is not None
        nsock = channel.nsock = NbdSock(client, socket, server)
        if self.switches.nbd_memalloc:
            self.socket_memory.sk_set_memalloc(socket.sk)
        asyncio.get_running_loop().add_reader(client.fileno(), self.receive, nsock)
        self._disconnected = False
        self._conn_wait.wake_all()
        channel.hctx.waiting_wq.wake(1)
        return nsock

    # --- submission ---

    async def submit_write(self, pages: Sequence[Page], nice: int) -> None:
        """Queue swapped-out pages, neighbouring slots merged; waits while all write requests are taken."""
        await self._submit(True, pages, nice)

    async def submit_read(self, pages: Sequence[Page], nice: int) -> None:
        """Queue pages to be swapped in; waits while all read requests are taken."""
        await self._submit(False, pages, nice)

    async def _submit(self, write: bool, pages: Sequence[Page], nice: int) -> None:
        runs = deque(merge(pages, self._max_pages))
        hctx = self._map_queue()
        if hctx.rqhash:
            for run in runs:
                hctx.attempt_back_merge(write, run)
            runs = deque(run for run in runs if run)
        try:
            while runs and await self._request_list.get_request(write, nice):
                self._make_request(hctx, write, runs.popleft())
        finally:
            for run in runs:
                self._end(Request(write, run[0].swap_entry, run), EIO)

    def _map_queue(self) -> HardwareQueue:
        """`blk_mq_map_queue`: submitters run on all CPUs in turn, and so take all queues in turn."""
        channels = self._next_channels
        channels.rotate(-1)
        return channels[-1].hctx

    def _make_request(self, hctx: HardwareQueue, write: bool, run: list[Page]) -> None:
        if write:
            self.on_first_write()
            self.on_first_write = _nothing
        if self._waiting_since is None:
            self._waiting_since = asyncio.get_running_loop().time()
        hctx.insert(Request(write, run[0].swap_entry, run))

    # --- sending ---

    async def nbd_thread(self, number: int = 0) -> None:
        """Send one request of the queue after the other, until cancelled; those that need not wait go out together."""
        channel = self.channels[number]
        while True:
            while not channel.hctx.requests:
                await channel.hctx.waiting_wq.wait()
            nsock = channel.nsock
            if nsock is not None and not nsock.dead:
                await self._sock_xmit(channel, nsock)
            elif live := self._find_fallback():
                live.hctx.requeue(channel.hctx.take_all())
            elif not await self._wait_for_reconnect():
                self._fail_queued()

    async def _sock_xmit(self, channel: Channel, nsock: NbdSock) -> None:
        """`sock_xmit` of the next request, which may take until there is memory for it. PF_MEMALLOC is set meanwhile
        (patch 14; today `memalloc_noreclaim_save`).
        """
        request = channel.hctx.take()
        thread = channel.thread
        request.sent_at = channel.blocked_since = asyncio.get_running_loop().time()
        saved = thread.pf_memalloc
        if self.switches.nbd_memalloc:
            self.pf_memalloc_sends += 1
            thread.pf_memalloc = True
            sk_allocation = GFP_NOIO | GFP_MEMALLOC
        else:
            self.ordinary_sends += 1
            sk_allocation = GFP_NOIO
        self.handle += 1
        if self._timer is None and self._request_timeout is not None:
            self._start_timer(request.sent_at + self._request_timeout)
        try:
            await nsock.send(self.handle, request, thread, sk_allocation)
        except (NbdError, BrokenPipeError) as error:
            self.nbd_mark_nsock_dead(nsock, str(error))
        finally:
            thread.pf_memalloc = saved
        channel.blocked_since = None
        if not channel.hctx.requests:
            await self._push(channel, nsock)

    async def _push(self, channel: Channel, nsock: NbdSock) -> None:
        """See to it that the socket takes all that has its memory."""
        while not nsock.dead:
            try:
                if nsock.push():
                    return
            except NbdError as error:
                self.nbd_mark_nsock_dead(nsock, str(error))
                return
            await self._wait_writable(channel, nsock)

    async def _wait_writable(self, channel: Channel, nsock: NbdSock) -> None:
        loop, descriptor = asyncio.get_running_loop(), nsock.client.fileno()
        loop.add_writer(descriptor, channel.writable.wake_all)
        try:
            await channel.writable.wait()
        finally:
            if not nsock.dead:
                loop.remove_writer(descriptor)

    # --- completion ---

    def receive(self, nsock: NbdSock) -> None:
        """Complete every request whose reply has arrived."""
        try:
            replies = nsock.receive()
        except NbdError as error:
            self.nbd_mark_nsock_dead(nsock, str(error))
            return
        for request, error_number in replies:
            self._complete(request, error_number)

    def tcp_ack(self) -> bool:
        """Acknowledgements may have come in on any connection; True while something sent is unacknowledged."""
        waiting = False
        for channel in self.channels:
            nsock = channel.nsock
            if nsock is not None and not nsock.dead:
                try:
                    waiting |= nsock.tcp_ack()
                except NbdError as error:
                    self.nbd_mark_nsock_dead(nsock, str(error))
        return waiting

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

    # --- dead connections ---

    def nbd_mark_nsock_dead(self, nsock: NbdSock, why: str) -> None:
        """A connection is of no more use: free what it holds, and queue its requests again if there is hope."""
        if nsock.dead:
            return
        self.failed = why
        channel = next(channel for channel in self.channels if channel.nsock is nsock)
        requeued = self._shut_down(channel, nsock)
        self.on_dead(channel.number, why)
        if self.live_connections or self.config.dead_conn_timeout:
            self.nbd_requeued += requeued
        else:
            self._disconnected = True
            self._fail_queued()

    def _shut_down(self, channel: Channel, nsock: NbdSock) -> int:
        """Close a connection and free what it holds; how many requests went from it back to its queue."""
        nsock.dead = True
        loop, descriptor = asyncio.get_running_loop(), nsock.client.fileno()
        loop.remove_reader(descriptor)
        loop.remove_writer(descriptor)
        self.on_close(nsock.client)
        nsock.close()
        channel.writable.wake_all()
        requests = list(nsock.in_flight.values())
        nsock.in_flight.clear()
        channel.hctx.requeue(requests)
        return len(requests)

    def _find_fallback(self) -> Channel | None:
        return next((channel for channel in self.channels if channel.live), None)

    async def _wait_for_reconnect(self) -> bool:
        """`wait_for_reconnect`: is there a live connection within the time? If not, nobody else waits either."""
        if self._disconnected:
            return False
        if not await self._conn_wait.wait(self.config.dead_conn_timeout):
            self._disconnected = True
            self._conn_wait.wake_all()
        return self.live_connections > 0

    def _fail_queued(self) -> None:
        """All connections are down, and no other is expected: what is queued ends with an I/O error."""
        for channel in self.channels:
            for request in channel.hctx.take_all():
                self._complete(request, EIO)

    def _start_timer(self, when: float) -> None:
        """`blk_add_timer`: one timer does for all requests, since the oldest is due first."""
        self._timer = asyncio.get_running_loop().call_at(when, self._nbd_xmit_timeout)

    def _nbd_xmit_timeout(self) -> None:
        """`nbd_xmit_timeout`: who has not answered by now is given up, and the timer set for who is still in time."""
        self._timer = None
        timeout = self._request_timeout
        assert timeout is not None
        late = asyncio.get_running_loop().time() - timeout
        for nsock in self._live_nsocks():
            if nsock.oldest is not None and nsock.oldest <= late:
                self.nbd_timeouts += 1
                self.nbd_mark_nsock_dead(nsock, f"the NBD server did not answer a request within {timeout:g} s")
        due = [nsock.oldest + timeout for nsock in self._live_nsocks() if nsock.oldest is not None]
        if due and self._timer is None:
            self._start_timer(min(due))

    def _live_nsocks(self) -> list[NbdSock]:
        return [channel.nsock for channel in self.channels if channel.nsock is not None and not channel.nsock.dead]

    # --- state, and the end ---

    @property
    def live_connections(self) -> int:
        """Connections that work."""
        return len(self._live_nsocks())

    @property
    def sockets(self) -> list[SwapSocket]:
        """The model's sockets of the connections that work."""
        return [nsock.socket for nsock in self._live_nsocks()]

    @property
    def idle(self) -> bool:
        """Nothing is queued or in flight."""
        for channel in self.channels:
            if channel.hctx.requests or (channel.nsock is not None and channel.nsock.in_flight):
                return False
        return True

    def disconnect(self) -> None:
        """`nbd_disconnect`: tell the server goodbye if nothing is under way, and close."""
        if self.idle:
            for nsock in self._live_nsocks():
                with contextlib.suppress(NbdError):
                    nsock.client.disconnect()
                    nsock.client.send_pending()
        self.close()

    def close(self) -> None:
        """`nbd_clear_que`: end everything with EIO and free what the sockets hold."""
        self._disconnected = True
        self._note_gap(asyncio.get_running_loop().time())
        self._waiting_since = None
        if self._timer is not None:
            self._timer.cancel()
        for channel in self.channels:
            if channel.nsock is not None and not channel.nsock.dead:
                self._shut_down(channel, channel.nsock)
        self._request_list.close()
        self._conn_wait.wake_all()
        self._fail_queued()


def _nothing(*_arguments: object) -> None:
    return
