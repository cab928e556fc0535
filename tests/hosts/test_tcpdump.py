"""A running tcpdump: it holds frames until it has its own pages, and patch 12 keeps the reserve from it."""

from __future__ import annotations

import asyncio

import pytest

from testbed.hosts.tcpdump import READ_TIMEOUT, Tcpdump
from testbed.net.drop_reason import DropReason
from testbed.patches import Switches
from tests.mm.machine import SERIES, without
from tests.net.host import FRAME_TRUESIZE, Host
from tests.virtual_time import simulate


def test_it_reads_what_has_come_now_and_then_and_holds_it_until_then() -> None:
    async def main() -> None:
        host = Host(ring=16)
        tcpdump = Tcpdump(host.device, 1 << 20)
        reader = asyncio.create_task(tcpdump.run(host.machine.node.memory))
        await asyncio.sleep(READ_TIMEOUT / 2)
        host.receive(None, 5)
        assert (len(tcpdump.sk.receive_queue), tcpdump.sk.rmem_alloc) == (5, 5 * FRAME_TRUESIZE)
        await asyncio.sleep(READ_TIMEOUT)
        assert (len(tcpdump.sk.receive_queue), tcpdump.sk.rmem_alloc) == (0, 0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        host.device.close()
        assert host.machine.node.pages_leaked() == 0

    simulate(main())


def test_without_its_own_pages_it_cannot_read() -> None:
    async def main() -> None:
        host = Host(without(throttle_direct_reclaim=False), ring=16)
        tcpdump = Tcpdump(host.device, 1 << 20)
        reader = asyncio.create_task(tcpdump.run(host.machine.node.memory))
        host.receive(None, 5)
        host.machine.drain(0)
        await asyncio.sleep(10 * READ_TIMEOUT)
        assert len(tcpdump.sk.receive_queue) == 5
        host.machine.give_back()
        await asyncio.sleep(10 * READ_TIMEOUT)
        assert len(tcpdump.sk.receive_queue) == 0
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)

    simulate(main())


@pytest.mark.parametrize(("switches", "parked"), [(SERIES, 0), (without(receive_pf_memalloc=False), 16)])
def test_what_patch_12_keeps_from_it_would_stay_in_its_queue(switches: Switches, parked: int) -> None:
    """The datagrams are dropped either way, but a clone keeps their memory."""
    host = Host(switches, ring=16)
    tcpdump = Tcpdump(host.device, 1 << 20)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.fill_ring_from_reserve()
    before = host.skb_memory.rx_cache.inuse
    assert host.receive(host.udp, 16) == [DropReason.PFMEMALLOC] * 16
    assert len(tcpdump.sk.receive_queue) == parked
    assert host.skb_memory.rx_cache.inuse - before == parked
