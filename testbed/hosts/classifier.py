"""Tells whose a received frame is, a whole block at a time: columns of the frames' headers, compared with numpy.

Frames for the stack itself (ARP, ICMP, a port nobody listens on) have no receiver; they get a name all the same,
which is what the ledger files them under.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.lab.packet_ring import PLAIN_OFFSET, STATUS_VLAN_VALID, FrameBlock
from testbed.net.dev import ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Kind, RxBatch
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tun import Tun

IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP = 1, 6, 17
TCP_SYN, TCP_ACK = 0x02, 0x10
TCP_SYN_ACK = TCP_SYN | TCP_ACK
OTHERHOST = -1
STACK = 0
CONNECTING, SWAP_NAME = "nbd-client", "swap"
"""Whose a connection to the swap server is: the program's that opens it, and the kernel's once it has taken it over."""

FEW = 8
"""Up to so many frames it is quicker to look at each by itself."""

HEADERS_SEEN = 48
"""Bytes of a frame that are looked at: to the TCP flags. They are copied together, since slots lie pages apart."""
_HEADERS = "HI6xH2xH5xB2xI4xII4xBB"
PLAIN_LAYOUT = struct.Struct(f">B3B{PLAIN_OFFSET - 4}x{_HEADERS}")
"""Status, three bytes that nobody looks at without gso, then the fields of Ethernet, IPv4, ports and TCP."""
GSO_LAYOUT = struct.Struct(f">B{PLAIN_OFFSET - 1}xxB2xBB4x{_HEADERS}")
"""The same with the virtio header's gso_type and gso_size (low byte, high byte)."""

Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

Segment = tuple[int, int, int]
"""Stream offset at which a frame's data ends, wire frames it stands for, bytes of data in each but the last."""
Listener = Callable[[tuple[int, int]], TcpReceiveQueue]
"""Told of a SYN's source address and port: the queue of the connection that it asks for."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A connection of a listening socket: its number among the kinds, its queue, its first byte's sequence number."""

    code: int
    queue: TcpReceiveQueue
    first_seq: int

    def offset(self, seq: int) -> int:
        """The stream offset that a sequence number stands for, near what has been read."""
        return stream_offset(seq, self.first_seq, self.queue.copied_seq)


@dataclass(slots=True)
class SwapStream:
    """A connection to the swap server: its number among the kinds, its queue, its first byte's sequence number.

    `attached` says that the queue knows how far the stream has been read; before that nothing is queued.
    """

    code: int
    queue: TcpReceiveQueue
    first_seq: int | None = None
    attached: bool = False


class Classifier:
    """Finds the receivers of frames. Connections to the swap server are told of with `connect`.

    Args:
        mac: the client's own MAC address.
        server: IPv4 address and port of the swap server.
        sockets: datagram sockets by UDP port.
        listeners: listening sockets by TCP port.
        tuns: the tap interfaces of virtual machines behind the client's bridge, by MAC address.
    """

    def __init__(
        self,
        mac: str,
        server: tuple[str, int],
        sockets: dict[int, Sock],
        *,
        gso: bool,
        listeners: Mapping[int, Listener] | None = None,
        tuns: Mapping[str, Tun] | None = None,
    ) -> None:
        self._mac = _halves(mac)
        self._tuns = {_halves(address): tun for address, tun in (tuns or {}).items()}
        self._server = int.from_bytes(socket.inet_aton(server[0]), "big")
        self._server_port = server[1]
        self._gso = gso
        self._kinds = [Kind(ETH_P_IP, None, "ip")]
        self._kinds += [Kind(ETH_P_IP, sk, sk.name) for sk in sockets.values()]
        self._stack_kinds: dict[tuple[int, int, bool], int] = {}
        self._tun_kinds: dict[tuple[str, int], int] = {}
        self._udp_code = np.zeros(65536, np.int64)
        self._udp_code_of = {port: code for code, port in enumerate(sockets, start=1)}
        for port, code in self._udp_code_of.items():
            self._udp_code[port] = code
        self._listeners = dict(listeners or {})
        self._listening = np.zeros(65536, np.bool_)
        self._listening[list(self._listeners)] = True
        self._streams: dict[tuple[int, int], Stream] = {}
        self.layout = GSO_LAYOUT if gso else PLAIN_LAYOUT
        self._swap: dict[int, SwapStream] = {}

    def connect(self, port: int, queue: TcpReceiveQueue) -> None:
        """A connection to the swap server is being opened from our `port`."""
        self._swap[port] = SwapStream(len(self._kinds), queue)
        self._kinds.append(Kind(ETH_P_IP, queue, CONNECTING))

    def attach(self, port: int) -> None:
        """The kernel has taken over that connection, and its queue knows how far it has been read."""
        stream = self._swap[port]
        stream.attached = True
        self._kinds[stream.code] = Kind(ETH_P_IP, stream.queue, SWAP_NAME)

    def disconnect(self, port: int) -> None:
        """The connection is gone: what still comes for it is answered with a reset by the stack."""
        self._swap.pop(port, None)

    def classify(self, block: FrameBlock) -> tuple[RxBatch, npt.NDArray[np.bool_] | None]:
        """The block as the receive path wants it, and which frames are for another host (None: none are)."""
        return self.classify_few(block) if block.count <= FEW else self.classify_many(block)

    def classify_few(self, block: FrameBlock) -> tuple[RxBatch, npt.NDArray[np.bool_] | None]:
        """`classify` frame by frame."""
        codes, others, tcp = [], [], []
        for fields in block.unpacked(self.layout):
            status, gso_type, size_low, size_high, high, low, protocol, total, ip_protocol, source, ports = fields[:11]
            if tun := self._tuns.get((high, low)):
                others.append(False)
                codes.append(self._tun_code(tun, protocol))
                tcp.append((0, 1, size_low | size_high << 8))
                continue
            others.append(status & STATUS_VLAN_VALID or not (high & 0x100 or (high, low) == self._mac))
            is_ip = protocol == ETH_P_IP
            code = self._udp_code_of.get(ports & 0xFFFF, STACK) if is_ip and ip_protocol == IPPROTO_UDP else STACK
            segment = (0, 1, size_low | size_high << 8)
            stream = self._swap_stream(source, ports) if is_ip and ip_protocol == IPPROTO_TCP else None
            if stream is not None:
                code = stream.code
                segment = self._tcp_segment(stream, total, fields[11:], gso_type, segment[2])
            elif is_ip and ip_protocol == IPPROTO_TCP and ports & 0xFFFF in self._listeners:
                size = segment[2] if gso_type else 0
                code, segment = self._stream_segment(source, ports, total, fields[11:], size) or (STACK, segment)
            if code == STACK:
                broadcast = bool(self._tuns and high & 0x100)
                code = self._stack_code((protocol, ip_protocol if is_ip else 0, broadcast))
            codes.append(code)
            tcp.append(segment)
        batch = self._batch(np.array(codes, np.int64))
        if any(kind.receiver.__class__ is TcpReceiveQueue for kind in batch.kinds):
            batch.end_seq = [end_seq for end_seq, _, _ in tcp]
            if self._gso:
                batch.segments = [segments for _, segments, _ in tcp]
                batch.gso_size = [size for _, _, size in tcp]
        return batch, np.array(others, np.bool_) if any(others) else None

    def _swap_stream(self, source: int, ports: int) -> SwapStream | None:
        if source == self._server and ports >> 16 == self._server_port:
            return self._swap.get(ports & 0xFFFF)
        return None

    def _tcp_segment(
        self, stream: SwapStream, total: int, tcp: tuple[int, int, int], gso_type: int, size: int
    ) -> tuple[int, int, int]:
        """(end_seq, segments, gso_size) of one frame of a swap connection."""
        seq, offset, flags = tcp
        payload = total - 20 - (offset >> 4 << 2)
        if stream.first_seq is None and flags & TCP_SYN_ACK == TCP_SYN_ACK:
            stream.first_seq = seq + 1
        end_seq = 0
        if stream.attached and stream.first_seq is not None and payload > 0:
            end_seq = stream_offset(seq + payload, stream.first_seq, stream.queue.copied_seq)
        return end_seq, max(1, -(-payload // size)) if self._gso and gso_type and size else 1, size

    def _stream_segment(
        self, source: int, ports: int, total: int, tcp: tuple[int, int, int], size: int
    ) -> tuple[int, Segment] | None:
        """Code and segment of one frame to a listening socket's port, None if it is of no connection.

        `size` is 0 for a frame that is not GSO.
        """
        seq, offset, flags = tcp
        stream = self._streams.get((source, ports))
        opening = flags & TCP_SYN_ACK == TCP_SYN
        if opening and (stream is None or stream.first_seq != seq + 1):
            queue = self._listeners[ports & 0xFFFF]((source, ports >> 16))
            stream = self._streams[source, ports] = Stream(len(self._kinds), queue, seq + 1)
            self._kinds.append(Kind(ETH_P_IP, queue, queue.sk.name))
        if stream is None:
            return None
        payload = total - 20 - (offset >> 4 << 2)
        segments = max(1, -(-payload // size)) if self._gso and size else 1
        return stream.code, (stream.offset(seq + payload) if payload > 0 else 0, segments, size)

    def classify_many(self, block: FrameBlock) -> tuple[RxBatch, npt.NDArray[np.bool_] | None]:
        """`classify` by columns."""
        headers = np.ascontiguousarray(block.headers[:, :HEADERS_SEEN])
        protocols = column(headers, 12, ">u2")
        addressed = self._addressed(headers, block)
        ip_protocol = headers[:, 23]
        is_ip = protocols == ETH_P_IP
        forwarded = self._forwarded(headers) if self._tuns else None
        if forwarded is not None:
            is_ip &= ~forwarded
        codes: Codes = np.where(is_ip & (ip_protocol == IPPROTO_UDP), self._udp_code[column(headers, 36, ">u2")], STACK)
        swap = is_ip & (ip_protocol == IPPROTO_TCP) & (column(headers, 34, ">u2") == self._server_port)
        swap &= column(headers, 26, ">u4") == self._server
        swap_streams = self._swap_streams(headers, codes, swap) if swap.any() else []
        streams = self._stream_segments(block, headers, codes, is_ip) if self._listeners else {}
        if forwarded is not None:
            codes[forwarded] = self._tun_codes(headers[forwarded], protocols[forwarded])
            addressed |= forwarded
        stack = codes == STACK
        if stack.any():
            broadcast = headers[stack, 0] & 1 if self._tuns else np.zeros(np.count_nonzero(stack), np.uint8)
            codes[stack] = self._stack_codes(protocols[stack], np.where(is_ip, ip_protocol, 0)[stack], broadcast)
        batch = self._batch(codes)
        if swap_streams:
            self._add_tcp(batch, block, headers, swap_streams)
        if streams:
            self._add_streams(batch, block, streams)
        return batch, None if addressed.all() else ~addressed

    def _swap_streams(
        self, headers: npt.NDArray[np.uint8], codes: Codes, swap: Flags
    ) -> list[tuple[SwapStream, Flags]]:
        """The connections that the swap server's frames are of, and which frames are each one's."""
        ports = column(headers, 36, ">u2")
        found = []
        for port, stream in self._swap.items():
            mine = swap & (ports == port)
            if mine.any():
                codes[mine] = stream.code
                found.append((stream, mine))
        return found

    def _stream_segments(
        self, block: FrameBlock, headers: npt.NDArray[np.uint8], codes: Codes, is_ip: npt.NDArray[np.bool_]
    ) -> dict[int, Segment]:
        """Find the frames of listening sockets' connections: their codes go into `codes`, their segments are given."""
        wanted = is_ip & (headers[:, 23] == IPPROTO_TCP) & (codes == STACK)
        wanted &= self._listening[column(headers, 36, ">u2")]
        segments: dict[int, Segment] = {}
        for index in np.flatnonzero(wanted).tolist():
            source, ports, seq = struct.unpack_from(">I4xII", headers[index], 26)
            total = int.from_bytes(headers[index, 16:18].tobytes(), "big")
            whole = self._gso and block.vnet[index, 1]
            size = int.from_bytes(block.vnet[index, 4:6].tobytes(), "little") if whole else 0
            tcp = (seq, int(headers[index, 46]), int(headers[index, 47]))
            found = self._stream_segment(source, ports, total, tcp, size)
            if found is not None:
                codes[index], segments[index] = found
        return segments

    def _add_streams(self, batch: RxBatch, block: FrameBlock, streams: dict[int, Segment]) -> None:
        """Enter what `_stream_segments` has found into a batch that may have frames of the swap connection too."""
        ends = list(batch.end_seq or [0] * len(batch))
        for index, (end_seq, _, _) in streams.items():
            ends[index] = end_seq
        batch.end_seq = ends
        if self._gso:
            segments = list(batch.segments or [1] * len(batch))
            sizes = list(batch.gso_size or column(block.vnet, 4, "<u2").tolist())
            for index, (_, count, size) in streams.items():
                segments[index], sizes[index] = count, size
            batch.segments, batch.gso_size = segments, sizes

    def _stack_codes(self, protocols: Codes, ip_protocols: Codes, broadcast: npt.NDArray[np.uint8]) -> list[int]:
        """Codes of frames that are for the stack itself: one for each protocol that has been seen."""
        keys = zip(protocols.tolist(), ip_protocols.tolist(), broadcast.astype(np.bool_).tolist(), strict=True)
        return [self._stack_code(key) for key in keys]

    def _stack_code(self, key: tuple[int, int, bool]) -> int:
        code = self._stack_kinds.get(key)
        if code is None:
            protocol, ip_protocol, broadcast = key
            code = self._stack_kinds[key] = len(self._kinds)
            self._kinds.append(Kind(protocol, None, stack_name(protocol, ip_protocol), broadcast))
        return code

    def _forwarded(self, headers: npt.NDArray[np.uint8]) -> Flags:
        """Which frames are for virtual machines, whatever is in them."""
        high, low = column(headers, 0, ">u2"), column(headers, 2, ">u4")
        forwarded = np.zeros(len(headers), np.bool_)
        for first, rest in self._tuns:
            forwarded |= (low == rest) & (high == first)
        return forwarded

    def _tun_codes(self, headers: npt.NDArray[np.uint8], protocols: Codes) -> list[int]:
        high, low = column(headers, 0, ">u2"), column(headers, 2, ">u4")
        frames = zip(high.tolist(), low.tolist(), protocols.tolist(), strict=True)
        return [self._tun_code(self._tuns[first, rest], protocol) for first, rest, protocol in frames]

    def _tun_code(self, tun: Tun, protocol: int) -> int:
        code = self._tun_kinds.get((tun.name, protocol))
        if code is None:
            code = self._tun_kinds[tun.name, protocol] = len(self._kinds)
            self._kinds.append(Kind(protocol, tun, tun.name))
        return code

    def _batch(self, codes: Codes) -> RxBatch:
        """The frames with these codes, numbered among the kinds that occur."""
        first = int(codes[0])
        if (codes == first).all():
            return RxBatch.of_kinds(np.zeros(len(codes), np.intp), [self._kinds[first]])
        present, numbers = np.unique(codes, return_inverse=True)
        return RxBatch.of_kinds(numbers, [self._kinds[code] for code in present.tolist()])

    def _addressed(self, headers: npt.NDArray[np.uint8], block: FrameBlock) -> npt.NDArray[np.bool_]:
        mine: npt.NDArray[np.bool_] = column(headers, 2, ">u4") == self._mac[1]
        mine &= column(headers, 0, ">u2") == self._mac[0]
        mine |= (headers[:, 0] & 1).astype(np.bool_)
        mine &= ~block.vlan[1]
        return mine

    def _add_tcp(
        self,
        batch: RxBatch,
        block: FrameBlock,
        headers: npt.NDArray[np.uint8],
        streams: Sequence[tuple[SwapStream, Flags]],
    ) -> None:
        """Stream offsets, and how many wire frames each frame of a swap connection stands for."""
        seq = column(headers, 38, ">u4").astype(np.int64)
        header = 20 + ((headers[:, 46] >> 4).astype(np.int64) << 2)
        length = column(headers, 16, ">u2").astype(np.int64) - header
        ends = np.zeros(block.count, np.int64)
        swap = streams[0][1]
        for stream, mine in streams:
            swap = swap | mine
            _learn_first_seq(stream, headers, seq, mine)
            if stream.attached and stream.first_seq is not None:
                copied = stream.queue.copied_seq
                ahead = ((seq + length - (stream.first_seq + copied) + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
                ends = np.where(mine & (length > 0), copied + ahead, ends)
        batch.end_seq = ends.tolist()
        if self._gso:
            vnet = block.vnet
            size = column(vnet, 4, "<u2").astype(np.int64)
            whole = (vnet[:, 1] != 0) & (size > 0) & swap
            segments = np.where(whole, -(-length // np.maximum(size, 1)), 1)
            batch.segments = np.maximum(segments, 1).tolist()
            batch.gso_size = size.tolist()


def _learn_first_seq(stream: SwapStream, headers: npt.NDArray[np.uint8], seq: Codes, mine: Flags) -> None:
    if stream.first_seq is None:
        opening = np.flatnonzero(mine & ((headers[:, 47] & TCP_SYN_ACK) == TCP_SYN_ACK))
        if len(opening):
            stream.first_seq = int(seq[opening[0]]) + 1


def stream_offset(seq: int, first_seq: int, near: int) -> int:
    """The stream offset of a 32-bit sequence number, of those it may stand for the one closest to `near`."""
    return near + ((seq - first_seq - near + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def _halves(mac: str) -> tuple[int, int]:
    """The first two bytes of a MAC address, and the other four."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return int.from_bytes(octets[:2], "big"), int.from_bytes(octets[2:], "big")


def column(rows: npt.NDArray[np.uint8], offset: int, kind: str) -> npt.NDArray[Any]:
    """One header field of all frames: `kind` at byte `offset` of each row, (rows,) without a copy."""
    width = int(kind[-1])
    field: npt.NDArray[Any] = rows[:, offset : offset + width].view(kind)[:, 0]
    return field


def stack_name(protocol: int, ip_protocol: int) -> str:
    """What a frame without a socket is filed under."""
    if protocol == ETH_P_IP:
        return {IPPROTO_ICMP: "icmp", IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp (no socket)"}.get(ip_protocol, "ip")
    return {ETH_P_ARP: "arp", ETH_P_IPV6: "ipv6", ETH_P_8021Q: "vlan"}.get(protocol, f"ethertype {protocol:#06x}")
