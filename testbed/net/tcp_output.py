"""Transmit memory of a TCP socket (net/ipv4/tcp.c, tcp_output.c): data lives in skb pages until the peer has ACKed it.

`kernel_sendmsg` copies, so each page that goes out costs another page until then. Requests are made with the
socket's sk_allocation; ACKs and other control packets with GFP_ATOMIC through sk_allocation() (patch 07).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from testbed.mm.gfp import GFP_ATOMIC, GFP_NOWARN
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab
from testbed.mm.wait import WaitQueue
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.sk_page_frag import Copied, SkPageFrag
from testbed.net.skbuff import SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory

MAX_TCP_HEADER = 192
MAX_SKB_PAGES = 16
"""Pages of data in one skb: 64 KiB, the largest that TCP segmentation offload takes."""


STREAM_WAIT_MEMORY = 0.1
"""Seconds until a failed request for send memory is repeated, if no acknowledgement comes before that."""


@dataclass(slots=True)
class TxSkb:
    """An skb on the write queue: an fclone head, a small linear part, data in pages up to stream offset `end`.

    `pfmemalloc` says that some of it is from the reserve; who receives it over loopback sees that.
    """

    head: Slab
    linear: Slab
    data: Copied
    end: int
    truesize: int
    pfmemalloc: bool


class TcpSendQueue:
    """The write queue of one TCP socket.

    Args:
        sndbuf: SO_SNDBUF limit on the true size of unacknowledged skbs, bytes.
    """

    def __init__(self, sk: Sock, skb_memory: SkbMemory, sndbuf: int) -> None:
        self.sk = sk
        self.skb_memory = skb_memory
        self.page_alloc = skb_memory.node.page_alloc
        self.linear_cache = skb_memory.node.kmalloc_cache(MAX_TCP_HEADER + 320)
        self._waits_locked = skb_memory.switches.rules.sendmsg_waits_locked
        self._frags_mark = skb_memory.switches.skb_frag_pfmemalloc
        sk.sndbuf = sndbuf
        self.write_seq = 0
        self.sk_wmem_wait = WaitQueue(self.page_alloc.run_queue)
        self.sk_page_frag = SkPageFrag(self.page_alloc)
        self.shutdown = False
        """Nothing more can be sent (SEND_SHUTDOWN)."""
        self._queue: deque[TxSkb] = deque()

    async def tcp_sendmsg(self, size: int, current: Task, push: Callable[[], None]) -> None:
        """Take the memory to queue `size` bytes: waits for send buffer space and, if it must, for memory.

        It may queue while less than the send buffer is in use (`sk_stream_memory_free`). Before any wait `push` is
        called, to send what has its memory already. A request that fails (a PF_MEMALLOC caller's, or one beyond
        tcp_mem) is repeated later (`sk_stream_wait_memory`).
        Raises BrokenPipeError when the socket has been shut down.
        """
        end = self.write_seq + size
        while self.write_seq < end:
            while self.sk.wmem_queued >= self.sk.sndbuf:
                push()
                await self.sk_wmem_wait.wait(nice=current.nice)
            if self.shutdown:
                raise BrokenPipeError
            if not await self._add_skb(min(end - self.write_seq, MAX_SKB_PAGES * PAGE_SIZE), current, push):
                await self.sk_wmem_wait.wait(STREAM_WAIT_MEMORY, current.nice)

    async def _add_skb(self, size: int, current: Task, push: Callable[[], None]) -> bool:
        """Queue one skb (`sk_stream_alloc_skb`) for up to `size` bytes; False when there was no memory for any of it.

        Only for its first page does it wait: an skb that has some data goes out before that.
        """
        size = self._sk_wmem_schedule(size)
        if not size:
            return False
        gfp_mask = self.sk.sk_allocation
        objects: list[Slab] = []
        data = Copied()
        try:
            for cache in (self.skb_memory.skbuff_fclone_cache, self.linear_cache):
                taken = cache.alloc(gfp_mask | GFP_NOWARN, current)
                if taken is None:
                    push()
                    with self._waiting(current):
                        taken = await cache.alloc_wait(gfp_mask, current)
                if taken is None:
                    return False
                objects.append(taken)
            data = self.sk_page_frag.copy(size, gfp_mask, current)
            if not data.size:
                push()
                with self._waiting(current):
                    if not await self.sk_page_frag.wait_for_page(gfp_mask, current):
                        return False
                data = self.sk_page_frag.copy(size, gfp_mask, current)
            if self.shutdown:
                self.sk_page_frag.free()
                return True
            self._queue_skb(objects[0], objects[1], data)
            objects, data = [], Copied()
            return True
        finally:
            data.free(self.page_alloc)
            for taken in objects:
                taken.cache.free(taken)

    def _waiting(self, current: Task) -> AbstractContextManager[None]:
        return self.sk.locked(current) if self._waits_locked else nullcontext()

    def _sk_wmem_schedule(self, size: int) -> int:
        """How many of `size` bytes tcp_mem has room for: all, a page's, or none."""
        for wanted in (size, min(size, PAGE_SIZE)):
            if self.sk.sk_wmem_schedule(self._truesize(wanted)):
                return wanted
        return 0

    @property
    def head(self) -> TxSkb | None:
        """The first skb that has not been acknowledged."""
        return self._queue[0] if self._queue else None

    def _truesize(self, size: int) -> int:
        return size + self.linear_cache.object_size + self.skb_memory.skbuff_fclone_cache.object_size

    def _queue_skb(self, head: Slab, linear: Slab, data: Copied) -> None:
        truesize = self._truesize(data.size)
        pfmemalloc = linear.pfmemalloc or (self._frags_mark and data.pfmemalloc)
        self.write_seq += data.size
        self.sk.sk_wmem_queue(truesize)
        self._queue.append(TxSkb(head, linear, data, self.write_seq, truesize, pfmemalloc))

    def tcp_clean_rtx_queue(self, acked: int) -> None:
        """The peer has acknowledged the stream up to offset `acked`: free the skbs that lie before it."""
        queue = self._queue
        if not queue or queue[0].end > acked:
            return
        pages: list[Page] = []
        while queue and queue[0].end <= acked:
            pages += self._unlink(queue.popleft())
        if not queue:
            self.sk_page_frag.rewind()
        if self.sk.sk_stream_is_writeable:
            self.sk_wmem_wait.wake_all()
        self.page_alloc.free_pages(pages)

    def _unlink(self, skb: TxSkb) -> list[Page]:
        self.sk.sk_wmem_free(skb.truesize)
        skb.head.cache.free(skb.head)
        skb.linear.cache.free(skb.linear)
        for block in skb.data.blocks:
            self.page_alloc.free_order(block)
        return skb.data.pages

    def purge(self) -> None:
        """The socket is closed: free everything (`tcp_write_queue_purge`, `sk_free`)."""
        pages: list[Page] = []
        while self._queue:
            pages += self._unlink(self._queue.popleft())
        self.page_alloc.free_pages(pages)
        self.sk_page_frag.free()
        self.sk_wmem_wait.wake_all()

    def shutdown_and_purge(self) -> None:
        """The connection is gone: free everything, and let nobody who waits for memory queue any more."""
        self.shutdown = True
        self.purge()


def send_control_packets(
    count: int, sk: Sock | None, skb_memory: SkbMemory, socket_memory: SocketMemory, current: Task
) -> int:
    """How many of `count` small packets of the stack itself find an skb: for a socket `tcp_send_ack`, `tcp_connect`,
    `tcp_make_synack`, `tcp_send_fin`, `tcp_send_active_reset` and `tcp_xmit_probe_skb`; without one an ARP or ICMP
    reply (`sock_alloc_send_skb`).

    Each lives until the NIC has sent it, which here is at once, so one after the other reuses the same memory.
    """
    gfp_mask = GFP_ATOMIC
    for _ in range(count):
        gfp_mask = socket_memory.sk_allocation(sk, GFP_ATOMIC)
    skb = skb_memory.alloc_skb(MAX_TCP_HEADER, gfp_mask, current)
    if skb is None:
        return 0
    skb_memory.kfree_skb(skb)
    return count


def tcp_retransmit_skb(count: int, skb_memory: SkbMemory, netstat: NetStat, current: Task) -> int:
    """How many of `count` segments that are sent once more find an skb for their clone (`__tcp_transmit_skb`).

    They go out from a timer or an acknowledgement's softirq, with GFP_ATOMIC and without the socket's __GFP_MEMALLOC.
    What finds none waits for the next timeout, which comes after twice the time.
    """
    netstat.RetransSegs += count
    clone = skb_memory.skbuff_head_cache.alloc(GFP_ATOMIC, current)
    if clone is None:
        netstat.TCPRetransFail += count
        return 0
    clone.cache.free(clone)
    return count
