"""The backlog of an owned socket: what waits, what is refused, and with which flags it is processed in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.mm.sched import Task
from testbed.net.backlog import KernelBug
from testbed.net.dev import ETH_P_IP, HELD, HeldFrame, Receiver, RxBatch
from testbed.net.drop_reason import DropReason
from testbed.net.skbuff import SkBuff
from testbed.net.sock import Sock
from testbed.patches import Switches
from testbed.rules import LINUX_3_6, LINUX_6_1, V9, Rules
from tests.mm.machine import SERIES, without
from tests.net.host import FRAME_TRUESIZE, Host

BEFORE_4_3 = replace(SERIES, rules=V9)
FROM_4_3 = replace(SERIES, rules=replace(V9, sk_add_backlog_filter=True))
TASK = Task("application")


def arrive(host: Host, receiver: Receiver, count: int = 1, end_seq: list[int] | None = None) -> list[int]:
    batch = RxBatch([ETH_P_IP] * count, [receiver] * count, ["x"] * count, end_seq=end_seq)
    host.device.receive(batch)
    return batch.verdicts


def in_shortage(switches: Switches, ring: int = 16) -> Host:
    """All buffers of the ring lie in the reserve; the swap socket is SOCK_MEMALLOC."""
    host = Host(switches, ring=ring)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.fill_ring_from_reserve()
    return host


def test_what_arrives_while_a_task_owns_the_socket_waits_until_it_is_released() -> None:
    host = Host()
    host.udp.lock_sock(TASK)
    assert arrive(host, host.udp, 5) == [HELD] * 5
    assert (len(host.udp.receive_queue), host.udp.rmem_alloc, sum(host.tally.values())) == (0, 0, 0)
    host.udp.release_sock(TASK)
    assert (len(host.udp.receive_queue), host.udp.rmem_alloc) == (5, 5 * FRAME_TRUESIZE)
    assert host.ended(DropReason.DELIVERED) == 5
    assert arrive(host, host.udp) == [DropReason.DELIVERED]


def test_frames_go_on_to_the_real_socket_only_when_they_leave_the_backlog() -> None:
    host = Host()
    passed: list[HeldFrame] = []
    host.device.pass_on = passed.append
    host.swap.sk.lock_sock(TASK)
    batch = RxBatch([ETH_P_IP], [host.swap], ["swap"], segments=[3], end_seq=[300], gso_size=[100])
    host.device.receive(batch)
    assert not passed
    host.swap.copied(100)
    host.swap.sk.release_sock(TASK)
    assert [frame.kept for frame in passed] == [[True] * 3]
    assert passed == [batch.held[0]]
    assert len(host.swap) == 2


@pytest.mark.parametrize(("sndbuf", "room"), [(0, 5), (1, 5), (2 * FRAME_TRUESIZE, 7)])
def test_a_tcp_backlog_may_grow_to_both_buffers(sndbuf: int, room: int) -> None:
    host = Host(rcvbuf=4 * FRAME_TRUESIZE)
    host.swap.sk.sndbuf = sndbuf
    host.swap.sk.lock_sock(TASK)
    verdicts = arrive(host, host.swap, 8, [100 * number for number in range(1, 9)])
    assert verdicts == [HELD] * room + [DropReason.SOCKET_BACKLOG] * (8 - room)
    assert host.netstat.TCPBacklogDrop == 8 - room


def test_a_datagram_beyond_receive_queue_and_backlog_is_a_rcvbuf_error() -> None:
    """The backlog takes one at its limit (`sk_rcvqueues_full`), which the receive queue then does not."""
    host = Host(rcvbuf=3 * FRAME_TRUESIZE)
    arrive(host, host.udp)
    host.udp.lock_sock(TASK)
    assert arrive(host, host.udp, 5) == [HELD] * 3 + [DropReason.SOCKET_BACKLOG] * 2
    assert (host.netstat.RcvbufErrors, host.netstat.InErrors) == (2, 2)
    host.udp.release_sock(TASK)
    assert len(host.udp.receive_queue) == 3
    assert (host.netstat.RcvbufErrors, host.netstat.InErrors) == (3, 3)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("patch_12", "during"), [(True, True), (False, None)])
def test_a_reserve_skb_of_the_swap_socket_is_processed_with_pf_memalloc(
    before: bool, patch_12: bool, during: bool | None
) -> None:
    """Vector 47: the flag is set for the call and then what it was."""
    host = in_shortage(without(receive_pf_memalloc=patch_12))
    current = Task("nbd0", pf_memalloc=before)
    seen: list[bool] = []
    host.device.pass_on = lambda _frame: seen.append(current.pf_memalloc)
    host.swap.sk.lock_sock(current)
    assert arrive(host, host.swap, 1, [100]) == [HELD]
    host.swap.sk.release_sock(current)
    assert seen == [before if during is None else during]
    assert current.pf_memalloc == before
    assert len(host.swap) == 1


def test_pf_memalloc_is_restored_when_processing_fails() -> None:
    host = in_shortage(SERIES)
    skb = host.device.ring.popleft()

    def fail(_skb: SkBuff) -> None:
        raise ArithmeticError

    assert host.socket_memory.sk_add_backlog(host.swap.sk, skb, 1 << 20, fail) is None
    current = Task("nbd0")
    host.swap.sk.lock_sock(current)
    with pytest.raises(ArithmeticError):
        host.swap.sk.release_sock(current)
    assert not current.pf_memalloc
    assert host.swap.sk.owner is None


def test_before_4_3_a_reserve_skb_for_a_busy_ordinary_socket_stops_the_machine() -> None:
    host = in_shortage(BEFORE_4_3)
    host.udp.lock_sock(TASK)
    assert arrive(host, host.udp) == [HELD]
    with pytest.raises(KernelBug, match="SOCK_MEMALLOC"):
        host.udp.release_sock(TASK)


def test_from_4_3_on_it_is_dropped() -> None:
    host = in_shortage(FROM_4_3)
    host.udp.lock_sock(TASK)
    assert arrive(host, host.udp) == [DropReason.PFMEMALLOC]
    assert (host.netstat.PFMemallocDrop, host.netstat.InErrors, host.netstat.RcvbufErrors) == (1, 1, 0)
    host.udp.release_sock(TASK)
    assert not host.udp.receive_queue


@pytest.mark.parametrize("mixed", [False, True])
def test_from_4_10_on_a_datagram_is_queued_whoever_owns_the_socket(mixed: bool) -> None:
    """One kind of frame is received as a group, two are received one by one."""
    host = Host(replace(SERIES, rules=replace(V9, udp_backlog=False)), rcvbuf=3 * FRAME_TRUESIZE)
    host.udp.lock_sock(TASK)
    receivers: list[Receiver] = [host.udp] * 5
    if mixed:
        host.swap.sk.lock_sock(TASK)
        receivers[2] = host.swap
    batch = RxBatch([ETH_P_IP] * 5, receivers, ["x"] * 5, end_seq=[100] * 5)
    host.device.receive(batch)
    queued = [verdict for verdict, receiver in zip(batch.verdicts, receivers, strict=True) if receiver is host.udp]
    assert queued == [DropReason.DELIVERED] * 3 + [DropReason.SOCKET_RCVBUFF] * (1 if mixed else 2)
    assert (len(host.udp.receive_queue), host.udp.backlog) == (3, None)
    host.udp.release_sock(TASK)
    assert len(host.udp.receive_queue) == 3


def test_from_4_10_on_a_reserve_datagram_for_a_busy_socket_meets_the_filter() -> None:
    host = in_shortage(replace(SERIES, rules=replace(V9, udp_backlog=False)))
    host.udp.lock_sock(TASK)
    assert arrive(host, host.udp, 2) == [DropReason.PFMEMALLOC] * 2
    assert (host.netstat.PFMemallocDrop, host.udp.backlog) == (2, None)


def test_without_patch_12_the_filter_drops_it_on_release() -> None:
    host = in_shortage(without(receive_pf_memalloc=False))
    host.udp.lock_sock(TASK)
    assert arrive(host, host.udp) == [HELD]
    host.udp.release_sock(TASK)
    assert host.ended(DropReason.PFMEMALLOC) == host.netstat.PFMemallocDrop == 1


@pytest.mark.parametrize(("rules", "stops"), [(V9, True), (LINUX_3_6, False), (LINUX_6_1, False)])
def test_without_a_memalloc_socket_only_v9_takes_it_for_a_reserve_skb(rules: Rules, stops: bool) -> None:
    host = in_shortage(replace(SERIES, rules=replace(rules, sk_add_backlog_filter=False, rx_buffer="kmalloc")))
    host.socket_memory.sk_clear_memalloc(host.swap.sk)
    host.udp.lock_sock(TASK)
    skb = host.device.ring.popleft()
    assert host.socket_memory.sk_add_backlog(host.udp, skb, 1 << 20, host.skb_memory.kfree_skb) is None
    if stops:
        with pytest.raises(KernelBug):
            host.udp.release_sock(TASK)
    else:
        host.udp.release_sock(TASK)


def test_tcp_filters_before_its_backlog_in_every_kernel() -> None:
    host = in_shortage(BEFORE_4_3)
    host.socket_memory.sk_set_memalloc(Sock("another", 1))
    host.socket_memory.sk_clear_memalloc(host.swap.sk)
    host.swap.sk.lock_sock(TASK)
    assert arrive(host, host.swap, 1, [100]) == [DropReason.PFMEMALLOC]


def test_what_a_closed_socket_keeps_in_its_backlog_still_has_an_end() -> None:
    host = Host()
    host.swap.sk.lock_sock(TASK)
    arrive(host, host.swap, 3, [100, 200, 300])
    host.swap.purge()
    assert host.swap.sk.backlog is not None
    assert len(host.swap.sk.backlog) == 3
    host.swap.sk.release_sock(TASK)
    assert host.ended(DropReason.DELIVERED) == 3
    host.swap.purge()
    host.device.close()
    assert host.machine.node.pages_leaked() == 0


def test_a_machine_that_stopped_gives_its_backlog_back() -> None:
    host = in_shortage(BEFORE_4_3)
    host.udp.lock_sock(TASK)
    arrive(host, host.udp, 2)
    with pytest.raises(KernelBug):
        host.udp.release_sock(TASK)
    assert host.udp.backlog is not None
    assert len(host.udp.backlog) == 2
    used = host.skb_memory.rx_cache.inuse
    host.udp.backlog.drop(host.skb_memory.kfree_skb)
    assert host.skb_memory.rx_cache.inuse == used - 2
    assert (len(host.udp.backlog), host.udp.backlog.length) == (0, 0)
