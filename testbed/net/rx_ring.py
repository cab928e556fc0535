"""The receive descriptors of a NIC: in what order frames find their buffers, and which of them are filled again.

A ring goes round: each frame takes the buffer that has waited longest, and refills go behind all others. User Mode
Linux's driver (vector_mmsg_rx, arch/um/drivers/vector_kern.c) has a vector instead, of which every poll takes the
buffers from the first on and refills only those. So a buffer far back waits for a burst, and a frame that comes to a
descriptor whose refill failed is lost whatever the others hold.
"""

from __future__ import annotations

from testbed.net.skbuff import SkbColumns, SkbMemory, SkBuff

NAPI_POLL_WEIGHT = 64


class RxRing(SkbColumns):
    """A ring of `size` descriptors, of which it holds the buffers, in the order in which frames will take them.

    `poll_weight` frames are received at once, then descriptors are filled again; `used` have been since.
    """

    __slots__ = ("poll_weight", "size", "skb_memory", "used")

    def __init__(self, skb_memory: SkbMemory, size: int) -> None:
        super().__init__(skb_memory.rx_truesize, [], [], bytearray())
        self.skb_memory = skb_memory
        self.size = size
        self.poll_weight = NAPI_POLL_WEIGHT
        self.used = 0

    @property
    def ready(self) -> int:
        """How many of the next frames will find a buffer, one after the other."""
        return len(self.data)

    @property
    def missing(self) -> int:
        """How many descriptors a refill fills, unless memory runs out."""
        return self.size - len(self.data)

    def is_short_of(self, frames: int) -> bool:
        """Whether so many more frames can only come after a refill."""
        return len(self.data) < frames

    def poll_ended(self, *, last: bool) -> bool:
        """Whether it is time for a refill, after the `last` frame at hand or before."""
        return self.used > 0

    def refill(self, skbs: SkbColumns) -> None:
        """`skbs` are for the missing descriptors, as far as they go."""
        self.used = 0
        self.extend(skbs)

    def skip(self, frames: int) -> int:
        """With no buffer ready: how many of the next `frames` are lost."""
        return frames

    def take(self, count: int) -> SkbColumns:
        """Remove the first `count` skbs, which are ready."""
        self.used += count
        return super().take(count)

    def close(self) -> None:
        """Free all buffers."""
        self.skb_memory.kfree_columns(super().take(len(self)))


class VectorQueue(RxRing):
    """The `vector_queue` of User Mode Linux's driver: since the last refill, its first `used` descriptors have been.

    Each skb has a page behind its linear data, for the driver's headroom and margin: `pskb_trim` frees it as soon as
    the frame's length is known.
    """

    __slots__ = ("filled",)

    def __init__(self, skb_memory: SkbMemory, size: int) -> None:
        super().__init__(skb_memory, size)
        self.poll_weight = self.used = size
        self.filled = bytearray(size)

    @property
    def ready(self) -> int:
        """Buffers up to the first descriptor whose refill failed."""
        return self._next(0) - self.used

    @property
    def missing(self) -> int:
        """Descriptors used; others whose refill failed stay empty until frames have come to them."""
        return self.used

    def is_short_of(self, frames: int) -> bool:
        """Whether so many more frames can only come after a refill."""
        return self.size - self.used < frames

    def poll_ended(self, *, last: bool) -> bool:
        """Whether it is time for a refill, after the `last` frame at hand or before."""
        return self.used > 0 if last else self.used == self.size

    def refill(self, skbs: SkbColumns) -> None:
        """The next poll begins with `skbs`."""
        count = len(skbs)
        self.filled[: self.used] = b"\1" * count + bytes(self.used - count)
        self.used = 0
        self.heads[:0] = skbs.heads
        self.data[:0] = skbs.data
        self.pfmemalloc[:0] = skbs.pfmemalloc
        self.frags[:0] = skbs.frags

    def skip(self, frames: int) -> int:
        """With no buffer ready: how many of the next `frames` come to empty descriptors."""
        lost = min(frames, self._next(1) - self.used)
        self.used += lost
        return lost

    def take(self, count: int) -> SkbColumns:
        """Remove the first `count` skbs, which are ready, and trim them."""
        taken = super().take(count)
        self.skb_memory.pskb_trim(taken)
        return taken

    def popleft(self) -> SkBuff:
        """Remove the first skb, which is ready, and trim it."""
        (skb,) = self.take(1)
        return skb

    def _next(self, filled: int) -> int:
        """The first descriptor from here on that is (1) or is not (0) filled; the end if there is none."""
        found = self.filled.find(filled, self.used)
        return self.size if found < 0 else found


def rx_ring(skb_memory: SkbMemory, size: int) -> RxRing:
    """The receive descriptors of a NIC whose driver is `skb_memory`'s."""
    return VectorQueue(skb_memory, size) if skb_memory.driver == "vector" else RxRing(skb_memory, size)
