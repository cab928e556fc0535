"""A server on the client's machine: what reaches it, what it needs memory for, and whom it keeps waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.hosts.nbd_sock import NBD_REQUEST_SIZE, SwapSocket
from testbed.hosts.same_host import SameHostServer
from testbed.mm.filemap import AddressSpace
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tcp_output import TcpSendQueue
from testbed.patches import Switches, enabled
from tests.hosts.test_nbd_device import FakeClient, Rig
from tests.virtual_time import simulate

WITHOUT_9 = Switches.of(enabled([9], force=True))
WITHOUT_10 = Switches.of(enabled([10], force=True))
SERIES = Switches()
MIN = 256
"""Free pages below which an ordinary task gets none, on the rig's machine."""


class SameHostRig(Rig):
    """A device whose server is on its machine, with a page cache if `cached`."""

    def __init__(self, client: FakeClient, switches: Switches = SERIES, *, cached: bool = False, **more: Any) -> None:
        self.cached, self.realtime = cached, bool(more.pop("realtime", False))
        super().__init__(client, switches, **more)

    def attach(self, client: FakeClient, number: int = 0) -> None:
        self.client = client
        self.sk = Sock("swap", 1 << 20, swap=True)
        self.send_queue = TcpSendQueue(self.sk, self.skb_memory, self.sndbuf)
        swap_socket = SwapSocket(TcpReceiveQueue(self.sk, self.skb_memory), self.send_queue)
        self.file = AddressSpace(self.node, 64 << 20) if self.cached else None
        self.server = SameHostServer(self.skb_memory, self.socket_memory, self.file, realtime=self.realtime)
        self.device.attach(number, client, swap_socket, self.server)  # type: ignore[arg-type]
        self.serving = asyncio.create_task(self.server.run())

    @property
    def drops(self) -> int:
        return self.skb_memory.netstat.PFMemallocDrop

    async def write(self, count: int) -> None:
        await self.swap_out(self.dirty_pages(count))
        await asyncio.sleep(1)


@pytest.fixture
def client() -> Iterator[FakeClient]:
    fake = FakeClient()
    yield fake
    fake.close()


def test_with_memory_a_request_goes_through_at_once_and_all_of_it_is_given_back(client: FakeClient) -> None:
    async def main() -> None:
        rig = SameHostRig(client)
        await rig.write(31)
        assert client.bytes_sent == NBD_REQUEST_SIZE + 31 * PAGE_SIZE
        assert rig.sk.wmem_queued == 0, "what the server has read is acknowledged"
        fclones = rig.skb_memory.skbuff_fclone_cache
        assert fclones.inuse == 1, "the reply"
        rig.answer(1)
        assert fclones.inuse == 0

    simulate(main())


@pytest.mark.parametrize(
    ("switches", "arrives"), [(SERIES, False), (WITHOUT_9, True), (WITHOUT_10, False)], ids=["all", "no 9", "no 10"]
)
def test_what_was_sent_from_the_reserve_is_dropped_for_ever(
    client: FakeClient, switches: Switches, arrives: bool
) -> None:
    """Of an skb with both parts in the reserve the linear one is enough to mark it."""

    async def main() -> None:
        rig = SameHostRig(client, switches)
        pages = rig.dirty_pages(1)
        rig.drain(MIN // 2)
        await rig.swap_out(pages)
        await asyncio.sleep(10)
        few = rig.drops
        rig.give_back()
        await asyncio.sleep(600)
        assert (client.bytes_sent > 0) == arrives
        assert (rig.drops > few > 3) != arrives
        assert rig.drops < 20, "the timeout doubles"
        assert rig.skb_memory.netstat.RetransSegs >= rig.drops - 1

    simulate(main())


def test_what_comes_after_a_dropped_skb_waits_for_it(client: FakeClient) -> None:
    async def main() -> None:
        rig = SameHostRig(client)
        first, second = rig.dirty_pages(1), rig.dirty_pages(1)
        rig.drain(MIN // 2)
        await rig.swap_out(first)
        await asyncio.sleep(1)
        rig.give_back()
        await rig.swap_out(second)
        await asyncio.sleep(60)
        assert len(client.requests) == 2
        assert client.bytes_sent == 0

    simulate(main())


@pytest.mark.parametrize(
    ("cached", "free", "goes"),
    [(False, MIN, True), (True, MIN, False), (True, MIN + 200, True)],
    ids=["O_DIRECT", "page cache", "page cache, memory"],
)
def test_a_write_takes_page_cache_before_it_reaches_the_server(
    client: FakeClient, cached: bool, free: int, goes: bool
) -> None:
    async def main() -> None:
        rig = SameHostRig(client, WITHOUT_9, cached=cached)
        await rig.write(1)
        rig.answer(1)
        pages = rig.dirty_pages(31)
        rig.drain(free)
        sent = client.bytes_sent
        await rig.swap_out(pages)
        await asyncio.sleep(60)
        assert (client.bytes_sent == sent + NBD_REQUEST_SIZE + 31 * PAGE_SIZE) == goes
        if not goes:
            assert rig.server.task.pf_memalloc, "it waits in direct reclaim"
            rig.give_back()
            await asyncio.sleep(1)
            assert client.bytes_sent == sent + NBD_REQUEST_SIZE + 31 * PAGE_SIZE

    simulate(main())


@pytest.mark.parametrize(("realtime", "goes"), [(False, False), (True, True)])
def test_a_realtime_server_finds_memory_for_its_reply_below_min(client: FakeClient, realtime: bool, goes: bool) -> None:
    async def main() -> None:
        rig = SameHostRig(client, WITHOUT_9, realtime=realtime)
        pages = rig.dirty_pages(8)
        rig.drain(MIN - 10)
        await rig.swap_in(pages)
        await asyncio.sleep(60)
        assert (client.bytes_sent > 0) == goes

    simulate(main())


def test_a_connection_that_dies_takes_the_server_and_its_memory_with_it(client: FakeClient) -> None:
    async def main() -> None:
        rig = SameHostRig(client)
        await rig.write(2)
        rig.device.nbd_mark_nsock_dead(rig.nsock, "gone")
        await asyncio.wait_for(rig.serving, 1)
        assert rig.skb_memory.skbuff_fclone_cache.inuse == 0

    simulate(main())
