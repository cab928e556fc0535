"""The emulated NIC: moves frames between the wire and the real stack, and lets the model decide about each.

Two packet rings: one on the wire's veth, one on the veth whose other end is the host's own eth0. A frame that the
model drops is simply not passed on, so the real stack, and a real TCP, never sees it. Outgoing control packets need
memory too, so they are dropped when the model finds none; outgoing data was paid for when it was queued, but to send
it again takes a clone.
"""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt

from testbed.hosts.classifier import IPPROTO_TCP, Classifier
from testbed.hosts.control_packets import ControlPackets
from testbed.hosts.ledger import Ledger
from testbed.hosts.outgoing import Outgoing
from testbed.hosts.segment import kept_segments
from testbed.lab.link import interface_statistics
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.packet_ring import FrameBlock, PacketRing
from testbed.lab.packet_sender import PacketSender
from testbed.net.dev import DELIVERED, HeldFrame, NetDevice, RxBatch
from testbed.net.drop_reason import DropReason
from testbed.net.sock import Sock

NETDEV_BUDGET = 1024
"""Frames taken from a ring before other work gets its turn (the kernel's net.core.netdev_budget is 300).

A turn of the event loop may take 10 ms under a flood. So that 100,000 frames a second are not lost before the model
has seen them, the ring holds 40 ms of them, and one turn may take all that came during the last.
"""
GSO_BUDGET = 256
WIRE_SLOTS = 4096
GSO_WIRE_SLOTS = 1024
INNER_SLOTS = 256
IP_PROTOCOL_AT = 23
"""Offset of the IPv4 protocol number in a frame."""
NO_FRAMES = np.zeros(0, np.intp)


class Nic:
    """The NIC of one emulated host; make it inside the namespace that both veths end in.

    Args:
        wire, inner: interface names.
        gso: pass segments of up to 64 KiB whole (offloads on at both end hosts).
    """

    def __init__(self, wire: str, inner: str, *, gso: bool) -> None:
        self.gso = gso
        self._budget = GSO_BUDGET if gso else NETDEV_BUDGET
        self._wire = wire
        self._namespace = NetworkNamespace.current()
        self.wire_ring = PacketRing(wire, slots=GSO_WIRE_SLOTS if gso else WIRE_SLOTS, gso=gso)
        self.inner_ring = PacketRing(inner, slots=INNER_SLOTS, gso=gso)
        self.to_wire = PacketSender(wire, gso=gso)
        self.to_host = PacketSender(inner, gso=gso)
        self._wire_before = self._wire_packets()
        self.wire_frames = 0
        self.host_frames = 0
        self.wire_segments = 0

    def attach(self, device: NetDevice, classifier: Classifier, ledger: Ledger, server_port: int) -> None:
        """Connect the model and start to take frames from the running event loop."""
        self.device = device
        self.classifier = classifier
        self.ledger = ledger
        self._control = ControlPackets(device, ledger)
        self._outgoing = Outgoing(classifier.layout, server_port)
        self.on_swap_frames = _nothing
        device.pass_on = self._pass_on
        loop = asyncio.get_running_loop()
        loop.add_reader(self.wire_ring.fileno(), self.receive)
        loop.add_reader(self.inner_ring.fileno(), self.transmit)

    def swapon(self, port: int, sk: Sock) -> None:
        """The connection from our `port` is now a swap connection, with this socket."""
        self.classifier.attach(port)
        self._outgoing.attach(port)
        self._control.swap_sk = sk

    def disconnect(self, port: int) -> None:
        """That connection is gone."""
        self.classifier.disconnect(port)
        self._outgoing.disconnect(port)

    def detach(self) -> None:
        """Stop taking frames."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.wire_ring.fileno())
        loop.remove_reader(self.inner_ring.fileno())

    def receive(self) -> None:
        """One softirq's worth of frames from the wire."""
        block = self.wire_ring.ready(self._budget)
        if block is None:
            return
        batch, others = self.classifier.classify(block)
        if self.device.copybreak:
            batch.lengths = block.lengths.tolist()
        self.wire_frames += block.count
        if others is None:
            self._receive(block, batch, None)
        else:
            self._receive(block, _without(batch, others), np.flatnonzero(~others))
            self.ledger.tally({(int(DropReason.OTHERHOST), "other host", False): int(others.sum())})
            self.wire_segments += int(others.sum())
        self.wire_ring.release(block)

    def _receive(self, block: FrameBlock, batch: RxBatch, indices: npt.NDArray[np.intp] | None) -> None:
        self.wire_segments += sum(batch.segments) if batch.segments is not None else len(batch)
        self.device.receive(batch)
        chosen = _through(batch, indices)
        if chosen is None or len(chosen):
            self.host_frames += self.to_host.send(block, chosen)
        for index, kept in batch.cut.items():
            self._send_cut(block, batch, index if indices is None else int(indices[index]), index, kept)
        for index, held in batch.held.items():
            held.data = bytes(block.frame(index if indices is None else int(indices[index])))
        if batch.end_seq is not None:
            self.on_swap_frames()

    def _send_cut(self, block: FrameBlock, batch: RxBatch, number: int, index: int, kept: list[bool]) -> None:
        assert batch.gso_size is not None
        frames = kept_segments(bytes(block.frame(number)), batch.gso_size[index], kept)
        self.host_frames += self.to_host.send_bytes(frames)

    def _pass_on(self, held: HeldFrame) -> None:
        """A frame has left the backlog of its socket. With offloads its checksum is not complete yet."""
        if not any(held.kept):
            return
        whole = len(held.kept) == 1
        if held.data[IP_PROTOCOL_AT] == IPPROTO_TCP and (self.gso or not whole):
            frames = kept_segments(held.data, len(held.data) if whole else held.gso_size, held.kept)
        else:
            frames = [held.data]
        self.host_frames += self.to_host.send_bytes(frames)

    def transmit(self) -> None:
        """Frames that the real stack wants to send."""
        block = self.inner_ring.ready(self._budget)
        if block is None:
            return
        kinds = self._outgoing.kinds(block)
        refused = {kind for kind in set(kinds) if not self._control.has_memory(kind, kinds.count(kind))}
        self._transmit(block, kinds, refused)
        self.inner_ring.release(block)

    def _transmit(self, block: FrameBlock, kinds: list[int], refused: set[int]) -> None:
        if refused:
            sent = np.array([index for index, kind in enumerate(kinds) if kind not in refused], np.intp)
            self.to_wire.send(block, sent)
            self.device.netstat.tx_packets += len(sent)
        else:
            self.to_wire.send(block)
            self.device.netstat.tx_packets += block.count

    def wire_rx_packets(self) -> int:
        """Packets that the kernel itself has counted on the wire's veth since the ring was opened."""
        return self._wire_packets() - self._wire_before

    def _wire_packets(self) -> int:
        return interface_statistics(self._namespace, self._wire)["rx_packets"]

    def close(self) -> None:
        """Let go of the rings and sockets."""
        for end in (self.wire_ring, self.inner_ring, self.to_wire, self.to_host):
            end.close()


def _through(batch: RxBatch, indices: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp] | None:
    """The frames of the block that go on whole; None: all of the block's."""
    verdicts = batch.verdicts
    delivered = verdicts.count(DELIVERED)
    if delivered == len(verdicts) and not batch.cut:
        return indices
    if not delivered:
        return NO_FRAMES
    through = np.array(verdicts) == DELIVERED
    through[list(batch.cut)] = False
    chosen = np.flatnonzero(through)
    return chosen if indices is None else indices[chosen]


def _without(batch: RxBatch, others: npt.NDArray[np.bool_]) -> RxBatch:
    """The batch less the frames for other hosts, which a NIC's address filter never lets in."""
    mine = np.flatnonzero(~others)
    rest = RxBatch.of_kinds(batch.codes[mine], batch.kinds)
    for name in ("segments", "end_seq", "gso_size", "lengths"):
        column = getattr(batch, name)
        if column is not None:
            setattr(rest, name, [column[index] for index in mine.tolist()])
    return rest


def _nothing() -> None:
    return
