"""Frames in, by the block: a memory-mapped AF_PACKET receive ring (TPACKET_V2) seen through numpy.

The kernel writes each frame into a slot of the ring and then sets the slot's status word. The ring is one
two-dimensional array here, a row per slot, so the status words, lengths and the first bytes of a whole run of ready
frames are columns, taken without a copy and without a loop. A block of frames stays in place until `release`, which
hands the slots back; a sender can point straight into it meanwhile (packet_sender.py).

V2 and not V3: V3 hands frames over late, by a timer. Slots are laid out as in the kernel's
Documentation/networking/packet_mmap.rst and linux/if_packet.h.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import socket
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.lab.errors import LabError, lab_error

SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 5, 6, 10
PACKET_VNET_HDR, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING = 15, 20, 23
ETH_P_ALL = 0x0003
VNET_HEADER = 10
HEADER_BYTES = 128
STATUS_USER, STATUS_CSUM_NOT_READY, STATUS_VLAN_VALID = 0x1, 0x8, 0x10

PACKET_OUTGOING = 4
_SLL_PKTTYPE = 32 + 10
"""Where a slot has `sll_pkttype`: its sockaddr_ll follows the tpacket2_hdr."""

_TPACKET_V2 = 1
_ARPHRD_ETHER = 1
PLAIN_OFFSET = 66
GSO_OFFSET = PLAIN_OFFSET + VNET_HEADER
_MAX_GSO_FRAME = 65536 + 14 + 4
_BLOCK = 1 << 20
_PAGE = mmap.PAGESIZE
_SIOCGIFMTU = 0x8921

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Shorts = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]


class FrameBlock:
    """A run of `count` received frames, still in the ring: valid until it is released.

    `start` is the first slot. All array attributes are views into the ring, one row or element per frame.
    """

    __slots__ = ("_ring", "count", "start", "stop")

    def __init__(self, ring: PacketRing, start: int, count: int) -> None:
        self._ring = ring
        self.start = start
        self.count = count
        self.stop = start + count

    @property
    def headers(self) -> Bytes:
        """The first 128 bytes of each frame from its Ethernet header on, (count, 128) uint8.

        Bytes beyond a shorter frame's length are left over from an earlier one: look at `lengths`.
        """
        return self._ring.headers[self.start : self.stop]

    @property
    def lengths(self) -> Words:
        """Bytes of each frame on the wire, Ethernet header included (tp_len), (count,) uint32."""
        return self._ring.lengths[self.start : self.stop]

    @property
    def captured(self) -> Words:
        """Bytes of each frame that are in the ring (tp_snaplen), (count,) uint32."""
        return self._ring.captured[self.start : self.stop]

    @property
    def status(self) -> Words:
        """The slots' status words (TP_STATUS_*), (count,) uint32."""
        return self._ring.status[self.start : self.stop]

    @property
    def truncated(self) -> Mask:
        """True for a frame that did not fit its slot, (count,)."""
        mask: Mask = self.captured < self.lengths
        return mask

    @property
    def checksum_partial(self) -> Mask:
        """True for a frame whose transport checksum its sender left to the hardware, (count,).

        Without gso such a frame cannot be passed on: switch offloads off where it comes from.
        """
        mask: Mask = (self.status & STATUS_CSUM_NOT_READY) != 0
        return mask

    @property
    def vlan(self) -> tuple[Shorts, Mask]:
        """The VLAN tag control words, and where they are valid; the kernel takes tags out of the frame. Both (count,).

        The tag's EtherType is in `vlan_protocols`.
        """
        mask: Mask = (self.status & STATUS_VLAN_VALID) != 0
        return self._ring.vlan_tci[self.start : self.stop], mask

    @property
    def vlan_protocols(self) -> Shorts:
        """The EtherTypes of the tags, 0x8100 or 0x88a8 in host order, valid where `vlan` is, (count,) uint16."""
        return self._ring.vlan_protocols[self.start : self.stop]

    @property
    def vnet(self) -> Bytes:
        """The virtio_net_hdr in front of each frame, (count, 10) uint8. Raises LabError on a ring without gso."""
        if self._ring.vnet is None:
            raise LabError("this packet ring carries no virtio headers: make it with gso=True")
        return self._ring.vnet[self.start : self.stop]

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """When the kernel received each frame, CLOCK_REALTIME seconds, (count,) float64 (a copy)."""
        seconds = self._ring.seconds[self.start : self.stop].astype(np.float64)
        seconds += self._ring.nanoseconds[self.start : self.stop] * 1e-9
        return seconds

    @property
    def times_ns(self) -> npt.NDArray[np.int64]:
        """The same in whole nanoseconds, (count,) int64 (a copy)."""
        seconds = self._ring.seconds[self.start : self.stop].astype(np.int64)
        return seconds * 1_000_000_000 + self._ring.nanoseconds[self.start : self.stop]

    @property
    def outgoing(self) -> Mask:
        """True for a frame that the interface sent (sll_pkttype), (count,)."""
        mask: Mask = self._ring.packet_types[self.start : self.stop] == PACKET_OUTGOING
        return mask

    @property
    def addresses(self) -> npt.NDArray[np.uint64]:
        """Where each frame begins in memory, its virtio header first if there is one, (count,) uint64."""
        return self._ring.addresses[self.start : self.stop]

    @property
    def prefix(self) -> int:
        """Bytes in front of each Ethernet header at `addresses`: 10 with gso, else 0."""
        return self._ring.prefix

    def unpacked(self, layout: struct.Struct) -> list[tuple[Any, ...]]:
        """Fields of each slot from its first byte on; the Ethernet header is at PLAIN_OFFSET, or GSO_OFFSET with gso.

        For a few frames this is quicker than columns.
        """
        view, size, unpack = self._ring.view, self._ring.slot_size, layout.unpack_from
        return [unpack(view, slot * size) for slot in range(self.start, self.stop)]

    def frame(self, number: int) -> memoryview:
        """The whole of one frame (0 <= number < count) from its Ethernet header, as far as it was captured."""
        if not 0 <= number < self.count:
            raise IndexError(number)
        return self._ring.frame(self.start + number)


class PacketRing:
    """All frames that arrive on an interface of the calling thread's namespace (none that it sends).

    `slots` bounds how many frames may wait; the kernel counts as dropped what does not find a free one (a process
    that is not scheduled for 20 ms has 5,000 frames waiting when 250,000 arrive a second). Without
    `gso` a slot takes a frame of the interface's MTU; with it, a 64 KiB segment with its virtio_net_hdr in front. Use
    `fileno()` with a selector: readable while the newest frame has not been released, so release before you wait.
    With `outgoing` it sees both directions, and frames may lie anywhere in their slots: only `frame` finds them.
    `room` is for slots that take longer frames than the MTU, bytes.
    """

    def __init__(
        self, ifname: str, *, slots: int = 1024, gso: bool = False, outgoing: bool = False, room: int = 0
    ) -> None:
        self.ifname = ifname
        self.gso = gso
        self.outgoing = outgoing
        self._room = room
        self.prefix = VNET_HEADER if gso else 0
        self._packets = 0
        self._drops = 0
        self._head = 0
        self._tail = 0
        self._outstanding = 0
        doing = f"opening a packet ring on {ifname}"
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise lab_error(doing, error.errno or 0) from error
        try:
            self.mtu = _mtu(self._socket, ifname)
            self.slot_size, self.slots = self._make_ring(slots)
            self._map()
            self._socket.bind((ifname, ETH_P_ALL))
            if self._socket.getsockname()[3] != _ARPHRD_ETHER:
                raise LabError(f"{ifname} is not an Ethernet interface: use one end of a veth")
        except OSError as error:
            self.close()
            raise lab_error(doing, error.errno or 0) from error
        except BaseException:
            self.close()
            raise

    def _make_ring(self, slots: int) -> tuple[int, int]:
        """Ask the kernel for the ring; (bytes per slot, number of slots: at least as many as asked for)."""
        plain = PLAIN_OFFSET + max(self.mtu + 14 + 4, self._room)
        size = _slot_size(GSO_OFFSET + _MAX_GSO_FRAME if self.gso else plain)
        per_block = min(_BLOCK // size, -(-slots * size // _PAGE) * _PAGE // size)
        blocks = -(-slots // per_block)
        option = self._socket.setsockopt
        option(SOL_PACKET, PACKET_VERSION, _TPACKET_V2)
        if not self.outgoing:
            option(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        if self.gso:
            option(SOL_PACKET, PACKET_VNET_HDR, 1)
        option(SOL_PACKET, PACKET_RX_RING, struct.pack("=IIII", per_block * size, blocks, size, blocks * per_block))
        return size, blocks * per_block

    def _map(self) -> None:
        self._memory = mmap.mmap(
            self._socket.fileno(), self.slots * self.slot_size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        self.view = memoryview(self._memory)
        rows = np.frombuffer(self._memory, np.uint8).reshape(self.slots, self.slot_size)
        words, shorts = rows.view(np.uint32), rows.view(np.uint16)
        offset = self.frame_offset = GSO_OFFSET if self.gso else PLAIN_OFFSET
        self.status: Words = words[:, 0]
        self.lengths: Words = words[:, 1]
        self.captured: Words = words[:, 2]
        self.offsets: Shorts = shorts[:, 6]
        self.seconds: Words = words[:, 4]
        self.nanoseconds: Words = words[:, 5]
        self.vlan_tci: Shorts = shorts[:, 12]
        self.vlan_protocols: Shorts = shorts[:, 13]
        self.packet_types: Bytes = rows[:, _SLL_PKTTYPE]
        self.headers: Bytes = rows[:, offset : offset + HEADER_BYTES]
        self.vnet: Bytes | None = rows[:, offset - VNET_HEADER : offset] if self.gso else None
        base = rows.ctypes.data + offset - self.prefix
        self.addresses = base + np.arange(self.slots, dtype=np.uint64) * np.uint64(self.slot_size)

    def fileno(self) -> int:
        return self._socket.fileno()

    def ready(self, budget: int = 64) -> FrameBlock | None:
        """The next frames that have arrived, at most `budget` and not past the ring's end; None when there are none.

        Several blocks may be out at once. Raises LabError if a frame lies elsewhere in its slot than all others do
        (an interface that is not plain Ethernet).
        """
        head = self._head
        status = self.status
        limit = min(budget, self.slots - head, self.slots - self._outstanding)
        if limit <= 0 or not status[head] & STATUS_USER:
            return None
        arrived = status[head : head + limit] & STATUS_USER
        count = int(arrived.argmin()) or limit
        if self.offsets[head] != self.frame_offset and not self.outgoing:
            raise LabError(f"frames of {self.ifname} are not plain Ethernet: use one end of a veth")
        self._head = (head + count) % self.slots
        self._outstanding += count
        return FrameBlock(self, head, count)

    def release(self, block: FrameBlock) -> None:
        """Hand all slots of a block back to the kernel; its views must not be used any more.

        Raises LabError unless blocks are released in the order they were taken.
        """
        if block.start != self._tail or block.count > self._outstanding:
            raise LabError("packet blocks must be released once each, in the order they were taken")
        self.status[block.start : block.stop] = 0
        self._tail = block.stop % self.slots
        self._outstanding -= block.count

    def frame(self, slot: int) -> memoryview:
        """The frame in one slot, as far as it was captured."""
        begin = slot * self.slot_size + int(self.offsets[slot])
        return self.view[begin : begin + int(self.captured[slot])]

    def statistics(self) -> tuple[int, int]:
        """(packets put into the ring, packets dropped because no slot was free) since the ring was opened."""
        raw = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        packets, drops = struct.unpack("=II", raw)
        self._packets += packets - drops
        self._drops += drops
        return self._packets, self._drops

    def close(self) -> None:
        """Stop receiving and let go of the ring; memory that views still refer to goes with the last of them."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._socket.bind((self.ifname, 0))
        self._socket.close()
        self._forget()

    def _forget(self) -> None:
        memory: mmap.mmap | None = getattr(self, "_memory", None)
        for name in _VIEWS:
            self.__dict__.pop(name, None)
        if memory is not None:
            with contextlib.suppress(BufferError):
                memory.close()

    def __enter__(self) -> PacketRing:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()


_VIEWS = (
    *("view", "status", "lengths", "captured", "offsets", "seconds", "nanoseconds"),
    *("vlan_tci", "vlan_protocols", "packet_types", "headers", "vnet", "addresses", "_memory"),
)


def _slot_size(needed: int) -> int:
    """The smallest slot that tiles memory: a power of two up to a page, whole pages beyond."""
    if needed <= _PAGE:
        return max(2048, 1 << (needed - 1).bit_length())
    return -(-needed // _PAGE) * _PAGE


def _mtu(control: socket.socket, ifname: str) -> int:
    answer = fcntl.ioctl(control, _SIOCGIFMTU, struct.pack("=16si20x", ifname.encode(), 0))
    return int(struct.unpack_from("=i", answer, 16)[0])
