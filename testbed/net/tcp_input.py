"""Receive memory of a TCP socket (net/ipv4/tcp_input.c): in order until it is read, out of order until the hole fills.

TCP itself is real; the model only has to know how long each segment's skb lives, and the byte stream says so: an
skb goes when the reader has copied past its end, at once when it carries no data or only data copied before.
"""

from __future__ import annotations

import heapq

from testbed.net.skbuff import SkbColumns, SkbMemory, SkBuff
from testbed.net.sock import Sock


class TcpReceiveQueue:
    """The skbs that a TCP socket's unread data sits in. Offsets are bytes from the start of the incoming stream."""

    def __init__(self, sk: Sock, skb_memory: SkbMemory) -> None:
        self.sk = sk
        self.skb_memory = skb_memory
        self.copied_seq = 0
        self._queue: list[tuple[int, int, int, SkbColumns | SkBuff]] = []
        self._serial = 0

    def __len__(self) -> int:
        return sum(1 if isinstance(skbs, SkBuff) else len(skbs) for _, _, _, skbs in self._queue)

    def tcp_queue_rcv(self, skb: SkBuff, end_seq: int) -> None:
        """Queue an skb whose data ends at offset `end_seq`."""
        if end_seq <= self.copied_seq:
            self.skb_memory.kfree_skb(skb)
            return
        self._push(end_seq, 0, skb)
        self.sk.skb_set_owner_r(skb.truesize)

    def tcp_queue_segments(self, skbs: SkbColumns, first_end: int, step: int) -> None:
        """Queue the segments of a GSO frame, not read yet: the first's data ends at `first_end`, each `step` on."""
        self._push(first_end, step, skbs)
        self.sk.skb_set_owner_r(len(skbs) * skbs.truesize)

    def _push(self, first_end: int, step: int, skbs: SkbColumns | SkBuff) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (first_end, self._serial, step, skbs))

    def copied(self, size: int) -> None:
        """The reader has copied `size` more bytes: free what lies wholly before, in order (`tcp_cleanup_rbuf`)."""
        self.copied_seq += size
        queue = self._queue
        done = self.skb_memory.no_rx_skbs()
        while queue and queue[0][0] <= self.copied_seq:
            first_end, serial, step, skbs = heapq.heappop(queue)
            if isinstance(skbs, SkBuff):
                self._free_columns(done)
                self._free(skbs)
                done = self.skb_memory.no_rx_skbs()
                continue
            until = self.copied_seq
            if queue and queue[0][0] <= until:
                until = queue[0][0] - (queue[0][1] < serial)
            count = (until - first_end) // step + 1 if step else len(skbs)
            if count < len(skbs):
                heapq.heappush(queue, (first_end + count * step, serial, step, skbs))
                skbs = skbs.take(count)
            done.extend(skbs)
        self._free_columns(done)

    def _free_columns(self, skbs: SkbColumns) -> None:
        self.sk.sock_rfree(len(skbs) * skbs.truesize)
        self.skb_memory.kfree_columns(skbs)

    def _free(self, skb: SkBuff) -> None:
        self.sk.sock_rfree(skb.truesize)
        self.skb_memory.kfree_skb(skb)

    def purge(self) -> None:
        """The socket is closed: free what is queued. What a task keeps in the backlog comes here when it lets go."""
        for _, _, _, skbs in sorted(self._queue, key=lambda entry: entry[:2]):
            for skb in [skbs] if isinstance(skbs, SkBuff) else skbs:
                self._free(skb)
        self._queue.clear()
