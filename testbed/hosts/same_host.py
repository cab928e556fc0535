"""A swap server that runs on the client's own machine, as far as that machine's memory is concerned.

It is an ordinary task with an ordinary socket. Over loopback an skb that was sent is the skb that is received, so what
nbd sent from the reserve is in reserve memory still, and the socket filter keeps it from a socket that is not
SOCK_MEMALLOC. TCP sends the same skb again, to the same end. What gets through is read; then the task needs memory for
the request, for pages of its file's page cache if it has one and for the reply's skb, and may have to reclaim first.
Only after that the real server is given the last bytes of the request. The task's own memory is locked (mlockall).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from testbed.hosts.hardware_queue import Request
from testbed.mm.filemap import AddressSpace
from testbed.mm.gfp import GFP_KERNEL
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab
from testbed.mm.wait import WaitQueue
from testbed.net.skbuff import SkbMemory
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_output import MAX_SKB_PAGES, TcpSendQueue, TxSkb, tcp_retransmit_skb
from testbed.net.tcp_timer import RetransmitTimer


class SameHostServer:
    """The server's end of one connection.

    `file` is the page cache in front of what it serves; None for one that goes past it (O_DIRECT). `carried_out` is up
    to which offset of the stream the real server may be sent it.
    """

    def __init__(
        self,
        skb_memory: SkbMemory,
        socket_memory: SocketMemory,
        file: AddressSpace | None = None,
        *,
        realtime: bool = False,
    ) -> None:
        self.task = Task("nbd-server")
        self.task.rt_task = realtime
        self.sk = Sock("nbd-server", 0)
        self.carried_out = 0
        self._skb_memory = skb_memory
        self._socket_memory = socket_memory
        self._page_alloc = skb_memory.node.page_alloc
        self._file = file
        self._softirq = Task("loopback")
        self._softirq.serving_softirq = True
        self._readable = WaitQueue()
        self._requests: deque[tuple[int, int, Request]] = deque()
        self._replies: dict[int, _Reply] = {}

    def attach(self, queue: TcpSendQueue, push: Callable[[], None]) -> None:
        """What comes is what the other end has in `queue`; `push` sends it the real server, up to `carried_out`."""
        self._queue, self._push = queue, push
        self.carried_out = queue.write_seq

    def expect(self, end: int, handle: int, request: Request) -> None:
        """A request is about to be sent whose last byte is the one before offset `end`."""
        self._requests.append((end, handle, request))

    def data_ready(self) -> None:
        """`sk_data_ready`: something may have been queued to send."""
        self._readable.wake_all()

    def replies_read(self, handles: Iterable[int]) -> None:
        """The other end has copied these replies, whose skbs go with that."""
        for handle in handles:
            if handle in self._replies:
                self._replies.pop(handle).free(self._page_alloc)

    async def run(self) -> None:
        """Receive and carry out, until the connection is closed or this is cancelled."""
        queue = self._queue
        try:
            while not queue.shutdown:
                skb = queue.head
                if skb is None:
                    await self._readable.wait()
                elif await self._received(skb) and not queue.shutdown:
                    await self._read(skb)
        finally:
            self.replies_read(list(self._replies))

    async def _received(self, skb: TxSkb) -> bool:
        """`tcp_v4_rcv`: does it get past the socket filter? If not, it will be sent again, for as long as there is
        a connection; False when there is none any more.
        """
        timer = RetransmitTimer()
        while not self._socket_memory.sk_filter(self.sk, skb):
            self._skb_memory.netstat.PFMemallocDrop += 1
            sent = 0
            while not sent:
                await asyncio.sleep(timer.timeout)
                if self._queue.shutdown:
                    return False
                timer.expired(0.0)
                sent = tcp_retransmit_skb(1, self._skb_memory, self._skb_memory.netstat, self._softirq)
        return True

    async def _read(self, skb: TxSkb) -> None:
        """The task has copied it, and it was acknowledged; with its last bytes a request can be carried out."""
        end = skb.end
        self._queue.tcp_clean_rtx_queue(end)
        if end == self._requests[0][0]:
            _, handle, request = self._requests.popleft()
            await self._carry_out(handle, request)
        self.carried_out = end
        self._push()

    async def _carry_out(self, handle: int, request: Request) -> None:
        if self._file is not None:
            access = self._file.write if request.write else self._file.read
            for index in range(request.entry, request.entry + len(request.pages)):
                await access(index, self.task)
        reply = self._replies[handle] = _Reply()
        await reply.alloc(0 if request.write else len(request.pages), self._queue, self.task)


class _Reply:
    """The skbs of one reply, which live until the client has read it."""

    def __init__(self) -> None:
        self._objects: list[Slab] = []
        self._pages: list[Page] = []

    async def alloc(self, pages: int, queue: TcpSendQueue, current: Task) -> None:
        """`tcp_sendmsg` of a server: a header, which fits an skb's linear part, and so many pages of data."""
        for _ in range(max(1, -(-pages // MAX_SKB_PAGES))):
            for cache in (queue.skb_memory.skbuff_fclone_cache, queue.linear_cache):
                if (taken := await cache.alloc_wait(GFP_KERNEL, current)) is not None:
                    self._objects.append(taken)
        for _ in range(pages):
            if (page := await queue.page_alloc.alloc_page(GFP_KERNEL, current)) is not None:
                self._pages.append(page)

    def free(self, page_alloc: PageAllocator) -> None:
        for taken in self._objects:
            taken.cache.free(taken)
        page_alloc.free_pages(self._pages)
