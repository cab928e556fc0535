"""Memory of a TCP socket: received data until it is read, sent data until it is acknowledged."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from testbed.mm.gfp import GFP_ATOMIC, GFP_MEMALLOC, GFP_NOIO
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.dev import ETH_P_IP, Kind, RxBatch
from testbed.net.drop_reason import DropReason
from testbed.net.tcp_output import TcpSendQueue, send_control_packets
from testbed.patches import Switches
from tests.mm.machine import SERIES, VANILLA, with_rules, without
from tests.net.host import FRAME_TRUESIZE, Host
from tests.virtual_time import is_blocked, now, simulate


def nothing() -> None:
    return


def sender(host: Host, sndbuf: int = 1 << 20) -> TcpSendQueue:
    host.swap.sk.sk_allocation = GFP_NOIO | GFP_MEMALLOC
    return TcpSendQueue(host.swap.sk, host.skb_memory, sndbuf)


def test_data_is_held_until_the_reader_has_passed_its_end() -> None:
    host = Host()
    host.receive(host.swap, 3, end_seq=[100, 300, 200])
    assert (len(host.swap), host.swap.sk.rmem_alloc) == (3, 3 * FRAME_TRUESIZE)
    host.swap.copied(99)
    assert len(host.swap) == 3
    host.swap.copied(102)
    assert (len(host.swap), host.swap.sk.rmem_alloc) == (1, FRAME_TRUESIZE)
    host.swap.copied(99)
    assert (len(host.swap), host.swap.sk.rmem_alloc) == (0, 0)


@pytest.mark.parametrize("end_seq", [0, 50, 100])
def test_what_was_read_before_and_pure_acks_cost_nothing(end_seq: int) -> None:
    host = Host()
    host.swap.copied(100)
    host.receive(host.swap, end_seq=[end_seq])
    assert (len(host.swap), host.swap.sk.rmem_alloc) == (0, 0)


@pytest.mark.parametrize(("rcvbuf", "segments"), [(2 * FRAME_TRUESIZE, 3), (2 * FRAME_TRUESIZE - 1, 2), (0, 1)])
@pytest.mark.parametrize("gso", [False, True])
def test_a_receive_buffer_that_is_exceeded_takes_acks_but_no_more_data(rcvbuf: int, segments: int, gso: bool) -> None:
    """`tcp_try_rmem_schedule` does not count the segment itself."""
    host = Host(rcvbuf=rcvbuf)
    if gso:
        host.device.receive(RxBatch([ETH_P_IP], [host.swap], ["x"], [4], [400], [100]))
    else:
        host.receive(host.swap, 4, end_seq=[100, 200, 300, 400])
    assert (host.ended(DropReason.DELIVERED), host.ended(DropReason.SOCKET_RCVBUFF)) == (segments, 4 - segments)
    assert host.netstat.TCPRcvQDrop == 4 - segments
    assert host.receive(host.swap, end_seq=[0]) == [DropReason.DELIVERED]


def test_closing_the_socket_frees_what_it_held() -> None:
    host = Host()
    host.receive(host.swap, 50, end_seq=[100 * number for number in range(1, 51)])
    host.swap.purge()
    host.device.close()
    assert (host.swap.sk.rmem_alloc, len(host.swap), host.machine.node.pages_leaked()) == (0, 0, 0)


def test_sent_pages_are_held_until_they_are_acknowledged() -> None:
    async def main() -> None:
        host = Host()
        queue = sender(host)
        await queue.tcp_sendmsg(40 * PAGE_SIZE, Task("nbd0"), nothing)
        assert queue.write_seq == 40 * PAGE_SIZE
        used = host.machine.node.zone.managed - host.machine.free
        assert 40 <= used <= 44
        queue.tcp_clean_rtx_queue(16 * PAGE_SIZE - 1)
        assert host.machine.node.zone.managed - host.machine.free == used
        queue.tcp_clean_rtx_queue(16 * PAGE_SIZE)
        assert host.machine.node.zone.managed - host.machine.free == used - 16
        queue.tcp_clean_rtx_queue(40 * PAGE_SIZE)
        assert (queue.sk.wmem_queued, host.machine.node.pages_leaked()) == (0, 0)

    simulate(main())


def test_a_full_send_buffer_waits_for_acknowledgements() -> None:
    async def main() -> None:
        host = Host()
        queue = sender(host, sndbuf=20 * PAGE_SIZE)
        send = asyncio.create_task(queue.tcp_sendmsg(64 * PAGE_SIZE, Task("nbd0"), nothing))
        assert await is_blocked(send, 100)
        assert queue.write_seq == 32 * PAGE_SIZE
        queue.tcp_clean_rtx_queue(32 * PAGE_SIZE)
        assert not await is_blocked(send, 1)
        assert queue.write_seq == 64 * PAGE_SIZE
        queue.purge()
        assert host.machine.node.pages_leaked() == 0

    simulate(main())


@pytest.mark.parametrize(
    ("switches", "pf_memalloc", "free", "finds"),
    [(SERIES, True, 20, True), (SERIES, True, 0, False), (VANILLA, False, 200, False), (VANILLA, False, 300, True)],
)
def test_a_sender_that_finds_no_memory_waits_for_it(
    switches: Switches, pf_memalloc: bool, free: int, finds: bool
) -> None:
    async def main() -> None:
        host = Host(switches)
        queue = sender(host)
        host.machine.drain(free)
        thread = Task("nbd0", pf_kthread=True, pf_memalloc=pf_memalloc)
        send = asyncio.create_task(queue.tcp_sendmsg(8 * PAGE_SIZE, thread, nothing))
        assert await is_blocked(send, 60) == (not finds)
        host.machine.give_back()
        await asyncio.wait_for(send, 1)
        queue.purge()
        assert host.machine.node.pages_leaked() == 0

    simulate(main())


def test_who_waits_for_send_buffer_is_woken_when_a_third_of_it_is_free() -> None:
    async def main() -> None:
        host = Host()
        queue = sender(host, sndbuf=12 * PAGE_SIZE)
        waiting = asyncio.create_task(send_pages(queue, 13))
        assert await is_blocked(waiting, 60)
        queue.tcp_clean_rtx_queue(3 * PAGE_SIZE)
        assert await is_blocked(waiting, 60)
        queue.tcp_clean_rtx_queue(5 * PAGE_SIZE)
        assert not await is_blocked(waiting, 0)

    async def send_pages(queue: TcpSendQueue, count: int) -> None:
        for _ in range(count):
            await queue.tcp_sendmsg(PAGE_SIZE, Task("nbd0"), nothing)

    simulate(main())


@pytest.mark.parametrize("locked", [False, True])
def test_the_socket_stays_locked_while_its_sender_waits_for_a_page(locked: bool) -> None:
    async def main() -> None:
        host = Host(with_rules(sendmsg_waits_locked=locked))
        queue = TcpSendQueue(host.swap.sk, host.skb_memory, 1 << 20)
        host.swap.sk.sk_allocation = GFP_NOIO
        host.machine.drain(host.machine.node.zone.watermarks.min)
        waiting = asyncio.create_task(queue.tcp_sendmsg(PAGE_SIZE, Task("nbd0"), nothing))
        assert await is_blocked(waiting, 60)
        batch = RxBatch.of_kinds(np.zeros(1, np.intp), [Kind(ETH_P_IP, host.swap, "swap")])
        batch.end_seq = [100]
        host.device.receive(batch)
        assert (len(host.swap), host.swap.sk.owner is not None) == ((0, True) if locked else (1, False))
        host.machine.give_back()
        assert not await is_blocked(waiting, 1)
        assert (len(host.swap), host.swap.sk.owner) == (1, None)

    simulate(main())


def test_what_has_its_memory_goes_out_before_the_sender_waits() -> None:
    async def main() -> None:
        host = Host()
        queue = sender(host)
        host.machine.drain(7)
        pushed: list[int] = []
        thread = Task("nbd0", pf_kthread=True, pf_memalloc=True)
        send = asyncio.create_task(queue.tcp_sendmsg(16 * PAGE_SIZE, thread, lambda: pushed.append(queue.write_seq)))
        assert await is_blocked(send, 5)
        assert pushed[0] == queue.write_seq == 5 * PAGE_SIZE
        send.cancel()
        await asyncio.wait([send])
        queue.purge()
        host.machine.give_back()
        assert host.machine.node.pages_leaked() == 0
        assert now() == pytest.approx(5)

    simulate(main())


@pytest.mark.parametrize(
    ("switches", "flagged", "pf_memalloc", "sent"),
    [
        (SERIES, True, False, 3),
        (SERIES, False, False, 0),
        (SERIES, False, True, 3),
        (without(softirq_pf_memalloc=False), False, True, 0),
        (without(sk_allocation=False), True, False, 0),
    ],
)
def test_who_may_send_an_ack_from_the_reserve(switches: Switches, flagged: bool, pf_memalloc: bool, sent: int) -> None:
    host = Host(switches)
    if flagged:
        host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.machine.drain(50)
    host.softirq.pf_memalloc = pf_memalloc
    sk = host.swap.sk
    assert send_control_packets(3, sk, host.skb_memory, host.socket_memory, host.softirq) == sent
    host.machine.give_back()
    assert host.machine.node.pages_leaked() == 0


def test_an_ack_needs_no_reserve_while_there_is_memory() -> None:
    host = Host()
    assert send_control_packets(5, None, host.skb_memory, host.socket_memory, host.softirq) == 5
    assert host.skb_memory.alloc_skb(0, GFP_ATOMIC, host.softirq) is not None
