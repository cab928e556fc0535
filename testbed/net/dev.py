"""The receive side of a NIC and of the stack above it (net/core/dev.c): descriptor ring, NAPI poll, receive path.

Buffers are allocated when the ring is refilled, before anyone knows what will arrive in them, so whether a frame
sits in reserve memory was decided then. The path runs in kernel order: protocol list, taps, socket, filter,
receive buffer, queue. Each frame ends in exactly one `DropReason`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from testbed.mm.gfp import GFP_ATOMIC
from testbed.mm.sched import Task
from testbed.net.drop_reason import DropReason
from testbed.net.skbuff import SkbMemory, SkBuff
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue

ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
ETH_P_8021Q = 0x8100
ETH_P_IPX = 0x8137

SKB_PFMEMALLOC_PROTOCOLS = frozenset({ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q})
"""Protocols that may be processed in reserve memory (`skb_pfmemalloc_protocol`, patch 12)."""

NAPI_POLL_WEIGHT = 64

DELIVERED = int(DropReason.DELIVERED)
PFMEMALLOC = int(DropReason.PFMEMALLOC)
UNHANDLED_PROTO = int(DropReason.UNHANDLED_PROTO)
SOCKET_RCVBUFF = int(DropReason.SOCKET_RCVBUFF)
RX_MISSED = int(DropReason.RX_MISSED)

Receiver = Sock | TcpReceiveQueue | None
"""Who a frame is for: a datagram socket, a TCP socket, or None for the stack itself (ARP, ICMP, no socket)."""

Tally = dict[tuple[int, "str", bool], int]
"""Frames by (DropReason, socket name, lies in reserve memory)."""


@dataclass(slots=True)
class RxBatch:
    """Frames in order of arrival, one entry each in all lists.

    `segments` is how many wire frames a GSO frame stands for and `gso_size` the bytes of data in each but the last;
    `end_seq` the stream offset at which a TCP frame's data ends; `names` what the ledger calls the frame's
    destination. The receive path fills `verdicts`, and `cut` for a GSO frame of which only some segments (True) got
    through.
    """

    protocols: Sequence[int]
    receivers: Sequence[Receiver]
    names: Sequence[str]
    segments: Sequence[int] | None = None
    end_seq: Sequence[int] | None = None
    gso_size: Sequence[int] | None = None
    verdicts: list[int] = field(default_factory=list)
    cut: dict[int, list[bool]] = field(default_factory=dict)


class NetDevice:
    """An emulated NIC and the receive path behind it.

    Args:
        ring_size: receive descriptors.
        tally: told how many frames ended where, once for each poll.
    """

    def __init__(
        self,
        skb_memory: SkbMemory,
        socket_memory: SocketMemory,
        netstat: NetStat,
        ring_size: int,
        tally: Callable[[Tally], None],
    ) -> None:
        self.skb_memory = skb_memory
        self.socket_memory = socket_memory
        self.netstat = netstat
        self.switches = socket_memory.switches
        self.ring_size = ring_size
        self.ring: deque[SkBuff] = deque()
        self.ptype_all: list[Sock] = []
        self.softirq = Task("softirq")
        self.softirq.serving_softirq = True
        self.last_pfmemalloc = False
        """The last skb that reached a SOCK_MEMALLOC socket lay in reserve memory: its ACK is sent with PF_MEMALLOC."""
        self._tally = tally
        self._counts: Tally = {}

    def alloc_rx_buffers(self) -> None:
        """Refill empty descriptors; those that find no memory stay empty until the next poll."""
        missing = self.ring_size - len(self.ring)
        if missing:
            self.ring.extend(
                self.skb_memory.alloc_rx_skbs(missing, GFP_ATOMIC, self.softirq, self.socket_memory.memalloc_socks)
            )

    def receive(self, batch: RxBatch) -> None:
        """Take a batch off the wire, NAPI poll by NAPI poll, refilling the ring after each."""
        self._counts = {}
        if batch.segments is None and batch.end_seq is None and not self.ptype_all:
            self._receive_plain(batch)
        else:
            self._receive_each(batch)
        self._tally(self._counts)

    def _receive_plain(self, batch: RxBatch) -> None:
        """A batch of single frames: whole polls in reserve memory are settled per socket, not per frame."""
        position, total = 0, len(batch.protocols)
        while position < total:
            if not self.ring:
                self.alloc_rx_buffers()
            if not self.ring:
                self._miss(batch, position, total)
                return
            end = min(total, position + NAPI_POLL_WEIGHT, position + len(self.ring))
            popleft = self.ring.popleft
            skbs = [popleft() for _ in range(end - position)]
            for index, skb in enumerate(skbs, start=position):
                batch.verdicts.append(self._netif_receive_skb(skb, batch, index))
            self.netstat.rx_packets += len(skbs)
            self.alloc_rx_buffers()
            position = end

    def _receive_each(self, batch: RxBatch) -> None:
        """A batch with GSO frames or TCP data: each frame takes one descriptor for each of its segments."""
        segments = batch.segments
        budget = NAPI_POLL_WEIGHT
        for index in range(len(batch.protocols)):
            wanted = segments[index] if segments is not None else 1
            if len(self.ring) < wanted:
                self.alloc_rx_buffers()
                budget = NAPI_POLL_WEIGHT
            verdicts = [self._receive_segment(batch, index, wanted - 1 - number) for number in range(wanted)]
            batch.verdicts.append(verdicts[0])
            if verdicts.count(verdicts[0]) != wanted:
                self._cut(batch, index, verdicts)
            budget -= wanted
            if budget <= 0:
                self.alloc_rx_buffers()
                budget = NAPI_POLL_WEIGHT
        self.alloc_rx_buffers()

    def _receive_segment(self, batch: RxBatch, index: int, followers: int) -> int:
        """One segment of a frame, `followers` of which come after it."""
        if not self.ring:
            self._count(RX_MISSED, batch.names[index], False)
            self.netstat.rx_missed += 1
            return RX_MISSED
        self.netstat.rx_packets += 1
        return self._netif_receive_skb(self.ring.popleft(), batch, index, followers)

    def _cut(self, batch: RxBatch, index: int, verdicts: list[int]) -> None:
        """Some segments of a GSO frame got through and some did not."""
        through = [verdict == DELIVERED for verdict in verdicts]
        if any(through):
            batch.verdicts[index] = DELIVERED
            batch.cut[index] = through

    def _miss(self, batch: RxBatch, start: int, end: int) -> None:
        self.netstat.rx_missed += end - start
        for index in range(start, end):
            batch.verdicts.append(RX_MISSED)
            self._count(RX_MISSED, batch.names[index], False)

    def _count(self, reason: int, name: str, pfmemalloc: bool) -> None:
        key = (reason, name, pfmemalloc)
        counts = self._counts
        counts[key] = counts.get(key, 0) + 1

    def _netif_receive_skb(self, skb: SkBuff, batch: RxBatch, index: int, followers: int = 0) -> int:
        """`__netif_receive_skb` for one skb: its verdict. The skb is freed or queued here."""
        receiver = batch.receivers[index]
        pfmemalloc = skb.pfmemalloc
        verdict = self._check_protocol(skb, batch.protocols[index])
        if verdict == DELIVERED:
            if receiver is None:
                self.skb_memory.kfree_skb(skb)
            elif receiver.__class__ is Sock:
                verdict = self._sock_queue_rcv_skb(receiver, skb)
            else:
                verdict = self._tcp_v4_rcv(receiver, skb, batch, index, followers)  # type: ignore[arg-type]
        key = (verdict, batch.names[index], pfmemalloc)
        counts = self._counts
        counts[key] = counts.get(key, 0) + 1
        return verdict

    def _check_protocol(self, skb: SkBuff, protocol: int) -> int:
        """The part before the protocol handlers: PF_MEMALLOC, taps, protocol list (patch 12)."""
        reserve = skb.pfmemalloc and self.socket_memory.memalloc_socks > 0
        if reserve and self.switches.receive_pf_memalloc:
            self.netstat.receive_pf_memalloc += 1
            self.netstat.tap_skipped += bool(self.ptype_all)
        else:
            self.netstat.receive_pf_memalloc_skipped += reserve
            if self.ptype_all:
                self._deliver_to_taps(skb)
        if protocol in SKB_PFMEMALLOC_PROTOCOLS:
            return DELIVERED
        self.netstat.rx_dropped += 1
        self.skb_memory.kfree_skb(skb)
        return UNHANDLED_PROTO

    def _deliver_to_taps(self, skb: SkBuff) -> None:
        """Packet sockets that see everything (`ptype_all`) queue a clone within their receive buffer."""
        for tap in self.ptype_all:
            if tap.rmem_alloc + skb.truesize > tap.rcvbuf:
                continue
            clone = self.skb_memory.skb_clone(skb, GFP_ATOMIC, self.softirq)
            if clone is not None:
                tap.rmem_alloc += clone.truesize
                tap.receive_queue.append(clone)

    def _sock_queue_rcv_skb(self, sk: Sock, skb: SkBuff) -> int:
        """`sock_queue_rcv_skb` of a datagram socket: filter, receive buffer, queue."""
        netstat = self.netstat
        if skb.pfmemalloc and not self.socket_memory.sk_filter(sk, skb):
            netstat.PFMemallocDrop += 1
            netstat.InErrors += 1
            self.skb_memory.kfree_skb(skb)
            return PFMEMALLOC
        if sk.rmem_alloc + skb.truesize > sk.rcvbuf:
            netstat.RcvbufErrors += 1
            netstat.InErrors += 1
            self.skb_memory.kfree_skb(skb)
            return SOCKET_RCVBUFF
        netstat.InDatagrams += 1
        sk.rmem_alloc += skb.truesize
        sk.receive_queue.append(skb)
        return DELIVERED

    def _tcp_v4_rcv(self, queue: TcpReceiveQueue, skb: SkBuff, batch: RxBatch, index: int, followers: int) -> int:
        """`tcp_v4_rcv`: filter, receive buffer, queue until the reader has copied the data."""
        if not self.socket_memory.sk_filter(queue.sk, skb):
            self.netstat.PFMemallocDrop += 1
            self.skb_memory.kfree_skb(skb)
            return PFMEMALLOC
        end_seq = batch.end_seq[index] if batch.end_seq is not None else 0
        if followers and batch.gso_size is not None:
            end_seq -= followers * batch.gso_size[index]
        if end_seq > queue.copied_seq and queue.sk.rmem_alloc + skb.truesize > queue.sk.rcvbuf:
            self.netstat.TCPRcvQDrop += 1
            self.skb_memory.kfree_skb(skb)
            return SOCKET_RCVBUFF
        self.last_pfmemalloc = skb.pfmemalloc
        queue.tcp_queue_rcv(skb, end_seq)
        return DELIVERED

    def read_datagrams(self, sk: Sock, count: int) -> None:
        """The application has read `count` datagrams: free their skbs (`skb_free_datagram`)."""
        for _ in range(count):
            skb = sk.receive_queue.popleft()
            sk.rmem_alloc -= skb.truesize
            self.skb_memory.kfree_skb(skb)

    def close(self) -> None:
        """Free the ring's buffers and what taps hold."""
        self.skb_memory.kfree_skbs(list(self.ring))
        self.ring.clear()
        for tap in self.ptype_all:
            self.skb_memory.kfree_skbs(list(tap.receive_queue))
            tap.receive_queue.clear()
            tap.rmem_alloc = 0
