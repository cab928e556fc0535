"""The receive side of a NIC and of the stack above it (net/core/dev.c): descriptor ring, NAPI poll, receive path.

Buffers are allocated when the ring is refilled, before anyone knows what will arrive in them, so whether a frame
sits in reserve memory was decided then. The path runs in kernel order: protocol list, taps, socket, filter,
receive buffer, queue. Each frame ends in exactly one `DropReason`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from testbed.mm.gfp import GFP_ATOMIC
from testbed.mm.sched import Task
from testbed.net.drop_reason import DropReason
from testbed.net.gro import merge
from testbed.net.rx_ring import rx_ring
from testbed.net.sk_mem import sk_rmem_schedule_all
from testbed.net.skbuff import SkbColumns, SkbMemory, SkBuff
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tun import Tun

ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
ETH_P_8021Q = 0x8100
ETH_P_8021AD = 0x88A8
ETH_P_IPX = 0x8137

SKB_PFMEMALLOC_PROTOCOLS = frozenset({ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q})
"""Protocols that may be processed in reserve memory (`skb_pfmemalloc_protocol`, patch 12).

These hosts have handlers for exactly these; only packet sockets may be bound to others.
"""

KINDS_IN_A_BYTE = 128
"""Frames of up to so many kinds, in the reserve or not, are told apart by a byte."""

DELIVERED = int(DropReason.DELIVERED)
PFMEMALLOC = int(DropReason.PFMEMALLOC)
UNHANDLED_PROTO = int(DropReason.UNHANDLED_PROTO)
SOCKET_RCVBUFF = int(DropReason.SOCKET_RCVBUFF)
RX_MISSED = int(DropReason.RX_MISSED)
RX_NOMEM = int(DropReason.RX_NOMEM)
SOCKET_BACKLOG = int(DropReason.SOCKET_BACKLOG)
PROTO_MEM = int(DropReason.PROTO_MEM)
HELD = -1
"""In place of a verdict: the frame waits in the backlog of a socket that a task owns."""
FORWARDED = -2
"""In place of DELIVERED: a bridge has sent the frame out again by a tap."""

Receiver = Sock | TcpReceiveQueue | Tun | None
"""Who a frame is for: a datagram socket, a TCP socket, a tap beyond a bridge, or None for the stack itself (ARP, ICMP,
no socket)."""

Group = tuple["Kind", bool, int]
"""Frames of one poll that are alike: their kind, whether they lie in reserve memory, how many."""

Tally = dict[tuple[int, "str", bool], int]
"""Frames by (DropReason, socket name, lies in reserve memory)."""


class Kind(NamedTuple):
    """What frames of one kind have in common: EtherType, receiver, what the ledger calls their destination, and whether
    they are for everybody on the link."""

    protocol: int
    receiver: Receiver
    name: str
    broadcast: bool = False


class HeldFrame:
    """A frame in a socket's backlog. `verdicts` says, once nothing of it is waiting, where its segments ended.

    What never came to the backlog remains HELD there. `data` is for whoever hands frames on: what they need for this
    one, to be kept until then.
    """

    __slots__ = ("data", "gso_size", "verdicts", "waiting")

    def __init__(self, segments: int, gso_size: int) -> None:
        self.verdicts = [HELD] * segments
        self.gso_size = gso_size
        self.waiting = 0
        self.data: Any = None

    @property
    def kept(self) -> list[bool]:
        """Which of its segments got through."""
        return [verdict == DELIVERED for verdict in self.verdicts]


class HeldSegments(NamedTuple):
    """Those segments of a held frame that one skb stands for, and the name their end is counted under."""

    frame: HeldFrame
    numbers: slice
    name: str


class RxBatch:
    """Frames in order of arrival: frame i is of the kind `kinds[codes[i]]`. The lists have one entry for each frame.

    `segments` is how many wire frames a GSO frame stands for and `gso_size` the bytes of data in each but the last;
    `end_seq` the stream offset at which a TCP frame's data ends. `lengths` are the frames' own, bytes, if the driver
    copies short ones. The receive path fills `verdicts`, `mixed` with each segment's own for a GSO frame whose segments
    fared differently, `cut` for one of which only some (True) got through, and `held` for a frame that went to a
    backlog.
    """

    __slots__ = ("codes", "cut", "end_seq", "gso_size", "held", "kinds", "lengths", "mixed", "segments", "verdicts")

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
        self.lengths: Sequence[int] | None = None
        self.verdicts: list[int] = []
        self.mixed: dict[int, list[int]] = {}
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

    def hold(self, index: int, followers: int, count: int) -> HeldSegments:
        """`count` segments of frame `index`, after which `followers` more come, about to go to a backlog."""
        frame = self.held.get(index)
        if frame is None:
            segments = 1 if self.segments is None else self.segments[index]
            frame = self.held[index] = HeldFrame(segments, 0 if self.gso_size is None else self.gso_size[index])
        end = len(frame.verdicts) - followers
        return HeldSegments(frame, slice(end - count, end), self.kinds[self.codes[index]].name)


class NetDevice:
    """An emulated NIC and the receive path behind it.

    Args:
        ring_size: receive descriptors.
        tally: told how many frames ended where, once for each poll.
        copybreak: frames of up to so many bytes are copied into a small skb of their own, and the buffer stays where
            it is.
        gro: the segments of a GSO frame, each in a buffer of its own, are merged before they go up the stack.
    """

    def __init__(
        self,
        skb_memory: SkbMemory,
        socket_memory: SocketMemory,
        netstat: NetStat,
        ring_size: int,
        tally: Callable[[Tally], None],
        *,
        copybreak: int = 0,
        gro: bool = False,
    ) -> None:
        self.skb_memory = skb_memory
        self.socket_memory = socket_memory
        self.netstat = netstat
        self.switches = socket_memory.switches
        self.ring = rx_ring(skb_memory, ring_size)
        self.copybreak = copybreak
        self.gro = gro
        self.ptype_all: list[Sock] = []
        self.ptype_base: dict[int, list[Sock]] = {}
        """Packet sockets bound to one protocol, by its EtherType."""
        self.rx_handler: Callable[[SkBuff, Kind], DropReason | None] | None = None
        """A bridge's: where an skb ended that it has taken, else None. What is for one of the host's own sockets it
        never takes."""
        rules = self.switches.rules
        self._protocols = SKB_PFMEMALLOC_PROTOCOLS | ({ETH_P_8021AD} if rules.protocol_8021ad else frozenset())
        self._needs_memalloc_socks = rules.receive_needs_memalloc_socks
        self._udp_backlog = rules.udp_backlog
        self._pfmemalloc_drop_is_rcvbuf_error = rules.pfmemalloc_drop_is_rcvbuf_error
        self.softirq = Task("softirq")
        self.softirq.serving_softirq = True
        self.last_pfmemalloc = False
        """The last skb that reached a SOCK_MEMALLOC socket lay in reserve memory: its ACK is sent with PF_MEMALLOC."""
        self.stack_pfmemalloc = False
        """The last skb for the stack itself lay in reserve memory: its answer is sent with PF_MEMALLOC."""
        self.pass_on: Callable[[HeldFrame], None] = _nothing
        """Told of each held frame once it has left the backlog."""
        self._tally = tally
        self._counts: Tally = {}

    def alloc_rx_buffers(self) -> None:
        """Refill empty descriptors; those that find no memory stay empty until the next poll."""
        missing = self.ring.missing
        if missing:
            self.ring.refill(
                self.skb_memory.alloc_rx_skbs(missing, GFP_ATOMIC, self.softirq, self.socket_memory.memalloc_socks)
            )

    def receive(self, batch: RxBatch) -> None:
        """Take a batch off the wire, NAPI poll by NAPI poll, refilling the ring after each."""
        self._counts = {}
        if batch.segments is None and batch.end_seq is None and not self._looks_at_each():
            self._receive_plain(batch)
        else:
            self._receive_each(batch)
        self._tally(self._counts)

    def _looks_at_each(self) -> bool:
        """Whether there is somebody who may want any frame, so that none can be settled with others like it."""
        return bool(self.ptype_all or self.ptype_base or self.copybreak)

    def _receive_plain(self, batch: RxBatch) -> None:
        """A batch of single frames without taps: polls are settled kind by kind, where that comes to the same."""
        position, total, ring = 0, len(batch), self.ring
        while position < total:
            if ring.is_short_of(1):
                self.alloc_rx_buffers()
            if ready := ring.ready:
                count = min(total - position, ready, ring.poll_weight)
                self._receive_singles(batch, position, count)
            else:
                count = ring.skip(total - position)
                self._miss(batch, position, position + count)
            position += count
            if ring.poll_ended(last=position == total):
                self.alloc_rx_buffers()

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
        """`_poll_kinds` for frames of several kinds, or partly in reserve memory: each has a byte for both."""
        if len(batch.kinds) > KINDS_IN_A_BYTE:
            return False
        keys = _keys(batch, skbs.pfmemalloc, start, end)
        present = sorted(set(keys))
        groups = [(batch.kinds[key >> 1], key & 1 == 1, keys.count(key)) for key in present]
        verdicts = self._judge(groups)
        if verdicts is None:
            return False
        queued = []
        for key, group, verdict in zip(present, groups, verdicts, strict=True):
            chosen = skbs
            if _is_queued(group[0], verdict):
                queued.append(key)
                chosen = skbs.chosen(_which(keys, [key]))
            self._settle(group, verdict, chosen)
        batch.verdicts += keys.translate(bytes.maketrans(bytes(present), bytes(verdicts)))
        if queued:
            skbs = skbs.chosen(_which(keys, [key for key in present if key not in queued]))
        self.skb_memory.kfree_columns(skbs)
        return True

    def _judge(self, groups: list[Group]) -> list[int] | None:
        """The one verdict for all frames of each group; None if a group would have two, or their order matters."""
        takers: set[Sock] = set()
        sizes: dict[Sock, int] = {}
        verdicts = []
        for kind, pfmemalloc, count in groups:
            receiver = kind.receiver
            if kind.protocol not in self._protocols:
                if self._bridges(kind):
                    return None
                verdicts.append(UNHANDLED_PROTO)
            elif receiver is None:
                if self._bridges(kind):
                    return None
                verdicts.append(DELIVERED)
            elif not isinstance(receiver, Sock) or (receiver.owner is not None and self._udp_backlog):
                return None
            elif pfmemalloc and not receiver.memalloc and self.switches.skb_pfmemalloc:
                verdicts.append(PFMEMALLOC)
            else:
                room = receiver.rcvqueue_room(self.ring.truesize)
                if 0 < room < count or receiver in takers:
                    return None
                takers.add(receiver)
                if room and receiver.prot is not None:
                    sizes[receiver] = count * self.ring.truesize
                verdicts.append(DELIVERED if room else SOCKET_RCVBUFF)
        return verdicts if not sizes or sk_rmem_schedule_all(sizes) else None

    def _bridges(self, kind: Kind) -> bool:
        """Whether a bridge sends frames of this kind out again."""
        return isinstance(kind.receiver, Tun) or (kind.broadcast and self.rx_handler is not None)

    def _settle(self, group: Group, verdict: int, skbs: SkbColumns) -> None:
        """Count a group's frames, and queue `skbs` if a socket takes them."""
        (_protocol, receiver, name, _broadcast), pfmemalloc, count = group
        netstat = self.netstat
        if pfmemalloc:
            self._count_reserve(count)
        if verdict == UNHANDLED_PROTO:
            netstat.rx_dropped += count
        elif verdict == PFMEMALLOC:
            self._count_pfmemalloc_drop(count)
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
        position, total, ring = 0, len(batch), self.ring
        budget = ring.poll_weight
        while position < total:
            wanted = 1 if batch.segments is None else batch.segments[position]
            if ring.is_short_of(wanted):
                self.alloc_rx_buffers()
                budget = ring.poll_weight
            if alone[position] and ring.ready:
                end = alone.find(0, position)
                wanted = min((end if end >= 0 else total) - position, budget, ring.ready)
                self._receive_singles(batch, position, wanted)
                position += wanted
            elif acks := self._acks(batch, position, min(budget, ring.ready)):
                wanted = acks
                self._receive_acks(batch, position, wanted)
                position += wanted
            else:
                self._receive_frame(batch, position, wanted)
                position += 1
            budget -= wanted
            if budget <= 0:
                self.alloc_rx_buffers()
                budget = ring.poll_weight
        self.alloc_rx_buffers()

    def _single_datagrams(self, batch: RxBatch) -> bytes:
        """1 for each frame that is one segment, not TCP's, and not to be looked at by itself."""
        kinds = batch.kinds
        if self._looks_at_each() or (len(kinds) == 1 and isinstance(kinds[0].receiver, TcpReceiveQueue)):
            return bytes(len(batch))
        plain = np.array([not isinstance(kind.receiver, TcpReceiveQueue) for kind in kinds], np.bool_)
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

    def _acks(self, batch: RxBatch, start: int, most: int) -> int:
        """How many frames from `start` on, up to `most`, are segments of one free socket that bring it nothing new."""
        code, end_seq, segments = batch.codes[start], batch.end_seq, batch.segments
        kind = batch.kinds[code]
        queue = kind.receiver
        if end_seq is None or not isinstance(queue, TcpReceiveQueue) or end_seq[start] > queue.copied_seq:
            return 0
        if queue.sk.owner is not None or kind.protocol not in self._protocols or self._looks_at_each():
            return 0
        index, end = start, min(start + most, len(batch))
        while index < end and end_seq[index] <= queue.copied_seq and batch.codes[index] == code:
            if segments is not None and segments[index] > 1:
                break
            index += 1
        return index - start

    def _receive_acks(self, batch: RxBatch, start: int, count: int) -> None:
        """`tcp_v4_rcv` for `count` segments without news, for which there are descriptors: their skbs are freed."""
        kind = batch.kinds[batch.codes[start]]
        queue = kind.receiver
        assert isinstance(queue, TcpReceiveQueue)
        skbs = self.ring.take(count)
        self.netstat.rx_packets += count
        reserve = skbs.pfmemalloc.count(1)
        self._count_reserve(reserve)
        filtered = reserve and not queue.sk.memalloc and self.switches.skb_pfmemalloc
        if not filtered:
            self.last_pfmemalloc = skbs.pfmemalloc[-1] == 1
        elif reserve < count:
            self.last_pfmemalloc = False
        verdict = PFMEMALLOC if filtered else DELIVERED
        batch.verdicts += [verdict if mark else DELIVERED for mark in skbs.pfmemalloc]
        self.netstat.PFMemallocDrop += reserve if filtered else 0
        if reserve:
            self._count(verdict, kind.name, True, reserve)
        if reserve < count:
            self._count(DELIVERED, kind.name, False, count - reserve)
        self.skb_memory.kfree_columns(skbs)

    def _receive_frame(self, batch: RxBatch, index: int, wanted: int) -> None:
        """One frame, segment by segment unless all of them are merged or queued."""
        if self.gro and 1 < wanted <= self.ring.ready:
            batch.verdicts.append(self._receive_merged(batch, index, wanted))
            return
        if self._tcp_v4_rcv_whole(batch, index, wanted):
            batch.verdicts.append(DELIVERED)
            return
        verdicts = [self._receive_segment(batch, index, wanted - 1 - number) for number in range(wanted)]
        batch.verdicts.append(verdicts[0])
        if verdicts.count(verdicts[0]) != wanted:
            self._cut(batch, index, verdicts)

    def _receive_merged(self, batch: RxBatch, index: int, wanted: int) -> int:
        """All segments of a frame as one skb."""
        self.netstat.rx_packets += wanted
        skb = merge(self.skb_memory, self.ring.take(wanted))
        return self._netif_receive_skb(skb, batch, index)

    def _tcp_v4_rcv_whole(self, batch: RxBatch, index: int, wanted: int) -> bool:
        """`tcp_v4_rcv` for all segments of a frame; False, with nothing done, unless each is new and finds room."""
        kind = batch.kinds[batch.codes[index]]
        queue, ring = kind.receiver, self.ring
        if not isinstance(queue, TcpReceiveQueue) or batch.end_seq is None or ring.ready < wanted:
            return False
        if self._looks_at_each():
            return False
        step = batch.gso_size[index] if wanted > 1 and batch.gso_size is not None else 0
        first_end = batch.end_seq[index] - (wanted - 1) * step
        room = queue.sk.rcvbuf - queue.sk.rmem_alloc
        reserve = ring.pfmemalloc.count(1, 0, wanted)
        filtered = reserve and not queue.sk.memalloc and self.switches.skb_pfmemalloc
        listed = kind.protocol in self._protocols
        if first_end <= queue.copied_seq or (wanted - 1) * ring.truesize > room or filtered or not listed:
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
        if not self.ring.ready:
            self.ring.skip(1)
            self._count(RX_MISSED, batch.kinds[batch.codes[index]].name, False)
            self.netstat.rx_missed += 1
            return RX_MISSED
        length = 0 if batch.lengths is None else batch.lengths[index]
        skb = self._rx_copy(length) if 0 < length <= self.copybreak else self.ring.popleft()
        if skb is None:
            self._count(RX_NOMEM, batch.kinds[batch.codes[index]].name, False)
            self.netstat.rx_dropped += 1
            return RX_NOMEM
        self.netstat.rx_packets += 1
        return self._netif_receive_skb(skb, batch, index, followers)

    def _rx_copy(self, length: int) -> SkBuff | None:
        """The skb for a copy of a short frame, allocated only now; the descriptor keeps its buffer in any case."""
        gfp_mask = self.skb_memory.rx_gfp_mask(GFP_ATOMIC, self.socket_memory.memalloc_socks)
        skb = self.skb_memory.alloc_skb(length, gfp_mask, self.softirq)
        if skb is not None:
            self.netstat.rx_skb_pfmemalloc += skb.pfmemalloc
        elif not self.switches.skb_pfmemalloc:
            self.netstat.rx_skb_reserve_refused += 1
        return skb

    def _cut(self, batch: RxBatch, index: int, verdicts: list[int]) -> None:
        """The segments of a GSO frame did not all end in the same place."""
        batch.mixed[index] = verdicts
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

    def _count_reserve(self, frames: int) -> bool:
        """Whether patch 12 makes something of frames in reserve memory; counts them either way."""
        if not frames or (self._needs_memalloc_socks and not self.socket_memory.memalloc_socks):
            return False
        if self.switches.receive_pf_memalloc:
            self.netstat.receive_pf_memalloc += frames
            return True
        self.netstat.receive_pf_memalloc_skipped += frames
        return False

    def _count_pfmemalloc_drop(self, datagrams: int) -> None:
        """Count datagrams that `sk_filter` dropped: its -ENOMEM used to look like a full receive buffer."""
        self.netstat.PFMemallocDrop += datagrams
        self.netstat.InErrors += datagrams
        if self._pfmemalloc_drop_is_rcvbuf_error:
            self.netstat.RcvbufErrors += datagrams

    def _netif_receive_skb(self, skb: SkBuff, batch: RxBatch, index: int, followers: int = 0) -> int:
        """`__netif_receive_skb` for one skb: its verdict. The skb is freed, queued or handed on here.

        With patch 12 all of it runs with PF_MEMALLOC if the skb lies in reserve memory.
        """
        kind = batch.kinds[batch.codes[index]]
        pfmemalloc, frames, pflags = skb.pfmemalloc, skb.gso_segs, self.softirq.pf_memalloc
        reserve = self._count_reserve(frames if pfmemalloc else 0)
        self.softirq.pf_memalloc |= reserve
        self._deliver_to_taps(skb, reserve)
        if reserve and kind.protocol not in self._protocols:
            verdict = self._unhandled(skb)
        elif self.rx_handler is not None and (taken := self.rx_handler(skb, kind)) is not None:
            verdict = FORWARDED if taken == DELIVERED else int(taken)
        else:
            verdict = self._deliver_skb(skb, batch, index, followers)
        self.softirq.pf_memalloc = pflags
        if verdict != HELD:
            self._count(DELIVERED if verdict == FORWARDED else verdict, kind.name, pfmemalloc, frames)
        return verdict

    def _deliver_to_taps(self, skb: SkBuff, reserve: bool) -> None:
        """Packet sockets that see everything (`ptype_all`) do not see the reserve."""
        if reserve:
            self.netstat.tap_skipped += bool(self.ptype_all)
        elif self.ptype_all:
            self._packet_rcv(self.ptype_all, skb)

    def _unhandled(self, skb: SkBuff) -> int:
        self.netstat.rx_dropped += skb.gso_segs
        self.skb_memory.kfree_skb(skb)
        return UNHANDLED_PROTO

    def _packet_rcv(self, sockets: Sequence[Sock], skb: SkBuff) -> None:
        """`packet_rcv`: each packet socket queues a clone within its receive buffer. Its filter (`run_filter`) has no
        test for the reserve.
        """
        for sk in sockets:
            if sk.rmem_alloc >= sk.rcvbuf:
                continue
            clone = self.skb_memory.skb_clone(skb, GFP_ATOMIC, self.softirq)
            if clone is not None:
                sk.rmem_alloc += clone.truesize
                sk.receive_queue.append(clone)

    def _deliver_skb(self, skb: SkBuff, batch: RxBatch, index: int, followers: int) -> int:
        """`deliver_skb`: packet sockets bound to the protocol, then its handler and the socket that it finds."""
        protocol, receiver, _name, _broadcast = batch.kinds[batch.codes[index]]
        bound = self.ptype_base.get(protocol, ())
        self._packet_rcv(bound, skb)
        if protocol not in self._protocols and not bound:
            return self._unhandled(skb)
        if receiver is None:
            self.stack_pfmemalloc = skb.pfmemalloc
            self.skb_memory.kfree_skb(skb)
            return DELIVERED
        if isinstance(receiver, Sock):
            return self._udp_queue_rcv_skb(receiver, skb, batch, index)
        assert isinstance(receiver, TcpReceiveQueue)
        return self._tcp_v4_rcv(receiver, skb, batch, index, followers)

    def _udp_queue_rcv_skb(self, sk: Sock, skb: SkBuff, batch: RxBatch, index: int) -> int:
        """`udp_queue_rcv_skb`: the filter comes only after the backlog, which it had until 4.10."""
        if sk.owner is None or not self._udp_backlog:
            return self._sock_queue_rcv_skb(sk, skb)
        segments = batch.hold(index, 0, skb.gso_segs)
        verdict = self._sk_add_backlog(sk, skb, sk.rcvbuf, segments, partial(self._sock_queue_rcv_skb, sk))
        self.netstat.InErrors += verdict != HELD
        self.netstat.RcvbufErrors += verdict == SOCKET_BACKLOG
        return verdict

    def _sk_add_backlog(
        self, sk: Sock, skb: SkBuff, limit: int, segments: HeldSegments, rcv: Callable[[SkBuff], int]
    ) -> int:
        """`sk_add_backlog`: HELD, or why the skb was dropped. `rcv` gives its verdict once the socket is free."""

        def backlog_rcv(waiting: SkBuff) -> None:
            pfmemalloc, count = waiting.pfmemalloc, waiting.gso_segs
            verdict = rcv(waiting)
            self._tally({(verdict, segments.name, pfmemalloc): count})
            frame = segments.frame
            frame.verdicts[segments.numbers] = [verdict] * count
            frame.waiting -= 1
            if not frame.waiting:
                self.pass_on(frame)

        refused = self.socket_memory.sk_add_backlog(sk, skb, limit, backlog_rcv)
        if refused is None:
            segments.frame.waiting += 1
            return HELD
        self.netstat.PFMemallocDrop += skb.gso_segs if refused == PFMEMALLOC else 0
        self.skb_memory.kfree_skb(skb)
        return int(refused)

    def _sock_queue_rcv_skb(self, sk: Sock, skb: SkBuff) -> int:
        """`sock_queue_rcv_skb` of a datagram socket: filter, receive buffer, queue."""
        netstat = self.netstat
        if skb.pfmemalloc and not self.socket_memory.sk_filter(sk, skb):
            self._count_pfmemalloc_drop(1)
            self.skb_memory.kfree_skb(skb)
            return PFMEMALLOC
        if sk.rmem_alloc >= sk.rcvbuf:
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
            self.netstat.PFMemallocDrop += skb.gso_segs
            self.skb_memory.kfree_skb(skb)
            return PFMEMALLOC
        end_seq = batch.end_seq[index] if batch.end_seq is not None else 0
        if followers and batch.gso_size is not None:
            end_seq -= followers * batch.gso_size[index]
        sk = queue.sk
        if sk.owner is None:
            return self._tcp_v4_do_rcv(queue, end_seq, skb)
        segments = batch.hold(index, followers, skb.gso_segs)
        rcv = partial(self._tcp_v4_do_rcv, queue, end_seq)
        verdict = self._sk_add_backlog(sk, skb, sk.rcvbuf + sk.sndbuf, segments, rcv)
        self.netstat.TCPBacklogDrop += skb.gso_segs if verdict == SOCKET_BACKLOG else 0
        return verdict

    def _tcp_v4_do_rcv(self, queue: TcpReceiveQueue, end_seq: int, skb: SkBuff) -> int:
        """`tcp_v4_do_rcv`: receive buffer and the protocol's memory (`tcp_try_rmem_schedule`), then queue until the
        reader has copied the data.
        """
        sk = queue.sk
        verdict = DELIVERED
        if end_seq > queue.copied_seq:
            if sk.rmem_alloc > sk.rcvbuf:
                verdict = SOCKET_RCVBUFF
            elif not sk.sk_rmem_schedule(skb.truesize, skb.pfmemalloc):
                verdict = PROTO_MEM
        if verdict != DELIVERED:
            self.netstat.TCPRcvQDrop += skb.gso_segs
            self.skb_memory.kfree_skb(skb)
            return verdict
        self.last_pfmemalloc = skb.pfmemalloc
        queue.tcp_queue_rcv(skb, end_seq)
        return DELIVERED

    def read_datagrams(self, sk: Sock, count: int) -> None:
        """The application has read `count` datagrams: free their skbs (`skb_free_datagram`)."""
        parts = sk.receive_queue.take(count)
        sk.sock_rfree(sum([part.truesize if isinstance(part, SkBuff) else part.truesize * len(part) for part in parts]))
        self.skb_memory.kfree_skbs(parts)

    def close(self) -> None:
        """Free the ring's buffers and what packet sockets hold."""
        self.ring.close()
        for sk in chain(self.ptype_all, *self.ptype_base.values()):
            self.read_datagrams(sk, len(sk.receive_queue))
        self.skb_memory.drain()


def _keys(batch: RxBatch, pfmemalloc: bytearray, start: int, end: int) -> bytes:
    """A byte for each frame: twice the number of its kind, and 1 more if it lies in reserve memory."""
    return (batch.codes[start:end] * 2 + np.frombuffer(pfmemalloc, np.uint8)).astype(np.uint8).tobytes()


def _which(keys: bytes, wanted: list[int]) -> bytes:
    """1 for each frame whose key is `wanted`."""
    table = bytearray(256)
    for key in wanted:
        table[key] = 1
    return keys.translate(table)


def _is_queued(kind: Kind, verdict: int) -> bool:
    return verdict == DELIVERED and kind.receiver is not None


def _nothing(_held: HeldFrame) -> None:
    return
