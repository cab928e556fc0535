"""The NBD device on virtual time: requests, merging, who waits, memory to send with, errors, and its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from testbed.hosts.nbd_device import NBD_REQUEST_SIZE, NbdDevice, merge
from testbed.mm.gfp import ALLOC_NO_WATERMARKS, GFP_MEMALLOC, GFP_NOIO
from testbed.mm.memory import Vma
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE, Watermarks
from testbed.mm.zone import Zone
from testbed.nbd.errors import NbdDisconnected
from testbed.net.skbuff import SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tcp_output import TcpSendQueue
from testbed.patches import Switches
from tests.mm.machine import SERIES, VANILLA, with_rules
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

    def close(self) -> None:
        self.near.close()
        self.far.close()


class Rig:
    """A device attached to a fake client, on a small machine."""

    def __init__(self, client: FakeClient, switches: Switches = SERIES, *, sndbuf: int = 64 << 20) -> None:
        self.client = client
        self.device = NbdDevice(switches)
        self.node = Node(memoryview(bytearray(6000 * PAGE_SIZE)), self.device, 20000, switches, min_free_kbytes=1024)
        self.sk = Sock("swap", 1 << 20, swap=True)
        netstat = NetStat()
        self.socket_memory = SocketMemory(switches, netstat)
        skb_memory = SkbMemory(self.node, netstat, 1500)
        self.receive_queue = TcpReceiveQueue(self.sk, skb_memory)
        self.send_queue = TcpSendQueue(self.sk, skb_memory, sndbuf)
        self.device.attach(
            client,  # type: ignore[arg-type]
            self.node.swap_io,
            self.receive_queue,
            self.send_queue,
            self.socket_memory,
        )
        self.thread = asyncio.create_task(self.device.nbd_thread())
        self.held: list[Page] = []

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
        self.device.receive()


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


@pytest.mark.parametrize(("switches", "memalloc"), [(SERIES, True), (VANILLA, False)])
def test_patch_14_lets_the_socket_and_the_thread_use_the_reserve(
    client: FakeClient, switches: Switches, memalloc: bool
) -> None:
    async def main() -> None:
        rig = Rig(client, switches)
        assert rig.socket_memory.memalloc_socks == memalloc
        pages = rig.dirty_pages(3)
        rig.drain(100)
        await rig.device.submit_write(pages, 0)
        await asyncio.sleep(60)
        assert bool(client.bytes_sent) == memalloc
        assert (rig.device.pf_memalloc_sends > 0, rig.device.ordinary_sends > 0) == (memalloc, not memalloc)
        assert (rig.device.thread_blocked_since is None) == memalloc

    simulate(main())


def test_a_write_completes_when_its_reply_comes(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(5)
        await rig.device.submit_write(pages, 0)
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
        await rig.device.submit_write(pages, 0)
        await asyncio.sleep(1)
        rig.answer(1, error=5)
        assert [(page.dirty, page.writeback, page.lru) for page in pages] == [(True, False, True)] * 4
        assert rig.node.swap_io.write_errors == 4

    simulate(main())


def test_the_129th_writer_sleeps_and_readers_do_not(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(130, step=2)
        submit = asyncio.create_task(rig.device.submit_write(pages[:128], 0))
        assert not await is_blocked(submit, 1)
        assert len(rig.device.in_flight) == 128
        late = [asyncio.create_task(rig.device.submit_write([page], 0)) for page in pages[128:]]
        assert all([await is_blocked(writer, 60) for writer in late])
        read = rig.dirty_pages(1)
        assert not await is_blocked(asyncio.create_task(rig.device.submit_read(read, 0)), 1)
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
        await rig.device.submit_write(rig.dirty_pages(40), 0)
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
        await rig.device.submit_write(rig.dirty_pages(4, step=2), 0)
        read = rig.dirty_pages(1)
        assert await is_blocked(asyncio.create_task(rig.device.submit_read(read, 0)), 60) == waits

    simulate(main())


def test_a_favoured_writer_gets_the_next_request(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(130, step=2)
        await rig.device.submit_write(pages[:128], 0)
        ordinary = asyncio.create_task(rig.device.submit_write(pages[128:129], 0))
        await asyncio.sleep(1)
        favoured = asyncio.create_task(rig.device.submit_write(pages[129:], -20))
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
        await rig.device.submit_write(pages, 0)
        await asyncio.sleep(5)
        part = client.bytes_sent
        assert 0 < part < NBD_REQUEST_SIZE + 31 * PAGE_SIZE
        assert part == rig.send_queue.write_seq
        assert rig.node.zone.nr_free_pages == 0
        assert rig.device.thread_blocked_since is not None
        rig.acknowledge()
        await asyncio.sleep(5)
        assert client.bytes_sent > part
        for _ in range(10):
            rig.acknowledge()
            await asyncio.sleep(1)
        assert client.bytes_sent == NBD_REQUEST_SIZE + 31 * PAGE_SIZE
        assert rig.device.thread_blocked_since is None

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
        submitters = [asyncio.create_task(rig.device.submit_write(pages[at : at + 20], 0)) for at in range(0, 140, 20)]
        await rig.device.submit_read(reads, 0)
        await asyncio.sleep(10)
        assert rig.device.in_flight
        assert rig.device.queue
        assert any(not submitter.done() for submitter in submitters)
        assert rig.device.thread_blocked_since is not None
        if how == "close":
            rig.device.close()
        else:
            client.broken = True
            rig.device.receive()
            assert rig.device.failed == "gone"
        async with asyncio.timeout(10):
            await asyncio.gather(*submitters)
        assert rig.device.idle
        await rig.device.submit_write(rig.dirty_pages(2), 0)
        assert rig.node.vmstat.nr_writeback == 0
        assert not rig.node.swap_cache.pages
        rig.thread.cancel()
        await asyncio.wait([rig.thread])
        rig.send_queue.purge()
        assert rig.node.pages_leaked() == 0

    simulate(main())


def test_a_cancelled_submitter_leaves_no_page_behind(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        pages = rig.dirty_pages(140, step=2)
        submit = asyncio.create_task(rig.device.submit_write(pages, 0))
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
        rig.give_back()
        assert (rig.node.pages_leaked(), rig.node.swap.inuse_pages) == (0, 0)

    simulate(main())


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_pf_memalloc_is_restored_after_each_send(client: FakeClient, before: bool, broken: bool) -> None:
    async def main() -> None:
        rig = Rig(client)
        rig.device.thread.pf_memalloc = before
        during: list[bool] = []
        sendmsg = rig.send_queue.tcp_sendmsg

        async def watched(*arguments: Any) -> None:
            during.append(rig.device.thread.pf_memalloc)
            if broken:
                raise ArithmeticError
            await sendmsg(*arguments)

        rig.send_queue.tcp_sendmsg = watched  # type: ignore[method-assign, assignment]
        await rig.device.submit_write(rig.dirty_pages(1), 0)
        await asyncio.wait([rig.thread], timeout=1)
        assert during == [True]
        assert rig.device.thread.pf_memalloc == before
        assert rig.thread.done() == broken
        if broken:
            assert isinstance(rig.thread.exception(), ArithmeticError)
        rig.thread.cancel()
        rig.device.close()

    simulate(main())


@pytest.mark.parametrize(("switches", "expected"), [(SERIES, GFP_NOIO | GFP_MEMALLOC), (VANILLA, GFP_NOIO)])
def test_sk_allocation_is_set_again_for_every_request(
    client: FakeClient, switches: Switches, expected: int
) -> None:
    async def main() -> None:
        rig = Rig(client, switches)
        rig.sk.sk_allocation = 0
        await rig.device.submit_write(rig.dirty_pages(1), 0)
        await asyncio.sleep(1)
        assert rig.sk.sk_allocation == expected
        rig.thread.cancel()
        rig.device.close()

    simulate(main())


def test_a_closed_device_leaves_its_socket_memalloc(client: FakeClient) -> None:
    async def main() -> None:
        rig = Rig(client)
        rig.thread.cancel()
        rig.device.close()
        assert (rig.sk.memalloc, rig.socket_memory.memalloc_socks) == (True, 1)

    simulate(main())
