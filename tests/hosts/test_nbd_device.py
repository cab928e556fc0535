"""The NBD device on virtual time: requests, merging, who waits, memory to send with, errors, and its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.hosts.hardware_queue import Request, merge
from testbed.hosts.nbd_device import Channel, NbdConfig, NbdDevice
from testbed.hosts.nbd_sock import NBD_REQUEST_SIZE, NbdSock, SwapSocket
from testbed.mm.bio import UnlimitedBioSet
from testbed.mm.gfp import ALLOC_NO_WATERMARKS, GFP_MEMALLOC, GFP_NOIO
from testbed.mm.memory import Vma
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.page_io import SwapIO
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE, Watermarks
from testbed.mm.zone import Zone
from testbed.nbd.errors import NbdDisconnected, NbdError
from testbed.net.dev import DELIVERED, ETH_P_IP, Kind, NetDevice, RxBatch
from testbed.net.skbuff import SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tcp_output import TcpSendQueue
from testbed.patches import Switches
from testbed.rules import V9
from tests.mm.machine import SERIES, VANILLA, with_rules, without
from tests.virtual_time import is_blocked, simulate


class FakeClient:
    """Takes requests like `NbdClient`; the test says what the peer acknowledges and answers."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.bytes_sent = self.bytes_received = 0
        self.requests: list[tuple[int, bool, int, int]] = []
        self.replies: list[tuple[int, int]] = []
        self.broken = False
        self._queued = 0

    def fileno(self) -> int:
        return self.near.fileno()

    def write(self, handle: int, offset: int, buffers: Sequence[memoryview]) -> None:
        self._request(handle, True, offset, len(buffers))

    def read(self, handle: int, offset: int, buffers: Sequence[memoryview]) -> None:
        self._request(handle, False, offset, len(buffers))

    def _request(self, handle: int, write: bool, offset: int, pages: int) -> None:
        self.requests.append((handle, write, offset // PAGE_SIZE, pages))
        self._queued += NBD_REQUEST_SIZE + write * pages * PAGE_SIZE

    def send_pending(self, most: int | None = None) -> bool:
        if self.broken:
            raise NbdDisconnected("gone")
        sent = self._queued if most is None else min(most, self._queued)
        self.bytes_sent += sent
        self._queued -= sent
        return not self._queued

    def receive(self) -> list[tuple[int, int]]:
        if self.broken:
            raise NbdDisconnected("gone")
        replies, self.replies = self.replies, []
        return replies

    def unacknowledged(self) -> int:
        return 0

    def close(self) -> None:
        self.near.close()
        self.far.close()


class Rig:
    """A device attached to a fake client, on a small machine."""

    def __init__(
        self,
        client: FakeClient,
        switches: Switches = SERIES,
        *,
        sndbuf: int = 64 << 20,
        config: NbdConfig | None = None,
    ) -> None:
        self.sndbuf = sndbuf
        self.device = NbdDevice(switches, config)
        self.node = Node(memoryview(bytearray(6000 * PAGE_SIZE)), self.device, 20000, switches, min_free_kbytes=1024)
        self.node.swap_io.bio_set = UnlimitedBioSet()
        netstat = NetStat()
        self.socket_memory = SocketMemory(switches, netstat)
        self.skb_memory = SkbMemory(self.node, netstat, 1500)
        self.device.swapon(self.node.swap_io, self.socket_memory)
        self.dead: list[tuple[int, str]] = []
        self.device.on_dead = lambda number, why: self.dead.append((number, why))
        self.attach(client)
        self.threads = [asyncio.create_task(self.device.nbd_thread(number)) for number in range(len(self.channels))]
        self.held: list[Page] = []

    async def swap_out(self, pages: Sequence[Page], nice: int = 0) -> None:
        """Swap pages out."""
        await self.node.swap_io.swap_writepages(list(pages), Task("writer", nice=nice))

    async def swap_in(self, pages: Sequence[Page], nice: int = 0) -> None:
        """Swap pages in."""
        await self.node.swap_io.swap_readpages(list(pages), Task("reader", nice=nice))

    def attach(self, client: FakeClient, number: int = 0) -> None:
        """A connection, the first or another one."""
        self.client = client
        self.sk = Sock("swap", 1 << 20, swap=True)
        self.send_queue = TcpSendQueue(self.sk, self.skb_memory, self.sndbuf)
        swap_socket = SwapSocket(TcpReceiveQueue(self.sk, self.skb_memory), self.send_queue)
        self.device.attach(number, client, swap_socket)  # type: ignore[arg-type]

    @property
    def channels(self) -> list[Channel]:
        return self.device.channels

    @property
    def nsock(self) -> NbdSock:
        nsock = self.channels[0].nsock
        assert nsock is not None
        return nsock

    @property
    def queue(self) -> Sequence[Request]:
        return self.channels[0].hctx.requests

    @property
    def blocked_since(self) -> float | None:
        return self.channels[0].blocked_since

    def drain(self, free: int) -> None:
        while self.node.zone.nr_free_pages > free:
            page = self.node.page_alloc.get_page_from_freelist(0, ALLOC_NO_WATERMARKS)
            assert page is not None
            self.held.append(page)

    def give_back(self) -> None:
        self.node.page_alloc.free_pages(self.held)
        self.held.clear()

    def dirty_pages(self, count: int, step: int = 1) -> list[Page]:
        """Pages on the inactive list, under writeback to slots `step` apart."""
        pages: list[Page] = []
        reclaimer = Task("reclaimer", pf_memalloc=True)
        for number in range(count * step):
            page = self.node.page_alloc.get_page_from_freelist(0, ALLOC_NO_WATERMARKS)
            assert page is not None
            if number % step:
                self.node.swap.get_swap_page()
                self.node.page_alloc.free_page(page)
                continue
            assert self.node.swap_cache.add_to_swap(page, reclaimer)
            page.lru = page.writeback = page.reclaim = True
            page.dirty = False
            self.node.zone.inactive_anon[page] = None
            self.node.vmstat.nr_writeback += 1
            pages.append(page)
        return pages

    def acknowledge(self) -> None:
        self.send_queue.tcp_clean_rtx_queue(self.client.bytes_sent)

    def answer(self, *handles: int, error: int = 0) -> None:
        self.client.replies += [(handle, error) for handle in handles]
        self.device.receive(self.nsock)


@pytest.fixture
def client() -> Iterator[FakeClient]:
    fake = FakeClient()
    yield fake
    fake.close()


def with_slot(slot: int) -> Page:
    page = Zone(memoryview(bytearray(PAGE_SIZE)), Watermarks(0, 0, 0, 0)).pages[0]
    page.swap_entry = slot
    return page


@pytest.mark.parametrize(
    ("slots", "lengths"),
    [
        ([], []),
        ([5], [1]),
        ([3, 1, 2], [3]),
        ([1, 2, 4, 5, 7], [2, 2, 1]),
        (list(range(10, 41)), [31]),
        (list(range(10, 42)), [31, 1]),
        (list(range(1, 101)), [31, 31, 31, 7]),
    ],
)
def test_only_neighbours_merge_and_no_request_is_longer_than_255_sectors(slots: list[int], lengths: list[int]) -> None:
    runs = merge([with_slot(slot) for slot in slots], 31)
    assert [len(run) for run in runs] == lengths
    assert [page.swap_entry for run in runs for page in run] == sorted(slots)
    assert all(later.swap_entry == page.swap_entry + 1 for run in runs for page, later in pairwise(run))


@pytest.mark.parametrize(
    ("switches", "memalloc"), [(SERIES, True), (without(nbd_memalloc=False), False), (VANILLA, False)]
)
def test_patch_14_lets_the_socket_and_the_thread_use_the_reserve(
    client: FakeClient, switches: Switches, memalloc: bool
) -> None:
    async def main() -> None:
        rig = Rig(client, switches)
        assert rig.socket_memory.memalloc_socks == memalloc
        pages = rig.dirty_pages(3)
        rig.drain(100)
        await rig.swap_out(pages)
        await asyncio.sleep(60)
        assert bool(client.bytes_sent) == memalloc
        assert (rig.device.pf_memalloc_sends > 0, rig.device.ordinary_sends > 0) == (memalloc, not memalloc)
        assert (rig.blocked_since is None) == memalloc

    simulate(main())


def test_a_write_completes_when_its_reply_comes(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(5)
        await rig.swap_out(pages)
        await asyncio.sleep(2)
        assert client.requests == [(1, True, pages[0].swap_entry, 5)]
        assert client.bytes_sent == rig.send_queue.write_seq == NBD_REQUEST_SIZE + 5 * PAGE_SIZE
        assert all(page.writeback for page in pages)
        assert rig.send_queue.sk.wmem_queued
        rig.acknowledge()
        assert rig.send_queue.sk.wmem_queued == 0
        rig.answer(1)
        assert not any(page.writeback or page.lru for page in pages)
        assert (rig.node.swap_io.completions, rig.device.idle, rig.device.max_gap_s) == (5, True, 2)

    simulate(main())


def test_an_error_reply_makes_pages_dirty_again(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(4)
        for page in pages:
            rig.node.swap.swap_duplicate(page.swap_entry)
        await rig.swap_out(pages)
        await asyncio.sleep(1)
        rig.answer(1, error=5)
        assert [(page.dirty, page.writeback, page.lru) for page in pages] == [(True, False, True)] * 4
        assert rig.node.swap_io.write_errors == 4

    simulate(main())


def test_the_129th_writer_sleeps_and_readers_do_not(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(130, step=2)
        submit = asyncio.create_task(rig.swap_out(pages[:128]))
        assert not await is_blocked(submit, 1)
        assert len(rig.nsock.in_flight) == 128
        late = [asyncio.create_task(rig.swap_out([page])) for page in pages[128:]]
        assert all([await is_blocked(writer, 60) for writer in late])
        read = rig.dirty_pages(1)
        assert not await is_blocked(asyncio.create_task(rig.swap_in(read)), 1)
        rig.answer(7)
        assert not await is_blocked(late[0], 1)
        assert await is_blocked(late[1], 60)
        rig.answer(9)
        assert not await is_blocked(late[1], 1)

    simulate(main())


@pytest.mark.parametrize(
    ("max_sectors_kb", "lengths"), [(127.5, [31, 9]), (128, [32, 8]), (1280, [40]), (16, [4] * 10)]
)
def test_a_request_is_as_long_as_the_kernel_allows(
    client: FakeClient, max_sectors_kb: float, lengths: list[int]
) -> None:
    async def main() -> None:
        rig = Rig(client, with_rules(max_sectors_kb=max_sectors_kb))
        await rig.swap_out(rig.dirty_pages(40))
        await asyncio.sleep(1)
        assert [request[3] for request in client.requests] == lengths

    simulate(main())


@pytest.mark.parametrize(
    ("shared_tags", "nr_requests", "waits"), [(False, 4, False), (True, 4, True), (True, 5, False)]
)
def test_readers_wait_for_writers_only_when_they_share_tags(
    client: FakeClient, shared_tags: bool, nr_requests: int, waits: bool
) -> None:
    async def main() -> None:
        rig = Rig(client, with_rules(shared_tags=shared_tags, nr_requests=nr_requests))
        await rig.swap_out(rig.dirty_pages(4, step=2))
        read = rig.dirty_pages(1)
        assert await is_blocked(asyncio.create_task(rig.swap_in(read)), 60) == waits

    simulate(main())


@pytest.mark.parametrize("nbd_sends_from", ["kthread", "workqueue"])
def test_who_sends(client: FakeClient, nbd_sends_from: str) -> None:
    async def main() -> None:
        rig = Rig(client, with_rules(nbd_sends_from=nbd_sends_from))
        (channel,) = rig.channels
        assert channel.thread.pf_wq_worker == (nbd_sends_from == "workqueue")

    simulate(main())


def test_a_connection_dies_while_its_socket_is_locked(client: FakeClient) -> None:
    """What waited for the sender to let go is received then, and no page of it is kept."""

    async def main() -> None:
        rig = Rig(client, replace(VANILLA, rules=replace(V9, sendmsg_waits_locked=True)))
        device = NetDevice(rig.skb_memory, rig.socket_memory, rig.skb_memory.netstat, 64, lambda _counts: None)
        device.alloc_rx_buffers()
        pages = rig.dirty_pages(1)
        rig.drain(rig.node.zone.watermarks.min)
        await rig.swap_out(pages)
        await asyncio.sleep(1)
        locked_by = rig.sk.owner
        assert locked_by is rig.channels[0].thread
        batch = RxBatch.of_kinds(np.zeros(1, np.intp), [Kind(ETH_P_IP, rig.nsock.socket.receive_queue, "swap")])
        batch.end_seq = [100]
        device.receive(batch)
        (held,) = batch.held.values()
        rig.device.nbd_mark_nsock_dead(rig.nsock, "gone")
        assert held.verdicts == [DELIVERED]
        rig.give_back()
        await asyncio.sleep(1)
        assert (rig.sk.owner, rig.sk.rmem_alloc, rig.sk.wmem_queued) == (None, 0, 0)

    simulate(main())


def test_a_favoured_writer_gets_the_next_request(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(130, step=2)
        await rig.swap_out(pages[:128])
        ordinary = asyncio.create_task(rig.swap_out(pages[128:129]))
        await asyncio.sleep(1)
        favoured = asyncio.create_task(rig.swap_out(pages[129:], -20))
        await asyncio.sleep(1)
        rig.answer(1)
        assert not await is_blocked(favoured, 1)
        assert await is_blocked(ordinary, 1)

    simulate(main())


def test_a_request_goes_out_as_far_as_its_memory_reaches(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(31)
        rig.drain(12)
        await rig.swap_out(pages)
        await asyncio.sleep(5)
        part = client.bytes_sent
        assert 0 < part < NBD_REQUEST_SIZE + 31 * PAGE_SIZE
        assert part == rig.send_queue.write_seq
        assert rig.node.zone.nr_free_pages == 0
        assert rig.blocked_since is not None
        rig.acknowledge()
        await asyncio.sleep(5)
        assert client.bytes_sent > part
        for _ in range(10):
            rig.acknowledge()
            await asyncio.sleep(1)
        assert client.bytes_sent == NBD_REQUEST_SIZE + 31 * PAGE_SIZE
        assert rig.blocked_since is None

    simulate(main())


@pytest.mark.parametrize("how", ["close", "broken"])
def test_the_end_of_the_connection_gives_every_page_back(client: FakeClient, how: str) -> None:
    """Requests in flight, one half sent, some queued, and submitters asleep: all end with an error."""

    async def main() -> None:
        rig = Rig(client, sndbuf=20 * PAGE_SIZE)
        pages = rig.dirty_pages(140, step=2)
        reads = rig.dirty_pages(3)
        for page in reads:
            page.writeback = page.reclaim = False
            page.locked = True
            rig.node.vmstat.nr_writeback -= 1
        submitters = [asyncio.create_task(rig.swap_out(pages[at : at + 20])) for at in range(0, 140, 20)]
        await rig.swap_in(reads)
        await asyncio.sleep(10)
        assert rig.nsock.in_flight
        assert rig.queue
        assert any(not submitter.done() for submitter in submitters)
        assert rig.blocked_since is not None
        if how == "close":
            rig.device.close()
        else:
            client.broken = True
            rig.device.receive(rig.nsock)
            assert rig.device.failed == "gone"
        async with asyncio.timeout(10):
            await asyncio.gather(*submitters)
        assert rig.device.idle
        await rig.swap_out(rig.dirty_pages(2))
        await asyncio.sleep(1)
        assert rig.node.vmstat.nr_writeback == 0
        assert not rig.node.swap_cache.pages
        rig.threads[0].cancel()
        await asyncio.wait(rig.threads)
        rig.send_queue.purge()
        assert rig.node.pages_leaked() == 0

    simulate(main())


def test_a_cancelled_submitter_leaves_no_page_behind(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(140, step=2)
        submit = asyncio.create_task(rig.swap_out(pages))
        assert await is_blocked(submit, 1)
        submit.cancel()
        await asyncio.wait([submit])
        assert sum(page.writeback for page in pages) == 128
        rig.answer(*range(1, 129))
        assert rig.node.vmstat.nr_writeback == 0
        assert rig.device.idle

    simulate(main())


def test_the_whole_node_swaps_through_the_device(client: FakeClient) -> None:
    """The peer answers late and acknowledges in between; the series gets through it with the reserve."""

    async def main() -> None:
        rig = Rig(client)
        rig.drain(800)
        asyncio.create_task(rig.node.kswapd.run())  # noqa: RUF006

        async def peer() -> None:
            answered = 0
            while True:
                await asyncio.sleep(0.002)
                rig.acknowledge()
                handles = [handle for handle, *_rest in client.requests[answered:]]
                if len(handles) > 1:
                    handles.pop()
                answered += len(handles)
                rig.answer(*handles)

        answering = asyncio.create_task(peer())
        vma = Vma(Task("user"), 3000)
        async with asyncio.timeout(600):
            for index in range(3000):
                await rig.node.memory.handle_mm_fault(vma.owner, vma, index, write=True)
        assert rig.node.vmstat.pswpout > 2000
        rig.node.memory.exit_mmap(vma)
        await asyncio.sleep(5)
        answering.cancel()
        assert rig.device.idle
        rig.acknowledge()
        rig.send_queue.purge()
        rig.give_back()
        assert (rig.node.pages_leaked(), rig.node.swap.inuse_pages) == (0, 0)

    simulate(main())


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_pf_memalloc_is_restored_after_each_send(client: FakeClient, before: bool, broken: bool) -> None:
    async def main() -> None:
        rig = Rig(client)
        rig.channels[0].thread.pf_memalloc = before
        during: list[bool] = []
        sendmsg = rig.send_queue.tcp_sendmsg

        async def watched(*arguments: Any) -> None:
            during.append(rig.channels[0].thread.pf_memalloc)
            if broken:
                raise ArithmeticError
            await sendmsg(*arguments)

        rig.send_queue.tcp_sendmsg = watched  # type: ignore[method-assign, assignment]
        await rig.swap_out(rig.dirty_pages(1))
        await asyncio.wait(rig.threads, timeout=1)
        assert during == [True]
        assert rig.channels[0].thread.pf_memalloc == before
        assert rig.threads[0].done() == broken
        if broken:
            assert isinstance(rig.threads[0].exception(), ArithmeticError)
        rig.threads[0].cancel()
        rig.device.close()

    simulate(main())


@pytest.mark.parametrize(("switches", "expected"), [(SERIES, GFP_NOIO | GFP_MEMALLOC), (VANILLA, GFP_NOIO)])
def test_sk_allocation_is_set_again_for_every_request(
    client: FakeClient, switches: Switches, expected: int
) -> None:
    async def main() -> None:
        rig = Rig(client, switches)
        rig.sk.sk_allocation = 0
        await rig.swap_out(rig.dirty_pages(1))
        await asyncio.sleep(1)
        assert rig.sk.sk_allocation == expected
        rig.threads[0].cancel()
        rig.device.close()

    simulate(main())


def test_a_closed_device_leaves_its_socket_memalloc(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        rig.threads[0].cancel()
        rig.device.close()
        assert (rig.sk.memalloc, rig.socket_memory.memalloc_socks) == (True, 1)

    simulate(main())


@pytest.fixture
def clients() -> Iterator[list[FakeClient]]:
    fakes = [FakeClient() for _ in range(4)]
    yield fakes
    for fake in fakes:
        fake.close()


def locked_pages(rig: Rig, count: int) -> list[Page]:
    """Pages that are being read, that a pte refers to."""
    pages = rig.dirty_pages(count)
    for page in pages:
        rig.node.swap.swap_duplicate(page.swap_entry)
        page.writeback = page.reclaim = False
        page.locked = True
        rig.node.vmstat.nr_writeback -= 1
    return pages


RECONNECTING = NbdConfig(dead_conn_timeout=30.0)


@pytest.mark.parametrize("cause", ["broken", "wrong handle", "while sending"])
def test_what_was_in_flight_is_sent_again_on_the_next_connection(clients: list[FakeClient], cause: str) -> None:
    first, second = clients[:2]

    async def main() -> None:
        rig = Rig(first, config=RECONNECTING, sndbuf=1 if cause == "while sending" else 64 << 20)
        writes, reads = rig.dirty_pages(3, step=2), locked_pages(rig, 2)
        for page in writes:
            rig.node.swap.swap_duplicate(page.swap_entry)
        await rig.swap_out(writes)
        await rig.swap_in(reads)
        await asyncio.sleep(1)
        queue = rig.send_queue
        if cause == "wrong handle":
            first.receive = raising(NbdError("no such handle"))  # type: ignore[method-assign]
        first.broken = True
        rig.device.receive(rig.nsock)
        assert len(rig.dead) == 1
        assert (queue.sk.wmem_queued, len(queue._queue)) == (0, 0)
        assert first.near.fileno() < 0
        await asyncio.sleep(20)
        assert all(page.writeback for page in writes)
        assert all(page.locked for page in reads)
        assert rig.device.live_connections == 0
        rig.attach(second)
        for _ in range(9):
            await asyncio.sleep(1)
            rig.acknowledge()
        assert [request[1:] for request in second.requests] == [
            *((True, page.swap_entry, 1) for page in writes),
            (False, reads[0].swap_entry, 2),
        ]
        assert rig.device.nbd_requeued == len(first.requests)
        assert rig.device.nbd_reconnects == 1
        assert (rig.sk.memalloc, rig.socket_memory.memalloc_socks) == (True, 2)
        rig.answer(*(request[0] for request in second.requests))
        assert rig.device.idle
        assert not any(page.writeback or page.locked or page.dirty for page in (*writes, *reads))
        assert all(page.uptodate for page in reads)

    simulate(main())


def raising(error: Exception) -> Any:
    def call(*_arguments: object) -> Any:
        raise error

    return call


def test_requests_wait_as_long_as_they_may_and_then_fail_and_a_late_connection_serves_again(
    clients: list[FakeClient],
) -> None:
    first, second = clients[:2]

    async def main() -> None:
        rig = Rig(first, config=RECONNECTING)
        pages = locked_pages(rig, 2)
        await rig.swap_in(pages[:1])
        await asyncio.sleep(1)
        first.broken = True
        rig.device.receive(rig.nsock)
        await asyncio.sleep(29.9)
        assert pages[0].locked
        await asyncio.sleep(0.2)
        assert (pages[0].locked, pages[0].uptodate) == (False, False)
        await rig.swap_in(pages[1:])
        await asyncio.sleep(0.1)
        assert not pages[1].locked, "nobody waits a second time"
        assert rig.node.swap_io.read_errors == 2
        rig.attach(second)
        more = locked_pages(rig, 1)
        await rig.swap_in(more)
        await asyncio.sleep(0.1)
        rig.answer(second.requests[0][0])
        assert more[0].uptodate

    simulate(main())


@pytest.mark.parametrize(
    ("config", "dropped_after"),
    [
        (NbdConfig(timeout=5.0, dead_conn_timeout=60.0), 5.0),
        (NbdConfig(timeout=5.0), 5.0),
        (NbdConfig(dead_conn_timeout=60.0), None),
        (NbdConfig(), None),
        (NbdConfig(num_connections=2), 30.0),
        (NbdConfig(num_connections=2, timeout=5.0), 5.0),
    ],
)
def test_a_request_that_takes_too_long_costs_its_connection(
    clients: list[FakeClient], config: NbdConfig, dropped_after: float | None
) -> None:
    async def main() -> None:
        rig = Rig(clients[0], config=config)
        if config.num_connections > 1:
            rig.attach(clients[1], 1)
        pages = rig.dirty_pages(1)
        await rig.swap_out(pages)
        await asyncio.sleep(2)
        assert len(rig.nsock.in_flight) == 1
        await asyncio.sleep(0 if dropped_after is None else dropped_after - 2.1)
        assert (rig.dead, rig.device.nbd_timeouts) == ([], 0)
        await asyncio.sleep(3600 if dropped_after is None else 0.2)
        assert rig.device.nbd_timeouts == (dropped_after is not None)
        kept = dropped_after is None or config.num_connections > 1 or config.dead_conn_timeout is not None
        assert pages[0].writeback == kept
        if dropped_after is not None:
            assert f"within {dropped_after:g} s" in rig.dead[0][1]

    simulate(main())


def test_the_timer_follows_the_oldest_request(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client, config=NbdConfig(timeout=5.0))
        for handle in range(1, 11):
            await rig.swap_out(rig.dirty_pages(1))
            await asyncio.sleep(4)
            rig.answer(handle)
        assert rig.device.nbd_timeouts == 0
        await rig.swap_out(rig.dirty_pages(1))
        await asyncio.sleep(5.1)
        assert rig.device.nbd_timeouts == 1

    simulate(main())


def test_connections_take_turns_and_a_live_one_takes_over_from_a_dead_one(clients: list[FakeClient]) -> None:
    async def main() -> None:
        rig = Rig(clients[0], config=NbdConfig(num_connections=3))
        for number in (1, 2):
            rig.attach(clients[number], number)
        pages = rig.dirty_pages(12, step=2)
        for page in pages:
            await rig.swap_out([page])
        await asyncio.sleep(1)
        assert [len(fake.requests) for fake in clients[:3]] == [4, 4, 4]
        clients[0].broken = True
        rig.device.receive(rig.nsock)
        await asyncio.sleep(1)
        assert sorted(len(fake.requests) for fake in clients[1:3]) == [4, 8]
        assert (rig.device.live_connections, rig.device.nbd_requeued) == (2, 4)
        for number in (1, 2):
            nsock = rig.channels[number].nsock
            assert nsock is not None
            clients[number].replies = [(handle, 0) for handle in nsock.in_flight]
            rig.device.receive(nsock)
        assert rig.device.idle
        assert rig.node.swap_io.write_errors == 0
        for number in (1, 2):
            nsock = rig.channels[number].nsock
            assert nsock is not None
            rig.device.nbd_mark_nsock_dead(nsock, "gone")
        late = rig.dirty_pages(1)
        await rig.swap_out(late)
        await asyncio.sleep(1)
        assert rig.node.swap_io.write_errors == 1, "without a timeout for dead connections nobody waits"

    simulate(main())


def test_a_thread_that_waits_for_memory_when_its_connection_dies_frees_all_it_had(clients: list[FakeClient]) -> None:
    async def main() -> None:
        rig = Rig(clients[0], config=RECONNECTING)
        pages = rig.dirty_pages(31)
        for page in pages:
            rig.node.swap.swap_duplicate(page.swap_entry)
        rig.drain(12)
        await rig.swap_out(pages)
        await asyncio.sleep(5)
        assert rig.blocked_since is not None
        rig.device.nbd_mark_nsock_dead(rig.nsock, "gone")
        assert rig.node.zone.nr_free_pages > 0
        rig.give_back()
        free = rig.node.zone.nr_free_pages
        await asyncio.sleep(5)
        assert rig.node.zone.nr_free_pages == free
        rig.attach(clients[1])
        await asyncio.sleep(5)
        assert clients[1].bytes_sent == NBD_REQUEST_SIZE + 31 * PAGE_SIZE
        rig.answer(clients[1].requests[0][0])
        assert rig.device.idle

    simulate(main())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("wrabcx"), st.integers(1, 40)), max_size=60), st.integers(1, 3))
def test_no_request_is_lost_or_ends_twice(steps: list[tuple[str, int]], connections: int) -> None:
    """Submit, answer, break and replace connections in any order: at the end each page has had its one end."""

    async def main() -> None:
        config = NbdConfig(num_connections=connections, timeout=50.0, dead_conn_timeout=1000.0)
        fakes = [FakeClient()]
        rig = Rig(fakes[0], config=config)
        ended: list[Page] = []
        watch(rig.node.swap_io, ended)

        def connect() -> None:
            for channel in rig.channels:
                if not channel.live:
                    fakes.append(FakeClient())
                    rig.attach(fakes[-1], channel.number)

        def answer(most: int) -> None:
            for nsock in rig.device._live_nsocks():
                fake: Any = nsock.client
                fake.replies = [(handle, 0) for handle in list(nsock.in_flight)[:most] if not fake.broken]
                rig.device.receive(nsock)

        connect()
        submitted: list[Page] = []
        submitters = []
        for kind, count in steps:
            if kind in "wr":
                pages = rig.dirty_pages(count) if kind == "w" else locked_pages(rig, count)
                submitted += pages
                submit = rig.swap_out if kind == "w" else rig.swap_in
                submitters.append(asyncio.create_task(submit(pages, 0)))
            elif kind == "a":
                answer(count)
            elif kind == "b":
                for nsock in rig.device._live_nsocks()[:count]:
                    rig.device.nbd_mark_nsock_dead(nsock, "broken")
            elif kind == "c":
                connect()
            await asyncio.sleep(count)
        for _ in range(len(submitted) + 2):
            connect()
            await asyncio.sleep(1)
            answer(1000)
        await asyncio.gather(*submitters)
        assert sorted(page.pfn for page in ended) == sorted(page.pfn for page in submitted)
        assert rig.device.idle
        rig.device.close()
        for thread in rig.threads:
            thread.cancel()
        for fake in fakes:
            fake.close()

    simulate(main())


def watch(swap_io: SwapIO, ended: list[Page]) -> None:
    """Note the pages of each request that ends, and keep them from being freed."""
    for name in ("end_write", "end_read"):
        end = getattr(swap_io, name)

        def noted(pages: Sequence[Page], error: int, end: Any = end) -> None:
            ended.extend(pages)
            for page in pages:
                page.pins += 1
            end(pages, error)

        setattr(swap_io, name, noted)
