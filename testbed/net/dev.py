"""The receive side of a NIC and of the stack above it (net/core/dev.c): descriptor ring, NAPI poll, receive path.

Buffers are allocated when the ring is refilled, before anyone knows what will arrive in them, so whether a frame
sits in reserve memory was decided then. The path runs in kernel order: protocol list, taps, socket, filter,
receive buffer, queue. Each frame ends in exactly one `DropReason`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from testbed.mm.gfp import GFP_ATOMIC
from testbed.mm.sched import Task
from testbed.net.drop_reason import DropReason
from testbed.net.sk_mem import sk_rmem_schedule_all
from testbed.net.skbuff import SkbColumns, SkbMemory, SkBuff
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
SOCKET_BACKLOG = int(DropReason.SOCKET_BACKLOG)
PROTO_MEM = int(DropReason.PROTO_MEM)
HELD = -1
"""In place of a verdict: the frame waits in the backlog of a socket that a task owns."""

Receiver = Sock | TcpReceiveQueue | None
"""Who a frame is for: a datagram socket, a TCP socket, or None for the stack itself (ARP, ICMP, no socket)."""

Group = tuple["Kind", bool, int]
"""Frames of one poll that are alike: their kind, whether they lie in reserve memory, how many."""

Tally = dict[tuple[int, "str", bool], int]
"""Frames by (DropReason, socket name, lies in reserve memory)."""


class Kind(NamedTuple):
    """What frames of one kind have in common: EtherType, receiver, and what the ledger calls their destination."""

    protocol: int
    receiver: Receiver
    name: str


class HeldFrame:
    """A frame in a socket's backlog. `kept` says, once nothing of it is waiting, which of its segments got through.

    `data` is for whoever hands frames on: the frame's bytes, to be kept until then.
    """

    __slots__ = ("data", "gso_size", "kept", "waiting")

    def __init__(self, segments: int, gso_size: int) -> None:
        self.kept = [False] * segments
        self.gso_size = gso_size
        self.waiting = 0
        self.data = b""


class HeldSegment(NamedTuple):
    """One segment of a held frame, and the name its end is counted under."""

    frame: HeldFrame
    number: int
    name: str


class RxBatch:
    """Frames in order of arrival: frame i is of the kind `kinds[codes[i]]`. The lists have one entry for each frame.

    `segments` is how many wire frames a GSO frame stands for and `gso_size` the bytes of data in each but the last;
    `end_seq` the stream offset at which a TCP frame's data ends. The receive path fills `verdicts`, `cut` for a
    GSO frame of which only some segments (True) got through, and `held` for a frame that went to a backlog.
    """

    __slots__ = ("codes", "cut", "end_seq", "gso_size", "held", "kinds", "segments", "verdicts")

    def __init__(  # noqa: PLR0917
        self,
        protocols: Sequence[int],
        receivers: Sequence[Receiver],
        names: Sequence[str],
        segments: Sequence[int] | None = None,
        end_seq: Sequence[int] | None = None,
        gso_size: Sequence[int] | None = None,
    ) -> None:
        numbers: dict[tuple[int, int, str], int] = {}
        frames = [Kind(*frame) for frame in zip(protocols, receivers, names, strict=True)]
        self.kinds: list[Kind] = []
        codes = []
        for kind in frames:
            code = numbers.setdefault((kind.protocol, id(kind.receiver), kind.name), len(self.kinds))
            if code == len(self.kinds):
                self.kinds.append(kind)
            codes.append(code)
        self.codes: npt.NDArray[np.intp] = np.array(codes, np.intp)
        self.segments = segments
        self.end_seq = end_seq
        self.gso_size = gso_size
        self.verdicts: list[int] = []
        self.cut: dict[int, list[bool]] = {}
        self.held: dict[int, HeldFrame] = {}

    @classmethod
    def of_kinds(cls, codes: npt.NDArray[np.intp], kinds: list[Kind]) -> RxBatch:
        """A batch whose frames have been sorted into kinds already."""
        batch = cls((), (), ())
        batch.codes, batch.kinds = codes, kinds
        return batch

    def __len__(self) -> int:
        return len(self.codes)

    def hold(self, index: int, followers: int) -> HeldSegment:
        """The segment of frame `index` after which `followers` more come, about to go to a backlog."""
        frame = self.held.get(index)
        if frame is None:
            segments = 1 if self.segments is None else self.segments[index]
            frame = self.held[index] = HeldFrame(segments, 0 if self.gso_size is None else self.gso_size[index])
        return HeldSegment(frame, len(frame.kept) - 1 - followers, self.kinds[self.codes[index]].name)


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
        self.ring = skb_memory.no_rx_skbs()
        self.ptype_all: list[Sock] = []
        self.softirq = Task("softirq")
        self.softirq.serving_softirq = True
        self.last_pfmemalloc = False
        """The last skb that reached a SOCK_MEMALLOC socket lay in reserve memory: its ACK is sent with PF_MEMALLOC."""
        self.stack_pfmemalloc = False
        """The last skb for the stack itself lay in reserve memory: its answer is sent with PF_MEMALLOC."""
        self.pass_on: Callable[[HeldFrame], None] = _nothing
        """Told of each held frame of which something got through, once it has left the backlog."""
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
        """A batch of single frames without taps: polls are settled kind by kind, where that comes to the same."""
        position, total = 0, len(batch)
        while position < total:
            if not self.ring:
                self.alloc_rx_buffers()
            if not self.ring:
                self._miss(batch, position, total)
                return
            skbs = self.ring.take(min(total - position, NAPI_POLL_WEIGHT))
            end = position + len(skbs)
            if not self._poll_kinds(skbs, batch, position, end):
                for index, skb in enumerate(skbs, start=position):
                    batch.verdicts.append(self._netif_receive_skb(skb, batch, index))
            self.netstat.rx_packets += len(skbs)
            self.alloc_rx_buffers()
            position = end

    def _poll_kinds(self, skbs: SkbColumns, batch: RxBatch, start: int, end: int) -> bool:
        """Receive a poll's frames by kind and memory; False, with nothing done, if their order matters.

        It does for TCP, where a socket has room for some of its frames only, and where two kinds share a socket.
        """
        count = end - start
        reserve = skbs.pfmemalloc.count(1)
        if len(batch.kinds) == 1 and reserve in (0, count):
            group = (batch.kinds[0], reserve > 0, count)
            verdicts = self._judge([group])
            if verdicts is None:
                return False
            batch.verdicts += verdicts * count
            self._settle(group, verdicts[0], skbs)
            if not _is_queued(group[0], verdicts[0]):
                self.skb_memory.kfree_columns(skbs)
            return True
        return self._poll_mixed(skbs, batch, start, end)

    def _poll_mixed(self, skbs: SkbColumns, batch: RxBatch, start: int, end: int) -> bool:
        """`_poll_kinds` for frames of several kinds, or partly in reserve memory."""
        keys = batch.codes[start:end] * 2 + np.frombuffer(skbs.pfmemalloc, np.uint8)
        numbers = np.bincount(keys)
        present = np.flatnonzero(numbers).tolist()
        groups = [(batch.kinds[key >> 1], key & 1 == 1, int(numbers[key])) for key in present]
        verdicts = self._judge(groups)
        if verdicts is None:
            return False
        freed = np.ones(end - start, np.bool_)
        verdict_of = np.zeros(len(numbers), np.intp)
        for key, group, verdict in zip(present, groups, verdicts, strict=True):
            verdict_of[key] = verdict
            chosen = skbs
            if _is_queued(group[0], verdict):
                mine = keys == key
                freed &= ~mine
                chosen = skbs.chosen(mine.tolist())
            self._settle(group, verdict, chosen)
        batch.verdicts += verdict_of[keys].tolist()
        self.skb_memory.kfree_columns(skbs if freed.all() else skbs.chosen(freed.tolist()))
        return True

    def _judge(self, groups: list[Group]) -> list[int] | None:
        """The one verdict for all frames of each group; None if a group would have two, or their order matters."""
        takers: set[Sock] = set()
        sizes: dict[Sock, int] = {}
        verdicts = []
        for kind, pfmemalloc, count in groups:
            receiver = kind.receiver
            if kind.protocol not in SKB_PFMEMALLOC_PROTOCOLS:
                verdicts.append(UNHANDLED_PROTO)
            elif receiver is None:
                verdicts.append(DELIVERED)
            elif not isinstance(receiver, Sock) or receiver.owner is not None:
                return None
            elif pfmemalloc and not receiver.memalloc and self.switches.skb_pfmemalloc:
                verdicts.append(PFMEMALLOC)
            else:
                room = max(0, receiver.rcvbuf - receiver.rmem_alloc) // self.ring.truesize
                if 0 < room < count or receiver in takers:
                    return None
                takers.add(receiver)
                if room and receiver.prot is not None:
                    sizes[receiver] = count * self.ring.truesize
                verdicts.append(DELIVERED if room else SOCKET_RCVBUFF)
        return verdicts if not sizes or sk_rmem_schedule_all(sizes) else None

    def _settle(self, group: Group, verdict: int, skbs: SkbColumns) -> None:
        """Count a group's frames, and queue `skbs` if a socket takes them."""
        (_protocol, receiver, name), pfmemalloc, count = group
        netstat = self.netstat
        if pfmemalloc:
            self._count_reserve(count)
        if verdict == UNHANDLED_PROTO:
            netstat.rx_dropped += count
        elif verdict == PFMEMALLOC:
            netstat.PFMemallocDrop += count
            netstat.InErrors += count
        elif verdict == SOCKET_RCVBUFF:
            netstat.RcvbufErrors += count
            netstat.InErrors += count
        elif isinstance(receiver, Sock):
            netstat.InDatagrams += count
            receiver.skb_set_owner_r(count * skbs.truesize)
            receiver.receive_queue.extend(skbs)
        else:
            self.stack_pfmemalloc = pfmemalloc
        self._count(verdict, name, pfmemalloc, count)

    def _receive_each(self, batch: RxBatch) -> None:
        """A batch with GSO frames or TCP data: each frame takes one descriptor for each of its segments."""
        alone = self._single_datagrams(batch)
        position, total, budget = 0, len(batch), NAPI_POLL_WEIGHT
        while position < total:
            wanted = 1 if batch.segments is None else batch.segments[position]
            if len(self.ring) < wanted:
                self.alloc_rx_buffers()
                budget = NAPI_POLL_WEIGHT
            if alone[position] and self.ring:
                end = alone.find(0, position)
                wanted = min((end if end >= 0 else total) - position, budget, len(self.ring))
                self._receive_singles(batch, position, wanted)
                position += wanted
            else:
                self._receive_frame(batch, position, wanted)
                position += 1
            budget -= wanted
            if budget <= 0:
                self.alloc_rx_buffers()
                budget = NAPI_POLL_WEIGHT
        self.alloc_rx_buffers()

    def _single_datagrams(self, batch: RxBatch) -> bytes:
        """1 for each frame that is one segment, not TCP's, and not wanted by a tap."""
        if self.ptype_all:
            return bytes(len(batch))
        plain = np.array([not isinstance(kind.receiver, TcpReceiveQueue) for kind in batch.kinds], np.bool_)
        alone: npt.NDArray[np.bool_] = plain[batch.codes]
        if batch.segments is not None:
            alone &= np.asarray(batch.segments) == 1
        return alone.tobytes()

    def _receive_singles(self, batch: RxBatch, start: int, count: int) -> None:
        """`count` frames that are neither TCP's nor GSO's, for which there are descriptors."""
        skbs = self.ring.take(count)
        self.netstat.rx_packets += count
        if not self._poll_kinds(skbs, batch, start, start + count):
            for index, skb in enumerate(skbs, start=start):
                batch.verdicts.append(self._netif_receive_skb(skb, batch, index))

    def _receive_frame(self, batch: RxBatch, index: int, wanted: int) -> None:
        """One frame, segment by segment unless all of them are queued."""
        if self._tcp_v4_rcv_whole(batch, index, wanted):
            batch.verdicts.append(DELIVERED)
            return
        verdicts = [self._receive_segment(batch, index, wanted - 1 - number) for number in range(wanted)]
        batch.verdicts.append(verdicts[0])
        if verdicts.count(verdicts[0]) != wanted:
            self._cut(batch, index, verdicts)

    def _tcp_v4_rcv_whole(self, batch: RxBatch, index: int, wanted: int) -> bool:
        """`tcp_v4_rcv` for all segments of a frame; False, with nothing done, unless each is new and finds room."""
        kind = batch.kinds[batch.codes[index]]
        queue, ring = kind.receiver, self.ring
        if not isinstance(queue, TcpReceiveQueue) or batch.end_seq is None or self.ptype_all or len(ring) < wanted:
            return False
        step = batch.gso_size[index] if wanted > 1 and batch.gso_size is not None else 0
        first_end = batch.end_seq[index] - (wanted - 1) * step
        room = queue.sk.rcvbuf - queue.sk.rmem_alloc
        reserve = ring.pfmemalloc.count(1, 0, wanted)
        filtered = reserve and not queue.sk.memalloc and self.switches.skb_pfmemalloc
        listed = kind.protocol in SKB_PFMEMALLOC_PROTOCOLS
        if first_end <= queue.copied_seq or wanted * ring.truesize > room or filtered or not listed:
            return False
        if queue.sk.owner is not None or not queue.sk.sk_rmem_schedule_whole(wanted * ring.truesize):
            return False
        self.netstat.rx_packets += wanted
        self._count_reserve(reserve)
        self.last_pfmemalloc = ring.pfmemalloc[wanted - 1] == 1
        queue.tcp_queue_segments(ring.take(wanted), first_end, step)
        for pfmemalloc, count in ((False, wanted - reserve), (True, reserve)):
            if count:
                self._count(DELIVERED, kind.name, pfmemalloc, count)
        return True

    def _receive_segment(self, batch: RxBatch, index: int, followers: int) -> int:
        """One segment of a frame, `followers` of which come after it."""
        if not self.ring:
            self._count(RX_MISSED, batch.kinds[batch.codes[index]].name, False)
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
            self._count(RX_MISSED, batch.kinds[batch.codes[index]].name, False)

    def _count(self, reason: int, name: str, pfmemalloc: bool, frames: int = 1) -> None:
        key = (reason, name, pfmemalloc)
        counts = self._counts
        counts[key] = counts.get(key, 0) + frames

    def _count_reserve(self, frames: int) -> None:
        """Count frames in reserve memory by what patch 12 makes of them."""
        if not frames or not self.socket_memory.memalloc_socks:
            return
        if self.switches.receive_pf_memalloc:
            self.netstat.receive_pf_memalloc += frames
        else:
            self.netstat.receive_pf_memalloc_skipped += frames

    def _netif_receive_skb(self, skb: SkBuff, batch: RxBatch, index: int, followers: int = 0) -> int:
        """`__netif_receive_skb` for one skb: its verdict. The skb is freed or queued here."""
        protocol, receiver, name = batch.kinds[batch.codes[index]]
        pfmemalloc = skb.pfmemalloc
        verdict = self._check_protocol(skb, protocol)
        if verdict == DELIVERED:
            if receiver is None:
                self.stack_pfmemalloc = pfmemalloc
                self.skb_memory.kfree_skb(skb)
            elif receiver.__class__ is Sock:
                verdict = self._udp_queue_rcv_skb(receiver, skb, batch, index)
            else:
                verdict = self._tcp_v4_rcv(receiver, skb, batch, index, followers)
        if verdict != HELD:
            self._count(verdict, name, pfmemalloc)
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

    def _udp_queue_rcv_skb(self, sk: Sock, skb: SkBuff, batch: RxBatch, index: int) -> int:
        """`udp_queue_rcv_skb`: the filter comes only after the backlog."""
        if sk.owner is None:
            return self._sock_queue_rcv_skb(sk, skb)
        segment = batch.hold(index, 0)
        verdict = self._sk_add_backlog(sk, skb, sk.rcvbuf, segment, partial(self._sock_queue_rcv_skb, sk))
        self.netstat.InErrors += verdict != HELD
        self.netstat.RcvbufErrors += verdict == SOCKET_BACKLOG
        return verdict

    def _sk_add_backlog(
        self, sk: Sock, skb: SkBuff, limit: int, segment: HeldSegment, rcv: Callable[[SkBuff], int]
    ) -> int:
        """`sk_add_backlog`: HELD, or why the skb was dropped. `rcv` gives its verdict once the socket is free."""

        def backlog_rcv(waiting: SkBuff) -> None:
            pfmemalloc = waiting.pfmemalloc
            verdict = rcv(waiting)
            self._tally({(verdict, segment.name, pfmemalloc): 1})
            frame = segment.frame
            frame.kept[segment.number] = verdict == DELIVERED
            frame.waiting -= 1
            if not frame.waiting and any(frame.kept):
                self.pass_on(frame)

        refused = self.socket_memory.sk_add_backlog(sk, skb, limit, backlog_rcv)
        if refused is None:
            segment.frame.waiting += 1
            return HELD
        self.netstat.PFMemallocDrop += refused == PFMEMALLOC
        self.skb_memory.kfree_skb(skb)
        return int(refused)

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
        if not sk.sk_rmem_schedule(skb.truesize, skb.pfmemalloc):
            netstat.MemErrors += 1
            netstat.InErrors += 1
            self.skb_memory.kfree_skb(skb)
            return PROTO_MEM
        netstat.InDatagrams += 1
        sk.skb_set_owner_r(skb.truesize)
        sk.receive_queue.append(skb)
        return DELIVERED

    def _tcp_v4_rcv(self, queue: TcpReceiveQueue, skb: SkBuff, batch: RxBatch, index: int, followers: int) -> int:
        """`tcp_v4_rcv`: filter, then the backlog of a socket that a task owns, else the socket itself."""
        if not self.socket_memory.sk_filter(queue.sk, skb):
            self.netstat.PFMemallocDrop += 1
            self.skb_memory.kfree_skb(skb)
            return PFMEMALLOC
        end_seq = batch.end_seq[index] if batch.end_seq is not None else 0
        if followers and batch.gso_size is not None:
            end_seq -= followers * batch.gso_size[index]
        sk = queue.sk
        if sk.owner is None:
            return self._tcp_v4_do_rcv(queue, end_seq, skb)
        segment = batch.hold(index, followers)
        rcv = partial(self._tcp_v4_do_rcv, queue, end_seq)
        verdict = self._sk_add_backlog(sk, skb, sk.rcvbuf + sk.sndbuf, segment, rcv)
        self.netstat.TCPBacklogDrop += verdict == SOCKET_BACKLOG
        return verdict

    def _tcp_v4_do_rcv(self, queue: TcpReceiveQueue, end_seq: int, skb: SkBuff) -> int:
        """`tcp_v4_do_rcv`: receive buffer, the protocol's memory, queue until the reader has copied the data."""
        sk = queue.sk
        verdict = DELIVERED
        if end_seq > queue.copied_seq:
            if sk.rmem_alloc + skb.truesize > sk.rcvbuf:
                verdict = SOCKET_RCVBUFF
            elif not sk.sk_rmem_schedule(skb.truesize, skb.pfmemalloc):
                verdict = PROTO_MEM
        if verdict != DELIVERED:
            self.netstat.TCPRcvQDrop += 1
            self.skb_memory.kfree_skb(skb)
            return verdict
        self.last_pfmemalloc = skb.pfmemalloc
        queue.tcp_queue_rcv(skb, end_seq)
        return DELIVERED

    def read_datagrams(self, sk: Sock, count: int) -> None:
        """The application has read `count` datagrams: free their skbs (`skb_free_datagram`)."""
        popleft = sk.receive_queue.popleft
        skbs = [popleft() for _ in range(count)]
        sk.sock_rfree(sum([skb.truesize for skb in skbs]))
        self.skb_memory.kfree_skbs(skbs)

    def close(self) -> None:
        """Free the ring's buffers and what taps hold."""
        self.skb_memory.kfree_columns(self.ring.take(len(self.ring)))
        for tap in self.ptype_all:
            self.skb_memory.kfree_skbs(list(tap.receive_queue))
            tap.receive_queue.clear()
            tap.rmem_alloc = 0


def _is_queued(kind: Kind, verdict: int) -> bool:
    return verdict == DELIVERED and kind.receiver is not None


def _nothing(_held: HeldFrame) -> None:
    return
