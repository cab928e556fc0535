"""sk_buffs and their memory (net/core/skbuff.c): a head, data behind it, and whether the data came from the reserve.

`kmalloc_reserve` first asks without the reserve and only then, if the caller may, with it: that second attempt is
what marks an skb pfmemalloc. So receive buffers turn pfmemalloc at half of min, before GFP_ATOMIC would fail.

The NIC's driver decides what a frame is received into: one linear buffer, or a small one for its headers and a
fragment (half a page) or a page of its own for its data, which is marked by its page (patches 10 and 11). User Mode
Linux's "vector" driver has linear buffers, too, but of `alloc_skb_with_frags`: slab objects in every version, and a
page behind each that no frame reaches into. It goes when a frame comes; that it was of the reserve is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, compress, repeat
from operator import or_
from typing import Any, Final, Literal

from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC, GFP_NOMEMALLOC, GFP_NOWARN, gfp_pfmemalloc_allowed
from testbed.mm.node import Node, kmalloc_size
from testbed.mm.sched import Task
from testbed.mm.slab_common import KmemCache, Slab
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.page_frag import FragPages, NetdevPages, PageFrag, PageFragCache, WholePages
from testbed.net.snmp import NetStat
from testbed.rules import Rules

SK_BUFF_SIZE: Final = 256
SK_BUFF_FCLONE_SIZE: Final = 512
SKB_SHARED_INFO_SIZE: Final = 320
NET_SKB_PAD: Final = 64
ETH_FRAME_OVERHEAD: Final = 22
"""Ethernet header, one VLAN tag and the frame check sequence, bytes."""
RX_HEADER: Final = 128
"""Bytes of the linear part of an skb whose data lies in a fragment: room for headers."""

Data = Slab | PageFrag
"""Linear data: an object of a slab, or a fragment."""
Driver = Literal["linear", "vector", "frag", "page"]
NO_FRAGS: Final[tuple[PageFrag, ...]] = ()


class SkBuff:
    """One sk_buff. `truesize` is what the socket is charged for it, bytes.

    `data` is an object of a slab, or a fragment; it goes on in `frags`. `shared` is None for one frame without a clone.
    """

    __slots__ = ("data", "frags", "head", "pfmemalloc", "shared", "truesize")

    def __init__(
        self, head: Slab, data: Data, pfmemalloc: bool, truesize: int, frags: Sequence[PageFrag] = NO_FRAGS
    ) -> None:
        self.head = head
        self.data: Any = data
        self.frags = frags
        self.pfmemalloc = pfmemalloc
        self.truesize = truesize
        self.shared: SharedInfo | None = None

    @property
    def gso_segs(self) -> int:
        """How many wire frames it holds."""
        return 1 if self.shared is None else self.shared.gso_segs


class SharedInfo:
    """`skb_shared_info`: how many clones use the same data (`dataref`), and what was merged behind it (`frag_list`)."""

    __slots__ = ("frag_list", "gso_segs", "users")

    def __init__(self) -> None:
        self.users = 1
        self.gso_segs = 1
        self.frag_list: list[SkBuff] = []


class SkbColumns:
    """Receive skbs in order, a column for each thing that differs: `heads`, `data`, and a byte that is 1 if pfmemalloc.

    `data` holds objects of the receive cache, `frags` a fragment for each skb, or nothing where all data is linear.
    All skbs have the same truesize and no clones. An `SkBuff` is made of one only when somebody needs it by itself.
    """

    __slots__ = ("data", "frags", "heads", "pfmemalloc", "truesize")

    def __init__(
        self,
        truesize: int,
        heads: list[Slab],
        data: list[Any],
        pfmemalloc: bytearray,
        frags: list[PageFrag] | None = None,
    ) -> None:
        self.truesize = truesize
        self.heads = heads
        self.data = data
        self.pfmemalloc = pfmemalloc
        self.frags: list[PageFrag] = [] if frags is None else frags

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[SkBuff]:
        truesize = self.truesize
        frags = zip(self.frags, strict=True) if self.frags else repeat(NO_FRAGS, len(self.data))
        for head, data, pfmemalloc, frag in zip(self.heads, self.data, self.pfmemalloc, frags, strict=True):
            yield SkBuff(head, data, pfmemalloc == 1, truesize, frag)

    def extend(self, more: SkbColumns) -> None:
        """Put the skbs of `more` at the end."""
        self.heads += more.heads
        self.data += more.data
        self.pfmemalloc += more.pfmemalloc
        self.frags += more.frags

    def take(self, count: int) -> SkbColumns:
        """Remove the first `count` skbs (or all, if there are fewer)."""
        taken = SkbColumns(self.truesize, self.heads[:count], self.data[:count], self.pfmemalloc[:count])
        del self.heads[:count], self.data[:count], self.pfmemalloc[:count]
        if self.frags:
            taken.frags = self.frags[:count]
            del self.frags[:count]
        return taken

    def popleft(self) -> SkBuff:
        """Remove the first skb."""
        frags = (self.frags.pop(0),) if self.frags else NO_FRAGS
        return SkBuff(self.heads.pop(0), self.data.pop(0), self.pfmemalloc.pop(0) == 1, self.truesize, frags)

    def chosen(self, selectors: Sequence[object]) -> SkbColumns:
        """The skbs whose selector is true."""
        return SkbColumns(
            self.truesize,
            list(compress(self.heads, selectors)),
            list(compress(self.data, selectors)),
            bytearray(compress(self.pfmemalloc, selectors)),
            list(compress(self.frags, selectors)) if self.frags else None,
        )


def skb_data_size(payload: int) -> int:
    """Bytes that kmalloc is asked for to hold a linear buffer of `payload` bytes and its skb_shared_info."""
    aligned = (payload + NET_SKB_PAD + 63) & ~63
    return aligned + SKB_SHARED_INFO_SIZE


def rx_sizes(driver: Driver, mtu: int) -> tuple[int, int]:
    """Bytes of linear data and of a fragment that a driver asks for, to receive a frame into."""
    frame = mtu + ETH_FRAME_OVERHEAD
    if driver in ("linear", "vector"):
        return skb_data_size(frame), 0
    half = driver == "frag" and frame <= PAGE_SIZE // 2
    return skb_data_size(RX_HEADER), PAGE_SIZE // 2 if half else PAGE_SIZE


def rx_fragment(driver: Driver, linear: int, rules: Rules) -> bool:
    """Whether `netdev_alloc_skb` cuts so many bytes of linear data from a page (3.5); more than one holds is kmalloc's.
    """
    return driver != "vector" and rules.rx_buffer == "fragment" and linear <= PAGE_SIZE


def rx_truesize(driver: Driver, mtu: int, rules: Rules) -> int:
    """What a socket is charged for one received frame, bytes."""
    linear, frag = rx_sizes(driver, mtu)
    if not rx_fragment(driver, linear, rules):
        linear = kmalloc_size(linear)
    return SK_BUFF_SIZE + linear + frag


def rx_buffer_size(driver: Driver, mtu: int, rules: Rules) -> int:
    """What one descriptor's skb takes before a frame has come, bytes."""
    return rx_truesize(driver, mtu, rules) + (PAGE_SIZE if driver == "vector" else 0)


class SkbMemory:
    """Allocates and frees the skbs of one host.

    Args:
        mtu: the link's MTU, bytes; receive buffers hold one frame of it.
        driver: what the NIC's driver receives into.
    """

    def __init__(self, node: Node, netstat: NetStat, mtu: int, driver: Driver = "linear") -> None:
        self.node = node
        self.netstat = netstat
        self.switches = node.switches
        self.driver = driver
        self.skbuff_head_cache = node.kmem_cache_create("skbuff_head_cache", SK_BUFF_SIZE)
        self.skbuff_fclone_cache = node.kmem_cache_create("skbuff_fclone_cache", SK_BUFF_FCLONE_SIZE)
        linear, frag = rx_sizes(driver, mtu)
        self.frag_pages: FragPages | None = None
        if driver == "frag":
            self.frag_pages = PageFragCache(frag, node.page_alloc)
        elif driver == "page":
            self.frag_pages = NetdevPages(node.page_alloc, netstat)
        elif driver == "vector":
            self.frag_pages = WholePages(node.page_alloc)
        self.rx_cache: KmemCache | PageFragCache = node.kmalloc_cache(linear)
        if rx_fragment(driver, linear, self.switches.rules):
            self.rx_cache = PageFragCache(linear, node.page_alloc)
        self.rx_truesize = rx_truesize(driver, mtu, self.switches.rules)

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
        if not missing:
            return objects, 0
        if not gfp_pfmemalloc_allowed(gfp_mask, current, self.switches):
            self.node.page_alloc.count_refusal(gfp_mask, current)
            return objects, 0
        reserve = cache.alloc_bulk(missing, gfp_mask, current)
        objects += reserve
        return objects, len(reserve)

    def rx_gfp_mask(self, gfp_mask: int, memalloc_socks: int) -> int:
        """SKB_ALLOC_RX: with patch 09, and while there are SOCK_MEMALLOC sockets, the reserve may be used."""
        return gfp_mask | GFP_MEMALLOC if memalloc_socks and self.switches.skb_pfmemalloc else gfp_mask

    def alloc_rx_skbs(self, count: int, gfp_mask: int, current: Task, memalloc_socks: int) -> SkbColumns:
        """`netdev_alloc_skb`, `dev_alloc_skb` (SKB_ALLOC_RX), up to `count` times: fewer when memory runs out.

        When memory is low and new pages are needed they are made a slab of heads at a time: heads for the whole ring
        would leave none for data. Nor must fragments leave none for heads: what fails for many is tried again for
        fewer.
        """
        gfp_mask = self.rx_gfp_mask(gfp_mask, memalloc_socks)
        allowed = gfp_pfmemalloc_allowed(gfp_mask, current, self.switches)
        zone = self.node.zone
        plenty = zone.nr_free_pages - 2 * count > zone.watermarks.min or self._has_listed(count, allowed)
        chunk = count if plenty else self.skbuff_head_cache.objects_per_slab
        skbs = self.no_rx_skbs()
        while len(skbs) < count:
            wanted = min(chunk, count - len(skbs))
            taken = self._alloc_rx_chunk(wanted, gfp_mask, current)
            skbs.extend(taken)
            if len(taken) == wanted:
                continue
            if self.frag_pages is None or chunk == 1:
                break
            chunk //= 2
        failed = count - len(skbs)
        self.netstat.alloc_rx_buff += len(skbs)
        self.netstat.alloc_rx_buff_failed += failed
        if not self.switches.skb_pfmemalloc:
            self.netstat.rx_skb_reserve_refused += failed
        return skbs

    def _has_listed(self, count: int, allowed: bool) -> bool:
        """Is there memory for so many receive skbs without a new page? Data is first asked for without the reserve."""
        if self.frag_pages is not None and not self.frag_pages.has_listed(count, allowed=allowed):
            return False
        heads = self.skbuff_head_cache.has_listed(count, allowed=allowed)
        return heads and self.rx_cache.has_listed(count, allowed=allowed and not self.switches.skb_pfmemalloc)

    def _alloc_rx_chunk(self, count: int, gfp_mask: int, current: Task) -> SkbColumns:
        pages = self.frag_pages
        if pages is None:
            return self._alloc_rx_linear(count, gfp_mask, current)
        if self.driver == "vector":
            return self._alloc_skb_with_frags(count, pages, gfp_mask, current)
        return self._alloc_rx_frags(count, pages, gfp_mask, current)

    def _alloc_rx_linear(self, count: int, gfp_mask: int, current: Task) -> SkbColumns:
        heads = self.skbuff_head_cache.alloc_bulk(count, gfp_mask, current)
        data, pfmemalloc = self._alloc_rx_data(len(heads), gfp_mask, current)
        if len(data) < len(heads):
            self.skbuff_head_cache.free_bulk(heads[len(data) :])
            del heads[len(data) :]
        return SkbColumns(self.rx_truesize, heads, data, pfmemalloc)

    def _alloc_rx_data(self, count: int, gfp_mask: int, current: Task) -> tuple[list[Any], bytearray]:
        """Linear receive data, up to `count` times, and a byte for each that is 1 if the skb is to be marked."""
        cache = self.rx_cache
        if not isinstance(cache, PageFragCache):
            objects, reserve = self.kmalloc_reserve(cache, count, gfp_mask, current)
            self.netstat.rx_skb_pfmemalloc += reserve
            return objects, bytearray(len(objects) - reserve) + b"\1" * reserve
        frags = cache.alloc_bulk(count, gfp_mask, current)
        marks = bytearray([frag.page.pfmemalloc for frag in frags])
        self.netstat.rx_skb_pfmemalloc += marks.count(1)
        build_skb = self.switches.skb_pfmemalloc and self.switches.rules.build_skb_pfmemalloc
        return frags, marks if build_skb else bytearray(len(frags))

    def _alloc_rx_frags(self, count: int, pages: FragPages, gfp_mask: int, current: Task) -> SkbColumns:
        """Fragments first, then as many skbs to attach them to, each marked for its own."""
        frags = pages.alloc_bulk(count, GFP_ATOMIC if isinstance(pages, NetdevPages) else gfp_mask, current)
        skbs = self._alloc_rx_linear(len(frags), gfp_mask, current)
        pages.free_bulk(frags[len(skbs) :])
        del frags[len(skbs) :]
        self._attach(skbs, frags, pages)
        return skbs

    def _alloc_skb_with_frags(self, count: int, pages: FragPages, gfp_mask: int, current: Task) -> SkbColumns:
        """`alloc_skb_with_frags`: skbs first, then a page behind each."""
        skbs = self._alloc_rx_linear(count, gfp_mask, current)
        frags = pages.alloc_bulk(len(skbs), gfp_mask, current)
        whole = skbs.take(len(frags))
        self.kfree_columns(skbs)
        self._attach(whole, frags, pages)
        return whole

    def _attach(self, skbs: SkbColumns, frags: list[PageFrag], pages: FragPages) -> None:
        """A fragment for each skb, which is marked if its own is in the reserve."""
        skbs.frags = frags
        reserve = bytearray([frag.pfmemalloc for frag in frags])
        if 1 in reserve and self._frags_mark(pages, reserve.count(1)):
            skbs.pfmemalloc = bytearray(map(or_, skbs.pfmemalloc, reserve))

    def _frags_mark(self, pages: FragPages, reserve: int) -> bool:
        """Whether an skb is marked for its fragment (`skb_fill_page_desc`, patch 10; a driver's own page, patch 11)."""
        if self.switches.skb_frag_pfmemalloc:
            self.netstat.skb_frag_pfmemalloc += reserve
            return True
        self.netstat.skb_frag_unmarked += reserve
        return isinstance(pages, NetdevPages) and self.switches.netdev_page_pfmemalloc

    def pskb_trim(self, skbs: SkbColumns) -> None:
        """`pskb_trim` to the linear data of received frames: the pages behind it are freed, marks stay."""
        if self.frag_pages is not None:
            self.frag_pages.free_bulk(skbs.frags)
            skbs.frags = []

    def no_rx_skbs(self) -> SkbColumns:
        """An empty list of receive skbs."""
        return SkbColumns(self.rx_truesize, [], [], bytearray())

    def skb_fill_page_desc(self, skb: SkBuff, frag: PageFrag) -> None:
        """`__skb_fill_page_desc`: attach a fragment; one from the reserve marks the skb (patch 10), none unmarks it."""
        skb.frags = (*skb.frags, frag)
        skb.truesize += frag.cache.object_size
        if frag.pfmemalloc and self._frags_mark(frag.cache, 1):
            skb.pfmemalloc = True

    def skb_clone(self, skb: SkBuff, gfp_mask: int, current: Task) -> SkBuff | None:
        """`skb_clone`: a second head on the same data, pfmemalloc like the first (`__copy_skb_header`)."""
        if skb.pfmemalloc and self.switches.skb_pfmemalloc:
            gfp_mask |= GFP_MEMALLOC
        head = self.skbuff_head_cache.alloc(gfp_mask, current)
        if head is None:
            return None
        if skb.shared is None:
            skb.shared = SharedInfo()
        skb.shared.users += 1
        clone = SkBuff(head, skb.data, skb.pfmemalloc, skb.truesize, skb.frags)
        clone.shared = skb.shared
        return clone

    def kfree_skb(self, skb: SkBuff) -> None:
        """`kfree_skb`: free the head, and the data with its last user."""
        self.skbuff_head_cache.free(skb.head)
        release_data(skb)

    def kfree_skbs(self, parts: Sequence[SkBuff | SkbColumns]) -> None:
        """`kfree_skb` for many; those whose data nobody else uses go together."""
        columns = [part for part in parts if isinstance(part, SkbColumns)]
        if len(columns) == len(parts):
            received = self.no_rx_skbs()
            for part in columns:
                received.extend(part)
            self.kfree_columns(received)
            return
        rx_cache = self.rx_cache
        skbs = list(chain.from_iterable([part] if isinstance(part, SkBuff) else part for part in parts))
        if any(skb.shared is not None or skb.data.cache is not rx_cache for skb in skbs):
            for skb in skbs:
                self.kfree_skb(skb)
            return
        self.skbuff_head_cache.free_bulk([skb.head for skb in skbs])
        rx_cache.free_bulk([skb.data for skb in skbs])
        put_frags([frag for skb in skbs for frag in skb.frags])

    def kfree_columns(self, skbs: SkbColumns) -> None:
        """`kfree_skb` for receive skbs."""
        self.skbuff_head_cache.free_bulk(skbs.heads)
        self.rx_cache.free_bulk(skbs.data)
        if self.frag_pages is not None:
            self.frag_pages.free_bulk(skbs.frags)

    def drain(self) -> None:
        """Give up the pages that fragments are being cut from."""
        for pages in (self.rx_cache, self.frag_pages):
            if isinstance(pages, FragPages):
                pages.drain()


def release_data(skb: SkBuff) -> None:
    """`skb_release_data`: one user less of an skb's data and fragments."""
    shared = skb.shared
    if shared is not None:
        shared.users -= 1
        if shared.users:
            return
        for merged in shared.frag_list:
            merged.head.cache.free(merged.head)
            release_data(merged)
    skb.data.cache.free(skb.data)
    put_frags(skb.frags)


def put_frags(frags: Sequence[PageFrag]) -> None:
    """`put_page` for fragments of any kind."""
    for cache in dict.fromkeys([frag.cache for frag in frags]):
        cache.free_bulk([frag for frag in frags if frag.cache is cache])
