"""Copies of skbs (net/core/skbuff.c): what they cost, what they may use, and that they are marked as their original.

A copy of an skb in reserve memory is requested as receive memory is (SKB_ALLOC_RX), so that with patch 09, while there
are SOCK_MEMALLOC sockets, it may use the reserve. The header copy (`__copy_skb_header`) then takes over the mark,
whatever memory the copy itself was given.
"""

from __future__ import annotations

from testbed.mm.gfp import GFP_MEMALLOC
from testbed.mm.sched import Task
from testbed.net.skbuff import SkbMemory, SkBuff, release_data, skb_data_size
from testbed.net.sock import SocketMemory


class SkbCopier:
    """Copies the skbs of one host. The functions give None, or False, when there is no memory."""

    def __init__(self, skb_memory: SkbMemory, socket_memory: SocketMemory) -> None:
        self.skb_memory = skb_memory
        self.socket_memory = socket_memory
        self.switches = skb_memory.switches

    def skb_copy(self, skb: SkBuff, size: int, gfp_mask: int, current: Task) -> SkBuff | None:
        """`skb_copy`: `size` bytes of data, all linear; with more than the original has it is `skb_copy_expand`."""
        if skb.pfmemalloc:
            gfp_mask = self.skb_memory.rx_gfp_mask(gfp_mask, self.socket_memory.memalloc_socks)
        copy = self.skb_memory.alloc_skb(size, gfp_mask, current)
        if copy is not None and self.switches.skb_pfmemalloc:
            copy.pfmemalloc = skb.pfmemalloc
        return copy

    def pskb_copy(self, skb: SkBuff, gfp_mask: int, current: Task) -> SkBuff | None:
        """`__pskb_copy`: the linear part is copied, the fragments are shared."""
        linear = skb.data.cache.object_size - skb_data_size(0)
        copy = self.skb_copy(skb, max(0, linear), gfp_mask, current)
        if copy is not None:
            copy.frags = [frag.cache.get(frag) for frag in skb.frags]
            copy.truesize += sum(frag.cache.object_size for frag in skb.frags)
        return copy

    def pskb_expand_head(self, skb: SkBuff, room: int, gfp_mask: int, current: Task) -> bool:
        """`pskb_expand_head`: linear data of its own, with `room` more bytes, for an skb that may have clones.

        The mark stays what it was, although the new data may lie elsewhere.
        """
        if skb.pfmemalloc and self.switches.skb_pfmemalloc:
            gfp_mask |= GFP_MEMALLOC
        old_size = skb.data.cache.object_size
        cache = self.skb_memory.node.kmalloc_cache(old_size + room)
        data, _reserve = self.skb_memory.kmalloc_reserve(cache, 1, gfp_mask, current)
        if not data:
            return False
        frags = [frag.cache.get(frag) for frag in skb.frags]
        release_data(skb)
        skb.data, skb.frags, skb.shared = data[0], frags, None
        skb.truesize += cache.object_size - old_size
        return True
