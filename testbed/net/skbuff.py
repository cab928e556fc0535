"""sk_buffs and their memory (net/core/skbuff.c): a head, data behind it, and whether the data came from the reserve.

`kmalloc_reserve` first asks without the reserve and only then, if the caller may, with it: that second attempt is
what marks an skb pfmemalloc. So receive buffers turn pfmemalloc at half of min, before GFP_ATOMIC would fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Final

from testbed.mm.gfp import GFP_MEMALLOC, GFP_NOMEMALLOC, GFP_NOWARN, gfp_pfmemalloc_allowed
from testbed.mm.node import Node
from testbed.mm.sched import Task
from testbed.mm.slab_common import KmemCache, Slab
from testbed.net.snmp import NetStat

SK_BUFF_SIZE: Final = 256
SK_BUFF_FCLONE_SIZE: Final = 512
SKB_SHARED_INFO_SIZE: Final = 320
NET_SKB_PAD: Final = 64
ETH_FRAME_OVERHEAD: Final = 22
"""Ethernet header, one VLAN tag and the frame check sequence, bytes."""


class SkBuff:
    """One sk_buff. `truesize` is what the socket is charged for it, bytes; `users` counts the clones of its data."""

    __slots__ = ("data", "head", "origin", "pfmemalloc", "truesize", "users")

    def __init__(self, head: Slab, data: Slab, pfmemalloc: bool, truesize: int) -> None:
        self.head = head
        self.data = data
        self.pfmemalloc = pfmemalloc
        self.truesize = truesize
        self.users = 1
        self.origin: SkBuff | None = None


class SkbColumns:
    """Receive skbs in order, a column for each thing that differs: `heads`, `data`, and a byte that is 1 if pfmemalloc.

    All have the same truesize and no clones. An `SkBuff` is made of one only when somebody needs it by itself.
    """

    __slots__ = ("data", "heads", "pfmemalloc", "truesize")

    def __init__(self, truesize: int, heads: list[Slab], data: list[Slab], pfmemalloc: bytearray) -> None:
        self.truesize = truesize
        self.heads = heads
        self.data = data
        self.pfmemalloc = pfmemalloc

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[SkBuff]:
        truesize = self.truesize
        for head, data, pfmemalloc in zip(self.heads, self.data, self.pfmemalloc, strict=True):
            yield SkBuff(head, data, pfmemalloc == 1, truesize)

    def extend(self, more: SkbColumns) -> None:
        """Put the skbs of `more` at the end."""
        self.heads += more.heads
        self.data += more.data
        self.pfmemalloc += more.pfmemalloc

    def take(self, count: int) -> SkbColumns:
        """Remove the first `count` skbs (or all, if there are fewer)."""
        taken = SkbColumns(self.truesize, self.heads[:count], self.data[:count], self.pfmemalloc[:count])
        del self.heads[:count], self.data[:count], self.pfmemalloc[:count]
        return taken

    def popleft(self) -> SkBuff:
        """Remove the first skb."""
        return SkBuff(self.heads.pop(0), self.data.pop(0), self.pfmemalloc.pop(0) == 1, self.truesize)

    def chosen(self, selectors: Iterable[object]) -> SkbColumns:
        """The skbs whose selector is true."""
        selectors = list(selectors)
        return SkbColumns(
            self.truesize,
            list(compress(self.heads, selectors)),
            list(compress(self.data, selectors)),
            bytearray(compress(self.pfmemalloc, selectors)),
        )


def skb_data_size(payload: int) -> int:
    """Bytes that kmalloc is asked for to hold a linear buffer of `payload` bytes and its skb_shared_info."""
    aligned = (payload + NET_SKB_PAD + 63) & ~63
    return aligned + SKB_SHARED_INFO_SIZE


class SkbMemory:
    """Allocates and frees the skbs of one host.

    Args:
        mtu: the link's MTU, bytes; receive buffers hold one frame of it.
    """

    def __init__(self, node: Node, netstat: NetStat, mtu: int) -> None:
        self.node = node
        self.netstat = netstat
        self.switches = node.switches
        self.skbuff_head_cache = node.kmem_cache_create("skbuff_head_cache", SK_BUFF_SIZE)
        self.skbuff_fclone_cache = node.kmem_cache_create("skbuff_fclone_cache", SK_BUFF_FCLONE_SIZE)
        self.rx_cache = node.kmalloc_cache(skb_data_size(mtu + ETH_FRAME_OVERHEAD))
        self.rx_truesize = self.rx_cache.object_size + SK_BUFF_SIZE

    def alloc_skb(self, size: int, gfp_mask: int, current: Task) -> SkBuff | None:
        """`__alloc_skb` for `size` bytes of linear data; None when there is no memory."""
        head = self.skbuff_head_cache.alloc(gfp_mask, current)
        if head is None:
            return None
        cache = self.node.kmalloc_cache(skb_data_size(size))
        data, pfmemalloc = self.kmalloc_reserve(cache, 1, gfp_mask, current)
        if not data:
            self.skbuff_head_cache.free(head)
            return None
        return SkBuff(head, data[0], pfmemalloc == 1, cache.object_size + SK_BUFF_SIZE)

    def kmalloc_reserve(
        self, cache: KmemCache, count: int, gfp_mask: int, current: Task
    ) -> tuple[list[Slab], int]:
        """Patch 09's `kmalloc_reserve`, `count` times: the objects, and how many of them (the last) are pfmemalloc."""
        if not self.switches.skb_pfmemalloc:
            return cache.alloc_bulk(count, gfp_mask, current), 0
        objects = cache.alloc_bulk(count, gfp_mask | GFP_NOMEMALLOC | GFP_NOWARN, current)
        missing = count - len(objects)
        if not missing or not gfp_pfmemalloc_allowed(gfp_mask, current, self.switches):
            return objects, 0
        reserve = cache.alloc_bulk(missing, gfp_mask, current)
        objects += reserve
        return objects, len(reserve)

    def alloc_rx_skbs(self, count: int, gfp_mask: int, current: Task, memalloc_socks: int) -> SkbColumns:
        """`netdev_alloc_skb` (SKB_ALLOC_RX), up to `count` times: fewer when memory runs out.

        With patch 09, and while there are SOCK_MEMALLOC sockets, these requests carry __GFP_MEMALLOC. When memory is
        low they are made a slab of heads at a time: heads for the whole ring would leave none for any data.
        """
        rx_memalloc = self.switches.skb_pfmemalloc and memalloc_socks > 0
        if rx_memalloc:
            gfp_mask |= GFP_MEMALLOC
        zone = self.node.zone
        plenty = zone.nr_free_pages - count > zone.watermarks.low
        chunk = count if plenty else self.skbuff_head_cache.objects_per_slab
        skbs = self.no_rx_skbs()
        while len(skbs) < count:
            wanted = min(chunk, count - len(skbs))
            taken = self._alloc_rx_chunk(wanted, gfp_mask, current)
            skbs.extend(taken)
            if len(taken) < wanted:
                break
        failed = count - len(skbs)
        self.netstat.alloc_rx_buff += len(skbs)
        self.netstat.alloc_rx_buff_failed += failed
        if not self.switches.skb_pfmemalloc:
            self.netstat.rx_skb_reserve_refused += failed
        return skbs

    def _alloc_rx_chunk(self, count: int, gfp_mask: int, current: Task) -> SkbColumns:
        heads = self.skbuff_head_cache.alloc_bulk(count, gfp_mask, current)
        data, pfmemalloc = self.kmalloc_reserve(self.rx_cache, len(heads), gfp_mask, current)
        self.skbuff_head_cache.free_bulk(heads[len(data) :])
        del heads[len(data) :]
        self.netstat.rx_skb_pfmemalloc += pfmemalloc
        ordinary = len(data) - pfmemalloc
        return SkbColumns(self.rx_truesize, heads, data, bytearray(ordinary) + b"\1" * pfmemalloc)

    def no_rx_skbs(self) -> SkbColumns:
        """An empty list of receive skbs."""
        return SkbColumns(self.rx_truesize, [], [], bytearray())

    def skb_clone(self, skb: SkBuff, gfp_mask: int, current: Task) -> SkBuff | None:
        """`skb_clone`: a second head on the same data, pfmemalloc like the first."""
        if skb.pfmemalloc and self.switches.skb_pfmemalloc:
            gfp_mask |= GFP_MEMALLOC
        head = self.skbuff_head_cache.alloc(gfp_mask, current)
        if head is None:
            return None
        owner = skb.origin or skb
        owner.users += 1
        clone = SkBuff(head, skb.data, skb.pfmemalloc, skb.truesize)
        clone.origin = owner
        return clone

    def kfree_skb(self, skb: SkBuff) -> None:
        """`kfree_skb`: free the head, and the data with its last user."""
        self.skbuff_head_cache.free(skb.head)
        owner = skb.origin or skb
        owner.users -= 1
        if not owner.users:
            owner.data.cache.free(owner.data)

    def kfree_skbs(self, skbs: Sequence[SkBuff]) -> None:
        """`kfree_skb` for many; those whose data nobody else uses go together."""
        rx_cache = self.rx_cache
        if any(skb.users != 1 or skb.origin is not None or skb.data.cache is not rx_cache for skb in skbs):
            for skb in skbs:
                self.kfree_skb(skb)
            return
        self.skbuff_head_cache.free_bulk([skb.head for skb in skbs])
        rx_cache.free_bulk([skb.data for skb in skbs])

    def kfree_columns(self, skbs: SkbColumns) -> None:
        """`kfree_skb` for receive skbs."""
        self.skbuff_head_cache.free_bulk(skbs.heads)
        self.rx_cache.free_bulk(skbs.data)
