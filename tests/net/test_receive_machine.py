"""Random traffic for random sockets in random shortage: every frame ends once, every byte is charged and given back."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from testbed.net.dev import ETH_P_ARP, ETH_P_IP, ETH_P_IPX, Receiver, RxBatch
from testbed.net.drop_reason import DropReason
from testbed.net.skbuff import Driver, SkBuff
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.patches import Switches
from tests.mm.census import check_pages
from tests.mm.machine import SERIES, VANILLA, without
from tests.net.host import Host

SEGMENT = 1000


def queued(queue: TcpReceiveQueue) -> list[tuple[int, SkBuff]]:
    """The skbs of unread TCP data, each with the offset at which its data ends."""
    return [
        (first_end + number * step, skb)
        for first_end, _serial, step, skbs in queue._queue
        for number, skb in enumerate([skbs] if isinstance(skbs, SkBuff) else skbs)
    ]


class ReceiveMachine(RuleBasedStateMachine):
    """One small host; its UDP sockets are read now and then, its TCP stream arrives with gaps and repeats."""

    @initialize(
        switches=st.sampled_from([SERIES, VANILLA, without(slub_unchecked_fast_path=False)]),
        ring=st.integers(1, 40),
        tapped=st.booleans(),
        slab=st.sampled_from(["slub", "slab"]),
        rcvbuf=st.sampled_from([10_000, 200_000]),
        driver=st.sampled_from(["linear", "frag", "page"]),
        gro=st.booleans(),
    )
    def boot(
        self, *, switches: Switches, ring: int, tapped: bool, slab: str, rcvbuf: int, driver: Driver, gro: bool
    ) -> None:
        self.host = Host(switches, pages=512, ring=ring, rcvbuf=rcvbuf, slab=slab, driver=driver, gro=gro)
        self.host.socket_memory.sk_set_memalloc(self.host.swap.sk)
        self.tap = Sock("tap", 50_000)
        if tapped:
            self.host.device.ptype_all.append(self.tap)
        self.frames = 0

    @rule(
        kinds=st.lists(st.sampled_from(["udp", "tcp", "arp", "ipx"]), min_size=1, max_size=80),
        gso=st.booleans(),
        data=st.data(),
    )
    def receive(self, kinds: list[str], gso: bool, data: st.DataObject) -> None:
        host = self.host
        by_kind: dict[str, Receiver] = {"udp": host.udp, "tcp": host.swap}
        receivers = [by_kind.get(kind) for kind in kinds]
        protocols = [{"arp": ETH_P_ARP, "ipx": ETH_P_IPX}.get(kind, ETH_P_IP) for kind in kinds]
        batch = RxBatch(protocols, receivers, kinds)
        segments = [1] * len(kinds)
        if "tcp" in kinds:
            copied = host.swap.copied_seq
            ends = data.draw(st.lists(st.integers(0, 20), min_size=len(kinds), max_size=len(kinds)))
            batch.end_seq = [copied + (end - 4) * SEGMENT for end in ends]
            if gso:
                segments = [end % 4 + 1 if kind == "tcp" else 1 for end, kind in zip(ends, kinds, strict=True)]
                batch.segments, batch.gso_size = segments, [SEGMENT] * len(kinds)
        host.device.receive(batch)
        self.frames += sum(segments)
        assert len(batch.verdicts) == len(kinds)
        for index, kept in batch.cut.items():
            assert batch.verdicts[index] == DropReason.DELIVERED
            assert len(kept) == segments[index]
            assert 0 < sum(kept) < len(kept)

    @rule(count=st.integers(1, 50))
    def read(self, count: int) -> None:
        queue = self.host.udp.receive_queue
        self.host.device.read_datagrams(self.host.udp, min(count, len(queue)))

    @rule(segments=st.integers(1, 10))
    def copy(self, segments: int) -> None:
        self.host.swap.copied(segments * SEGMENT)

    @rule(free=st.sampled_from([0, 3, 12, 17, 40, 400]))
    def shortage(self, free: int) -> None:
        self.host.machine.give_back()
        self.host.machine.drain(free)

    @invariant()
    def sockets_are_charged_for_what_they_hold(self) -> None:
        for sk in (self.host.udp, self.tap):
            sizes = [skb.truesize for skb in sk.receive_queue]
            assert sk.rmem_alloc == sum(sizes)
            assert not sizes or sum(sizes[:-1]) < sk.rcvbuf
        queue: TcpReceiveQueue = self.host.swap
        assert queue.sk.rmem_alloc == sum(skb.truesize for _end, skb in queued(queue))
        assert all(end > queue.copied_seq for end, _skb in queued(queue))

    @invariant()
    def every_frame_ended_once(self) -> None:
        netstat = self.host.netstat
        assert sum(self.host.tally.values()) == self.frames == netstat.rx_packets + netstat.rx_missed
        assert self.host.ended(DropReason.RX_MISSED) == netstat.rx_missed
        assert self.host.ended(DropReason.PFMEMALLOC) == netstat.PFMemallocDrop
        assert self.host.ended(DropReason.UNHANDLED_PROTO) == netstat.rx_dropped
        full_buffers = netstat.RcvbufErrors - netstat.PFMemallocDrop + netstat.TCPRcvQDrop
        assert self.host.ended(DropReason.SOCKET_RCVBUFF) == full_buffers

    @invariant()
    def every_skb_is_held_by_somebody(self) -> None:
        host = self.host
        skbs = [
            *host.device.ring,
            *host.udp.receive_queue,
            *self.tap.receive_queue,
            *(skb for _end, skb in queued(host.swap)),
        ]
        shared = {id(skb.shared): skb.shared for skb in skbs if skb.shared is not None}
        skbs += [merged for info in shared.values() for merged in info.frag_list]
        data = {id(skb.shared or skb): skb.data for skb in skbs}
        objects = [*(skb.head for skb in skbs), *data.values()]
        frag_pages = {frag.page for skb in skbs for frag in skb.frags}
        if host.skb_memory.frag_pages is not None and host.skb_memory.frag_pages._page is not None:
            frag_pages.add(host.skb_memory.frag_pages._page.page)
        check_pages(host.machine.node, [*host.machine.held, *frag_pages], objects)

    def teardown(self) -> None:
        host = self.host
        host.machine.give_back()
        host.device.read_datagrams(host.udp, len(host.udp.receive_queue))
        host.swap.purge()
        host.device.close()
        assert host.machine.node.pages_leaked() == 0
        assert host.udp.rmem_alloc == host.swap.sk.rmem_alloc == self.tap.rmem_alloc == 0


TestReceive = ReceiveMachine.TestCase
TestReceive.settings = settings(max_examples=40, stateful_step_count=30)
