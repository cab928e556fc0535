"""netperf over loopback: what is sent is received in the same skbs, so there are no receive buffers, only the filter.

UDP_STREAM sends datagrams that are queued until read. TCP_STREAM sends writes of 16 KiB; the receiver copies them
and acknowledges, which frees the sender's skbs.
"""

from __future__ import annotations

from testbed.mm.gfp import GFP_NOWARN
from testbed.mm.sched import Task, do_softirq
from testbed.net.sock import Sock
from testbed.net.tcp_output import TcpSendQueue, send_control_packets
from testbed.workloads.host import RCVBUF, Host

DATAGRAM = 1024
BURST = 32
"""Datagrams that arrive before the reader runs."""
WRITE = 16384
SNDBUF = 1 << 20


class UdpStream:
    """An operation is a datagram, sent and read."""

    def __init__(self, host: Host) -> None:
        self._skb_memory = host.skb_memory
        self._socket_memory = host.socket_memory
        self._sender = Sock("netperf", RCVBUF)
        self._receiver = Sock("netserver", RCVBUF)
        self._task = Task("netperf")

    async def run(self, operations: int) -> int:
        done = 0
        while done < operations:
            for _ in range(BURST):
                self._send()
            self._read()
            done += BURST
        return done

    def _send(self) -> None:
        receiver = self._receiver
        skb = self._skb_memory.alloc_skb(DATAGRAM, self._sender.sk_allocation | GFP_NOWARN, self._task)
        assert skb is not None
        assert self._socket_memory.sk_filter(receiver, skb)
        receiver.rmem_alloc += skb.truesize
        assert receiver.rmem_alloc <= receiver.rcvbuf
        receiver.receive_queue.append(skb)

    def _read(self) -> None:
        queue = self._receiver.receive_queue
        while queue:
            skb = queue.popleft()
            self._receiver.rmem_alloc -= skb.truesize
            self._skb_memory.kfree_skb(skb)


class TcpStream:
    """An operation is a write of 16 KiB, sent, read and acknowledged."""

    def __init__(self, host: Host) -> None:
        self._skb_memory = host.skb_memory
        self._socket_memory = host.socket_memory
        self._receiver = Sock("netserver", RCVBUF)
        self._queue = TcpSendQueue(Sock("netperf", RCVBUF), host.skb_memory, SNDBUF)
        self._task = Task("netperf")
        self._softirq_pf_memalloc = host.node.switches.softirq_pf_memalloc

    async def run(self, operations: int) -> int:
        for _ in range(operations):
            await self._queue.tcp_sendmsg(WRITE, self._task, _sent_at_once)
            with do_softirq(self._task, softirq_pf_memalloc=self._softirq_pf_memalloc) as softirq:
                sent = send_control_packets(1, self._receiver, self._skb_memory, self._socket_memory, softirq)
            assert sent == 1
            self._queue.tcp_clean_rtx_queue(self._queue.write_seq)
        return operations


def _sent_at_once() -> None:
    """Nothing waits to be pushed: loopback takes it as it comes."""
