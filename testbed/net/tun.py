"""The network interface of a virtual machine (drivers/net/tun.c): a queue from which the machine's emulator reads.

Frames that the host sends out there are not for a socket of its own. They meet no filter for the reserve, and hold
their memory until the emulator, a task like any other, has read them.
"""

from __future__ import annotations

from collections.abc import Callable

from testbed.net.drop_reason import DropReason
from testbed.net.skb_queue import SkbQueue
from testbed.net.skbuff import SkbMemory, SkBuff

TUN_READQ_SIZE = 500
"""Frames that wait for the reader at most. Before 3.8 the interface's qdisc then kept as many again."""


class Tun:
    """A tap interface called `name`, with room for `tx_queue_len` frames."""

    def __init__(self, name: str, skb_memory: SkbMemory, tx_queue_len: int = TUN_READQ_SIZE) -> None:
        self.name = name
        self.tx_queue_len = tx_queue_len
        self.tx_packets = 0
        self.tx_dropped = 0
        self.read = 0
        self.on_readable: Callable[[], object] = _nobody
        self._skb_memory = skb_memory
        self._queue = SkbQueue()

    @property
    def queued(self) -> int:
        """Skbs that wait for the reader."""
        return len(self._queue)

    def tun_net_xmit(self, skb: SkBuff) -> DropReason:
        """Queue the skb for the reader, or drop it; it is nobody's afterwards. DELIVERED, or FULL_RING."""
        if len(self._queue) >= self.tx_queue_len:
            self.tx_dropped += skb.gso_segs
            self._skb_memory.kfree_skb(skb)
            return DropReason.FULL_RING
        self.tx_packets += skb.gso_segs
        self._queue.append(skb)
        self.on_readable()
        return DropReason.DELIVERED

    def tun_do_read(self) -> int:
        """The reader has taken all there is: free it, and say how many skbs it was."""
        count = len(self._queue)
        self.read += count
        self.close()
        return count

    def close(self) -> None:
        """Free what nobody has read."""
        self._skb_memory.kfree_skbs(self._queue.take(len(self._queue)))


def _nobody() -> None:
    return
