"""The receive side of a host for tests: the watermarks of 64 MiB if not told otherwise, a ring, sockets, a tally."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from testbed.mm.gfp import GFP_ATOMIC
from testbed.mm.sched import Task
from testbed.mm.slab_common import KmemCache, Slab
from testbed.net.dev import ETH_P_IP, NetDevice, Receiver, RxBatch, Tally
from testbed.net.drop_reason import DropReason
from testbed.net.skbuff import Driver, SkbMemory, SkBuff
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.patches import Switches
from tests.mm.machine import SERIES, Machine, machine_64m

MTU = 1500
FRAME_TRUESIZE = 2048 + 256


class Host:
    """A machine with a NIC, an ordinary UDP socket and the swap connection's socket."""

    def __init__(
        self,
        switches: Switches = SERIES,
        *,
        pages: int | None = None,
        ring: int = 16,
        rcvbuf: int = 1 << 20,
        driver: Driver = "linear",
        copybreak: int = 0,
        gro: bool = False,
        slab: str = "slub",
    ) -> None:
        self.netstat = NetStat()
        self.socket_memory = SocketMemory(switches, self.netstat)
        options: dict[str, Any] = {"slab": slab, "memalloc_socks": lambda: self.socket_memory.memalloc_socks}
        self.machine = machine_64m(switches, **options) if pages is None else Machine(pages, switches, **options)
        self.skb_memory = SkbMemory(self.machine.node, self.netstat, MTU, driver)
        self.tally: Counter[tuple[int, str, bool]] = Counter()
        self.device = NetDevice(
            self.skb_memory, self.socket_memory, self.netstat, ring, self._add, copybreak=copybreak, gro=gro
        )
        self.udp = Sock("udp", rcvbuf)
        self.swap = TcpReceiveQueue(Sock("swap", rcvbuf, swap=True), self.skb_memory)
        self.softirq = Task("softirq")
        self.softirq.serving_softirq = True
        self.padding: list[Slab | None] = []

    def _add(self, counts: Tally) -> None:
        self.tally.update(counts)

    def ended(self, reason: DropReason) -> int:
        """Frames that ended so."""
        return sum(count for (verdict, _name, _reserve), count in self.tally.items() if verdict == reason)

    def receive(
        self, receiver: Receiver, count: int = 1, protocol: int = ETH_P_IP, end_seq: Sequence[int] | None = None
    ) -> list[DropReason]:
        """Receive `count` equal frames: their verdicts."""
        batch = RxBatch([protocol] * count, [receiver] * count, ["x"] * count, end_seq=end_seq)
        self.device.receive(batch)
        return [DropReason(verdict) for verdict in batch.verdicts]

    def warm_heads(self) -> SkBuff:
        """An skb made while there is memory, so that later ones find an sk_buff in an existing slab."""
        (skb,) = self.skb_memory.alloc_rx_skbs(1, GFP_ATOMIC, self.softirq, 0)
        return skb

    def use_up_data(self) -> None:
        """Leave no object in an existing slab of the receive buffers' cache."""
        cache = self.skb_memory.rx_cache
        assert isinstance(cache, KmemCache)
        while cache.inuse < cache.nr_slabs * cache.objects_per_slab:
            self.padding.append(cache.alloc(GFP_ATOMIC, self.softirq))

    def close(self) -> None:
        """Close the device and free what the tests themselves hold."""
        self.device.close()
        for slab in self.padding:
            if slab is not None:
                slab.cache.free(slab)
        self.padding.clear()

    def fill_ring_from_reserve(self, *, recover: bool = True) -> None:
        """Fill the ring while free pages are below half of min; then (`recover`) give the memory back."""
        self.warm_heads()
        self.use_up_data()
        self.machine.drain(100)
        self.device.alloc_rx_buffers()
        if recover:
            self.machine.give_back()
