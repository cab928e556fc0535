"""Receive memory of a TCP socket (net/ipv4/tcp_input.c): in order until it is read, out of order until the hole fills.

TCP itself is real; the model only has to know how long each segment's skb lives, and the byte stream says so: an
skb goes when the reader has copied past its end, at once when it carries no data or only data copied before.
"""

from __future__ import annotations

import heapq

from testbed.net.skbuff import SkbMemory, SkBuff
from testbed.net.sock import Sock


class TcpReceiveQueue:
    """The skbs that a TCP socket's unread data sits in. Offsets are bytes from the start of the incoming stream."""

    def __init__(self, sk: Sock, skb_memory: SkbMemory) -> None:
        self.sk = sk
        self.skb_memory = skb_memory
        self.copied_seq = 0
        self._queue: list[tuple[int, int, SkBuff]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._queue)

    def tcp_queue_rcv(self, skb: SkBuff, end_seq: int) -> None:
        """Queue an skb whose data ends at offset `end_seq`."""
        if end_seq <= self.copied_seq:
            self.skb_memory.kfree_skb(skb)
            return
        self._serial += 1
        heapq.heappush(self._queue, (end_seq, self._serial, skb))
        self.sk.rmem_alloc += skb.truesize

    def copied(self, size: int) -> None:
        """The reader has copied `size` more bytes: free what lies wholly before (`tcp_cleanup_rbuf`)."""
        self.copied_seq += size
        queue = self._queue
        while queue and queue[0][0] <= self.copied_seq:
            skb = heapq.heappop(queue)[2]
            self.sk.rmem_alloc -= skb.truesize
            self.skb_memory.kfree_skb(skb)

    def purge(self) -> None:
        """The socket is closed: free everything."""
        while self._queue:
            skb = heapq.heappop(self._queue)[2]
            self.sk.rmem_alloc -= skb.truesize
            self.skb_memory.kfree_skb(skb)
