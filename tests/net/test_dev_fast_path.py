"""The receive path's short cuts against the plain path: whatever arrives, both must leave the same state behind.

Two hosts get the same frames, one after the other: one as it is, one whose short cuts are all switched off (frames
one by one, slab objects one by one, pages one by one). Afterwards every counter, queue, cache and list must agree.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.mm.gfp import GFP_NOWARN
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab
from testbed.mm.slub import KmemCache
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.backlog import KernelBug
from testbed.net.dev import DELIVERED, ETH_P_ARP, ETH_P_IP, ETH_P_IPX, NetDevice, Receiver, RxBatch, Tally
from testbed.net.page_frag import PageFrag, PageFragCache
from testbed.net.sk_mem import Mem, Proto
from testbed.net.skbuff import Driver, SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.patches import PATCHES, Switches
from testbed.rules import LINUX_3_6, V9

PAGES = 600
MIN_FREE_KBYTES = 512
GSO_SIZE = 1448
DRIVERS: tuple[Driver, ...] = ("linear", "linear", "frag", "page")
BUILD_SKB = replace(LINUX_3_6, build_skb_pfmemalloc=True, page_frag_recovery=True)
KERNELS = (V9, V9, LINUX_3_6, BUILD_SKB)
APPLICATION = Task("application")


class NoDisk:
    async def submit_write(self, pages: Sequence[Page], nice: int) -> None:
        raise NotImplementedError

    async def submit_read(self, pages: Sequence[Page], nice: int) -> None:
        raise NotImplementedError


class PlainCache(KmemCache):
    """Objects one by one."""

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[Slab]:
        taken: list[Slab] = []
        while len(taken) < count:
            slab = self.alloc(gfp_mask, current)
            if slab is None:
                break
            taken.append(slab)
        return taken

    def free_bulk(self, slabs: list[Slab]) -> None:
        for slab in slabs:
            self.free(slab)


class PlainFragCache(PageFragCache):
    """Fragments one by one."""

    def alloc_bulk(self, count: int, gfp_mask: int, current: Task) -> list[PageFrag]:
        taken: list[PageFrag] = []
        while len(taken) < count:
            one = super().alloc_bulk(1, gfp_mask | GFP_NOWARN, current)
            if not one:
                self.page_alloc.vmstat.page_allocation_failure += not gfp_mask & GFP_NOWARN
                break
            taken += one
        return taken

    def free_bulk(self, frags: list[PageFrag]) -> None:
        for frag in frags:
            super().free_bulk([frag])


class PlainNode(Node):
    def kmem_cache_create(self, name: str, object_size: int) -> KmemCache:
        cache = self.caches[name] = PlainCache(name, object_size, self.page_alloc)
        return cache


class PlainDevice(NetDevice):
    """Frames one by one, segments one by one."""

    def _poll_kinds(self, *_: Any) -> bool:
        return False

    def _tcp_v4_rcv_whole(self, *_: Any) -> bool:
        return False

    def _single_datagrams(self, batch: RxBatch) -> bytes:
        return bytes(len(batch))

    def _acks(self, *_: Any) -> int:
        return 0


class Host:
    """A machine with a NIC, a swap connection, a memalloc socket and some plain ones."""

    def __init__(
        self,
        switches: Switches,
        ring: int,
        *,
        plain: bool,
        driver: Driver = "linear",
        udp_mem: Mem = (9999, 9999, 9999),
    ) -> None:
        node_class, device_class = (PlainNode, PlainDevice) if plain else (Node, NetDevice)
        self.node = node_class(
            memoryview(bytearray(PAGES * PAGE_SIZE)), NoDisk(), 64, switches, min_free_kbytes=MIN_FREE_KBYTES
        )
        self.netstat = NetStat()
        self.socket_memory = SocketMemory(switches, self.netstat)
        self.skb_memory = SkbMemory(self.node, self.netstat, 1500, driver)
        if plain:
            self._cut_one_by_one()
        self.tallies: list[Tally] = []
        self.device = device_class(
            self.skb_memory, self.socket_memory, self.netstat, ring, lambda counts: self.tallies.append(dict(counts))
        )
        self.tcp = Proto("TCP", (20, 30, 40), switches.rules, has_memory_pressure=True)
        self.udp = Proto("UDP", udp_mem, switches.rules, has_memory_pressure=False)
        self.swap = TcpReceiveQueue(Sock("swap", 120_000, swap=True, prot=self.tcp), self.skb_memory)
        sizes = {"tiny": 5_000, "small": 60_000, "big": 1 << 30, "entitled": 90_000}
        self.sockets = [Sock(name, size, prot=self.udp) for name, size in sizes.items()]
        self.kinds: list[tuple[int, Receiver, str]] = [
            (ETH_P_IP, self.swap, "swap"),
            *((ETH_P_IP, sk, sk.name) for sk in self.sockets),
            (ETH_P_IP, self.sockets[0], "another name"),
            (ETH_P_ARP, None, "arp"),
            (ETH_P_IPX, None, "ipx"),
            (ETH_P_IPX, self.sockets[2], "ipx to a socket"),
        ]
        self.tap = Sock("tap", 40_000)
        self.held: list[Page] = []
        self.stream = 0

    def _cut_one_by_one(self) -> None:
        memory = self.skb_memory
        if isinstance(memory.rx_cache, PageFragCache):
            memory.rx_cache = PlainFragCache(memory.rx_cache.object_size, self.node.page_alloc)
        if isinstance(memory.frag_pages, PageFragCache):
            memory.frag_pages = PlainFragCache(memory.frag_pages.object_size, self.node.page_alloc)

    def batch(self, frames: Sequence[tuple[int, int, int]], *, gso: bool, tcp: bool) -> RxBatch:
        """Frames given as (kind, segments, offset of their data's end)."""
        kinds = [self.kinds[kind] for kind, _, _ in frames]
        return RxBatch(
            [protocol for protocol, _, _ in kinds],
            [receiver for _, receiver, _ in kinds],
            [name for _, _, name in kinds],
            [segments for _, segments, _ in frames] if gso else None,
            [end for _, _, end in frames] if tcp else None,
            [GSO_SIZE] * len(frames) if gso else None,
        )

    def hold(self, free: int) -> None:
        """Leave exactly so many pages free, if that many can be had."""
        pages = self.node.zone.free
        while len(pages) > free:
            self.held += pages.take(1)
        while self.held and len(pages) < free:
            pages.give([self.held.pop()])

    def state(self) -> dict[str, Any]:
        return {
            "netstat": self.netstat.snapshot(),
            "vmstat": self.node.vmstat.snapshot(),
            "free": len(self.node.zone.free),
            "least free": self.node.page_alloc.nr_free_min,
            "ring": [(skb.pfmemalloc, [frag.pfmemalloc for frag in skb.frags]) for skb in self.device.ring],
            "sockets": [
                (sk.rmem_alloc, [(skb.pfmemalloc, skb.truesize) for skb in sk.receive_queue])
                for sk in (*self.sockets, self.tap)
            ],
            "swap": (len(self.swap), self.swap.sk.rmem_alloc, self.swap.copied_seq),
            "allocated": [(prot.memory_allocated, prot.memory_pressures) for prot in (self.tcp, self.udp)],
            "owned": [
                (sk.owner is None, sk.backlog is not None and len(sk.backlog)) for sk in (*self.sockets, self.swap.sk)
            ],
            "last": self.device.last_pfmemalloc,
            "tallies": self.tallies,
            "caches": [cache_state(cache) for cache in self.node.caches.values() if isinstance(cache, KmemCache)],
        }


def cache_state(cache: KmemCache) -> tuple[Any, ...]:
    cpu = cache._cpu_slab
    return (
        cache.nr_slabs,
        cache.inuse,
        None if cpu is None else (cpu.free, cpu.pfmemalloc),
        [(slab.free, slab.pfmemalloc) for slab in cache._cpu_partial],
        cache._pobjects[:],
        [(slab.free, slab.pfmemalloc) for slab in cache._partial],
    )


def switches_of(rng: random.Random) -> Switches:
    off = rng.sample(sorted(PATCHES), rng.choice([0, 0, 0, 1, 2]))
    return Switches.of(frozenset(PATCHES) - set(off), rng.choice(KERNELS))


def frames_of(rng: random.Random, hosts: list[Host], *, gso: bool, tcp: bool) -> list[tuple[int, int, int]]:
    """Random frames, most of few kinds; the swap connection's mostly in order, some again, some ahead of a hole."""
    nr_kinds = len(hosts[0].kinds)
    likely = rng.sample(range(nr_kinds), rng.choice([1, 1, 2, 4]))
    frames = []
    for _ in range(rng.choice([1, 5, 64, 130, 200])):
        kind = rng.choice(likely) if rng.random() < 0.95 else rng.randrange(nr_kinds)
        if kind == 0 and not tcp:
            kind = 1
        segments = rng.choice([1, 2, 17, 45]) if gso and (kind == 0 or rng.random() < 0.01) else 1
        end = 0
        if kind == 0 and rng.random() < 0.9:
            end = hosts[0].stream + segments * GSO_SIZE
            if rng.random() < 0.9:
                for host in hosts:
                    host.stream = end
            if rng.random() < 0.1:
                end -= 100_000
        frames.append((kind, segments, end))
    return frames


def one_step(rng: random.Random, hosts: list[Host]) -> None:
    """The same thing happens to both hosts."""
    what = rng.random()
    if what < 0.15:
        free = rng.choice([0, 3, 20, 47, 48, 63, 64, 65, 100, 129, 200, 400])
        for host in hosts:
            host.hold(free)
    elif what < 0.3:
        size = rng.choice([500, GSO_SIZE * 20, 200_000])
        for host in hosts:
            host.swap.copied(size)
    elif what < 0.45:
        number, share = rng.randrange(len(hosts[0].sockets)), rng.random()
        for host in hosts:
            sk = host.sockets[number]
            host.device.read_datagrams(sk, int(len(sk.receive_queue) * share))
    elif what < 0.55:
        number = rng.randrange(len(hosts[0].sockets) + 1)
        for host in hosts:
            own_or_release([*host.sockets, host.swap.sk][number])
    else:
        tcp = rng.random() < 0.6
        gso = tcp and rng.random() < 0.6
        frames = frames_of(rng, hosts, gso=gso, tcp=tcp)
        batches = [host.batch(frames, gso=gso, tcp=tcp) for host in hosts]
        for host, batch in zip(hosts, batches, strict=True):
            host.device.receive(batch)
        assert batches[0].verdicts == batches[1].verdicts
        assert batches[0].cut == batches[1].cut
        assert len(batches[0].verdicts) == len(frames)


def own_or_release(sk: Sock) -> None:
    if sk.owner is None:
        sk.lock_sock(APPLICATION)
        return
    with contextlib.suppress(KernelBug):
        sk.release_sock(APPLICATION)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_both_paths_agree(seed: int) -> None:
    rng = random.Random(seed)
    switches, ring = switches_of(rng), rng.choice([16, 64, 128, 200])
    driver = rng.choice(DRIVERS)
    udp_mem = rng.choice([(9999, 9999, 9999), (40, 60, 80), (3, 4, 6)])
    hosts = [Host(switches, ring, plain=plain, driver=driver, udp_mem=udp_mem) for plain in (False, True)]
    memalloc, tapped, at_start = rng.random() < 0.8, rng.random() < 0.1, rng.choice([600, 300, 64, 50])
    for host in hosts:
        if memalloc:
            host.socket_memory.sk_set_memalloc(host.swap.sk)
            host.socket_memory.sk_set_memalloc(host.sockets[3])
        if tapped:
            host.device.ptype_all.append(host.tap)
        host.hold(at_start)
        host.device.alloc_rx_buffers()
    for _ in range(25):
        one_step(rng, hosts)
        assert hosts[0].state() == hosts[1].state()
    for host in hosts:
        host.swap.purge()
        for sk in (*host.sockets, host.swap.sk):
            if sk.backlog is not None:
                sk.backlog.drop(host.skb_memory.kfree_skb)
        for sk in host.sockets:
            host.device.read_datagrams(sk, len(sk.receive_queue))
        host.device.close()
        assert not host.node.caches["skbuff_head_cache"].inuse
        assert host.tcp.memory_allocated == host.udp.memory_allocated == 0
        host.node.page_alloc.free_pages(host.held)
        host.held.clear()
    assert all(host.node.pages_leaked() == 0 for host in hosts)


@pytest.mark.parametrize("names", [128, 129, 300])
def test_frames_of_many_kinds(names: int) -> None:
    hosts = [Host(Switches.of(frozenset(PATCHES)), 64, plain=plain) for plain in (False, True)]
    for host in hosts:
        host.kinds = [(ETH_P_IP, None, str(number)) for number in range(names)]
        host.device.receive(host.batch([(number, 1, 0) for number in range(names)] * 2, gso=False, tcp=False))
    assert hosts[0].tallies == [{(DELIVERED, str(number), False): 2 for number in range(names)}]
    assert hosts[0].state() == hosts[1].state()


@pytest.mark.parametrize("free", [0, 1, 47, 48, 49, 64, 65, 128, 129, 160, 161, 500])
@pytest.mark.parametrize("gfp_mask", [0x20, 0x2020, 0x10220, 0x200, 0x12020])
@pytest.mark.parametrize("count", [1, 7, 200])
def test_pages_in_bulk_are_pages_one_by_one(free: int, gfp_mask: int, count: int) -> None:
    both = []
    for bulk in (True, False):
        host = Host(Switches.of(frozenset(PATCHES)), 16, plain=False)
        host.hold(free)
        got = take_pages(host.node.page_alloc, count, gfp_mask, bulk=bulk)
        flags = [(page.pfn, page.from_reserve, page.pfmemalloc) for page in got]
        both.append((flags, host.node.vmstat.snapshot(), host.node.page_alloc.nr_free_min))
    assert both[0] == both[1]


def take_pages(page_alloc: PageAllocator, count: int, gfp_mask: int, *, bulk: bool) -> list[Page]:
    task = Task("softirq")
    task.serving_softirq = True
    if bulk:
        return page_alloc.alloc_pages_nowait(count, gfp_mask, task)
    pages: list[Page] = []
    while len(pages) < count:
        page = page_alloc.alloc_page_nowait(gfp_mask, task)
        if page is None:
            break
        pages.append(page)
    return pages
