"""udp_mem and tcp_mem: how the kernel chooses them, who is refused when they are reached, and who is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.mm.gfp import GFP_MEMALLOC, GFP_NOIO
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.drop_reason import DropReason
from testbed.net.sk_mem import SK_MEM_QUANTUM, SYSCTL_RMEM_MIN, Proto, sk_rmem_schedule_all, tcp_mem, udp_mem
from testbed.net.sock import Sock
from testbed.net.tcp_output import TcpSendQueue
from testbed.rules import LINUX_3_6, LINUX_6_1, V9
from tests.mm.machine import SERIES
from tests.net.host import FRAME_TRUESIZE, Host
from tests.virtual_time import is_blocked, simulate

MEM_64M = 16384 - 384


def protocol(least: int, pressure: int, most: int, *, tcp: bool = False) -> Proto:
    return Proto("TCP" if tcp else "UDP", (least, pressure, most), V9, has_memory_pressure=tcp)


def accounted(host: Host, proto: Proto) -> None:
    """Have the host's sockets share the limits of `proto`."""
    for sk in (host.udp, host.swap.sk):
        sk.prot = proto
        proto.sockets_allocated += 1


@pytest.mark.parametrize(
    ("rules", "pages", "expected"),
    [
        (V9, MEM_64M, (1500, 2000, 3000)),
        (LINUX_3_6, MEM_64M, (1500, 2000, 3000)),
        (LINUX_6_1, MEM_64M, (750, 1000, 1500)),
        (V9, 100, (96, 128, 192)),
    ],
)
def test_defaults_follow_low_memory(rules: object, pages: int, expected: tuple[int, int, int]) -> None:
    assert tcp_mem(pages, rules) == expected  # type: ignore[arg-type]
    assert udp_mem(MEM_64M) == (1500, 2000, 3000)


def test_beyond_the_first_limit_udp_refuses_whoever_holds_more_than_the_least() -> None:
    host = Host()
    accounted(host, protocol(2, 50, 60))
    verdicts = host.receive(host.udp, 6)
    fits = 2 * SK_MEM_QUANTUM // FRAME_TRUESIZE
    assert verdicts == [DropReason.DELIVERED] * fits + [DropReason.PROTO_MEM] * (6 - fits)
    assert (host.netstat.MemErrors, host.netstat.InErrors, host.netstat.RcvbufErrors) == (3, 3, 0)


def test_a_socket_that_is_read_keeps_its_least_while_others_hold_everything() -> None:
    proto = protocol(2, 50, 60)
    hog, prompt = Sock("hog", 1 << 20, prot=proto), Sock("prompt", 1 << 20, prot=proto)
    assert hog.sk_rmem_schedule(2 * PAGE_SIZE, pfmemalloc=False)
    hog.skb_set_owner_r(2 * PAGE_SIZE)
    assert not hog.sk_rmem_schedule(1, pfmemalloc=False)
    for _ in range(3):
        assert prompt.sk_rmem_schedule(FRAME_TRUESIZE, pfmemalloc=False)
        prompt.skb_set_owner_r(FRAME_TRUESIZE)
        prompt.sock_rfree(FRAME_TRUESIZE)
    assert proto.memory_allocated == 2


def test_tcp_under_pressure_refuses_only_those_beyond_their_share() -> None:
    proto = protocol(2, 4, 100, tcp=True)
    big, small = Sock("big", 1 << 20, prot=proto), Sock("small", 1 << 20, prot=proto)
    assert big.sk_rmem_schedule(49 * PAGE_SIZE, pfmemalloc=False)
    big.skb_set_owner_r(49 * PAGE_SIZE)
    assert (proto.memory_pressure, proto.memory_pressures) == (True, 1)
    assert not big.sk_rmem_schedule(PAGE_SIZE, pfmemalloc=False)
    assert small.sk_rmem_schedule(10 * PAGE_SIZE, pfmemalloc=False)
    small.skb_set_owner_r(10 * PAGE_SIZE)
    big.sock_rfree(49 * PAGE_SIZE)
    small.sock_rfree(9 * PAGE_SIZE)
    assert not proto.memory_pressure
    assert proto.memory_allocated == 1


@pytest.mark.parametrize("queued", [0, SYSCTL_RMEM_MIN - 1])
def test_nobody_gets_more_than_the_last_limit(queued: int) -> None:
    proto = protocol(1, 2, 3, tcp=True)
    sk = Sock("x", 1 << 20, prot=proto)
    sk.skb_set_owner_r(queued)
    proto.memory_allocated = 3
    sk.forward_alloc = 0
    assert not sk.sk_rmem_schedule(1, pfmemalloc=False)
    assert (proto.memory_allocated, sk.forward_alloc) == (3, 0)


@pytest.mark.parametrize(
    ("exempt", "pfmemalloc", "delivered"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_with_the_nfs_series_a_reserve_skb_may_exceed_tcp_mem(exempt: bool, pfmemalloc: bool, delivered: bool) -> None:
    rules = replace(V9, sk_rmem_schedule_pfmemalloc=exempt)
    host = Host(replace(SERIES, rules=rules))
    proto = Proto("TCP", (1, 1, 1), rules, has_memory_pressure=True)
    accounted(host, proto)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    proto.memory_allocated = 1
    if pfmemalloc:
        host.fill_ring_from_reserve()
    verdict = DropReason.DELIVERED if delivered else DropReason.PROTO_MEM
    assert host.receive(host.swap, end_seq=[100]) == [verdict]
    assert host.netstat.TCPRcvQDrop == (not delivered)
    assert proto.memory_allocated == 1
    host.swap.copied(100)
    assert (host.swap.sk.forward_alloc, proto.memory_allocated) == (0, 1)


@pytest.mark.parametrize("exempt", [True, False])
def test_nobody_is_exempt_from_tcp_mem_when_sending(exempt: bool) -> None:
    async def main() -> None:
        rules = replace(V9, sk_rmem_schedule_pfmemalloc=exempt)
        host = Host(replace(SERIES, rules=rules))
        proto = Proto("TCP", (20, 20, 20), rules, has_memory_pressure=True)
        accounted(host, proto)
        sk = host.swap.sk
        host.socket_memory.sk_set_memalloc(sk)
        sk.sk_allocation = GFP_NOIO | GFP_MEMALLOC
        queue = TcpSendQueue(sk, host.skb_memory, 1 << 20)
        thread = Task("nbd0", pf_kthread=True, pf_memalloc=True)
        send = asyncio.create_task(queue.tcp_sendmsg(60 * PAGE_SIZE, thread, lambda: None))
        assert await is_blocked(send, 30)
        assert proto.memory_allocated <= 20
        assert 0 < queue.write_seq < 20 * PAGE_SIZE
        while not send.done():
            queue.tcp_clean_rtx_queue(queue.write_seq)
            await asyncio.sleep(0.2)
        queue.purge()
        assert proto.memory_allocated == sk.forward_alloc == sk.wmem_queued == 0
        assert host.machine.node.pages_leaked() == 0

    simulate(main())


def test_at_its_send_buffer_a_stream_may_go_beyond_tcp_mem() -> None:
    """It will wait for acknowledgements anyway; refused, it would wait for memory that only they give back."""
    proto = protocol(1, 2, 3, tcp=True)
    proto.memory_allocated = 3
    sk = Sock("x", 1 << 20, sndbuf=2 * PAGE_SIZE, prot=proto)
    assert not sk.sk_wmem_schedule(PAGE_SIZE)
    sk.wmem_queued = PAGE_SIZE
    assert sk.sk_wmem_schedule(PAGE_SIZE)


def test_many_at_once_take_all_or_nothing() -> None:
    proto = protocol(10, 10, 10)
    one, other = Sock("one", 1, prot=proto), Sock("other", 1, prot=proto)
    assert not sk_rmem_schedule_all({one: 6 * PAGE_SIZE, other: 5 * PAGE_SIZE})
    assert (proto.memory_allocated, one.forward_alloc, other.forward_alloc) == (0, 0, 0)
    assert sk_rmem_schedule_all({one: 5 * PAGE_SIZE, other: 5 * PAGE_SIZE, Sock("free", 1): 1 << 30})
    assert proto.memory_allocated == 10


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(1, 20_000)), max_size=60), st.booleans())
def test_a_protocol_holds_the_pages_that_its_sockets_bytes_fill(steps: list[tuple[int, bool, int]], tcp: bool) -> None:
    proto = protocol(10, 15, 20, tcp=tcp)
    sockets = [Sock(str(number), 1 << 30, prot=proto) for number in range(3)]
    charged: list[list[int]] = [[], [], []]
    for number, take, size in steps:
        sk = sockets[number]
        if take and sk.sk_rmem_schedule(size, pfmemalloc=False):
            sk.skb_set_owner_r(size)
            charged[number].append(size)
        elif not take and charged[number]:
            sk.sock_rfree(charged[number].pop())
        assert proto.memory_allocated == sum(-(-sum(sizes) // SK_MEM_QUANTUM) for sizes in charged)
        assert proto.memory_allocated <= 20
        assert all(0 <= sk.forward_alloc < SK_MEM_QUANTUM for sk in sockets)
