"""A bridge (net/bridge/br_forward.c): frames go out again by its other ports, whatever memory they lie in.

IP is on the list of protocols that may use the reserve, so that forwarding goes on in a shortage. A forwarded skb then
holds reserve memory until the port's NIC has sent it.
"""

from __future__ import annotations

from collections import deque

from testbed.mm.gfp import GFP_ATOMIC
from testbed.mm.sched import Task
from testbed.net.skbuff import SkbMemory, SkBuff


class Bridge:
    """Floods each frame to `ports` ports, beside the one that it came in by.

    Args:
        tx_queue_len: frames that wait in a port until it drops more.
        softirq: who forwards; it has PF_MEMALLOC while an skb in reserve memory is received (patch 12).
    """

    def __init__(self, skb_memory: SkbMemory, ports: int, tx_queue_len: int, softirq: Task) -> None:
        self.skb_memory = skb_memory
        self.tx_queue_len = tx_queue_len
        self.softirq = softirq
        self.ports: list[deque[SkBuff]] = [deque() for _ in range(ports)]
        self.tx_dropped = 0

    def br_handle_frame(self, skb: SkBuff) -> bool:
        """The `rx_handler` of a port: takes every skb. All ports but the last get a clone (`br_flood`)."""
        for port in self.ports[:-1]:
            clone = self.skb_memory.skb_clone(skb, GFP_ATOMIC, self.softirq)
            if clone is None:
                self.tx_dropped += 1
            else:
                self._queue(port, clone)
        self._queue(self.ports[-1], skb)
        return True

    def _queue(self, port: deque[SkBuff], skb: SkBuff) -> None:
        if len(port) < self.tx_queue_len:
            port.append(skb)
        else:
            self.tx_dropped += 1
            self.skb_memory.kfree_skb(skb)

    def tx_complete(self, port: int, count: int) -> None:
        """A port's NIC has sent its first `count` frames."""
        queue = self.ports[port]
        self.skb_memory.kfree_skbs([queue.popleft() for _ in range(count)])
