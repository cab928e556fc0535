"""Frames out, by the block: one sendmmsg(2) for a run of frames, pointing into the ring they were received in.

The arrays of `struct mmsghdr` and `struct iovec` are made once; for each block only addresses and lengths are filled
in, as columns. A frame the interface refuses (its queue is full, the frame too long) is counted and skipped, as a
real device would lose it; the frames after it still go out, in order.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.lab.errors import lab_error
from testbed.lab.linux import libc
from testbed.lab.packet_ring import PACKET_QDISC_BYPASS, PACKET_VNET_HDR, SOL_PACKET, STATUS_VLAN_VALID, FrameBlock

MOST_AT_ONCE = 1024

IOVEC = np.dtype([("base", np.uint64), ("length", np.uint64)])
MMSGHDR = np.dtype(
    [
        *(("name", np.uint64), ("namelen", np.uint64), ("iov", np.uint64), ("iovlen", np.uint64)),
        *(("control", np.uint64), ("controllen", np.uint64), ("flags", np.uint64), ("length", np.uint64)),
    ]
)
_SEND_BUFFER = 16 << 20
_SO_SNDBUFFORCE = 32
_VNET_CSUM_START = slice(6, 8)
_VNET_HEADER_LENGTH = slice(2, 4)
_VLAN_TAG = 4
_SKIPPED = {errno.ENOBUFS, errno.EMSGSIZE, errno.EINVAL}
_LOST_ALL = {errno.EAGAIN, errno.ENETDOWN, errno.ENXIO, errno.ENOMEM}

_sendmmsg = libc.sendmmsg
_sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
_sendmmsg.restype = ctypes.c_int


def open_sender(ifname: str, *, gso: bool = False, qdisc_bypass: bool = False) -> socket.socket:
    """A packet socket that only sends, out of an interface of the calling thread's namespace. Raises LabError.

    With `qdisc_bypass` frames skip the interface's queueing discipline, and any netem on it.
    """
    try:
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        raise lab_error(f"opening a packet socket on {ifname}", error.errno or 0) from error
    try:
        if gso:
            sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        if qdisc_bypass:
            sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        try:
            sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        except PermissionError:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        sender.bind((ifname, 0))
    except OSError as error:
        sender.close()
        raise lab_error(f"opening a packet socket on {ifname}", error.errno or 0) from error
    return sender


class MessageVector:
    """`capacity` message headers with one iovec each, for sendmmsg(2); fill `iovecs` columns, then `send`."""

    def __init__(self, capacity: int) -> None:
        self.iovecs: npt.NDArray[Any] = np.zeros(capacity, IOVEC)
        self._headers: npt.NDArray[Any] = np.zeros(capacity, MMSGHDR)
        first = self.iovecs.ctypes.data
        self._headers["iov"] = first + np.arange(capacity, dtype=np.uint64) * np.uint64(IOVEC.itemsize)
        self._headers["iovlen"] = 1
        self.bases: npt.NDArray[np.uint64] = self.iovecs["base"]
        self.sizes: npt.NDArray[np.uint64] = self.iovecs["length"]
        self._address = int(self._headers.ctypes.data)

    def send(self, fd: int, start: int, count: int) -> tuple[int, int]:
        """Send messages start .. start + count - 1 without waiting; (sent, lost). Raises LabError."""
        position, stop, lost = start, start + count, 0
        while position < stop:
            done = _sendmmsg(
                fd, self._address + position * MMSGHDR.itemsize, min(stop - position, MOST_AT_ONCE), socket.MSG_DONTWAIT
            )
            if done > 0:
                position += done
                continue
            number = ctypes.get_errno()
            if number in _SKIPPED:
                position += 1
                lost += 1
            elif number in _LOST_ALL:
                lost += stop - position
                position = stop
            elif number != errno.EINTR:
                raise lab_error("sending frames", number, os.strerror(number))
        return count - lost, lost


class PacketSender:
    """Sends frames of blocks, and frames made up here, out of one interface.

    `tx_packets` were taken by the interface, `tx_dropped` were not (queue or socket buffer full, too long, interface
    down), `tx_truncated` were not offered because the ring had not kept all of them.
    """

    def __init__(self, ifname: str, *, gso: bool = False, qdisc_bypass: bool = False) -> None:
        self.ifname = ifname
        self.gso = gso
        self.tx_packets = 0
        self.tx_dropped = 0
        self.tx_truncated = 0
        self._socket = open_sender(ifname, gso=gso, qdisc_bypass=qdisc_bypass)
        self._vector = MessageVector(MOST_AT_ONCE)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, block: FrameBlock, indices: npt.NDArray[np.intp] | None = None) -> int:
        """Send the frames of a block numbered `indices` (all of them if None) in that order; how many went out.

        The block's ring and this sender must agree on gso: its virtio headers are passed on as they are. VLAN tags,
        which the kernel took out of the frames, are put back (those frames are copied). Raises LabError.
        """
        lengths, captured, status, addresses = block.lengths, block.captured, block.status, block.addresses
        if indices is not None:
            lengths, captured, status = lengths[indices], captured[indices], status[indices]
            addresses = addresses[indices]
        if captured.tobytes() != lengths.tobytes():
            whole = captured == lengths
            self.tx_truncated += int((~whole).sum())
            chosen = np.flatnonzero(whole) if indices is None else indices[whole]
            return self.send(block, chosen)
        count = len(lengths)
        sent = 0
        for start in range(0, count, MOST_AT_ONCE):
            part = slice(start, min(start + MOST_AT_ONCE, count))
            size = part.stop - start
            self._vector.bases[:size] = addresses[part]
            self._vector.sizes[:size] = lengths[part]
            if block.prefix:
                self._vector.sizes[:size] += np.uint64(block.prefix)
            tagged = (status[part] & STATUS_VLAN_VALID).nonzero()[0]
            copies = self._retag(block, indices, start, tagged) if len(tagged) else None
            sent += self._flush(size)
            del copies
        return sent

    def send_bytes(self, frames: Sequence[bytes]) -> int:
        """Send whole frames, Ethernet header first, checksums complete; how many went out. Raises LabError."""
        prefix = bytes(10) if self.gso else b""
        sent = 0
        for start in range(0, len(frames), MOST_AT_ONCE):
            kept = [np.frombuffer(prefix + frame, np.uint8) for frame in frames[start : start + MOST_AT_ONCE]]
            for row, buffer in enumerate(kept):
                self._point(row, buffer)
            sent += self._flush(len(kept))
        return sent

    def close(self) -> None:
        self._socket.close()

    def _flush(self, count: int) -> int:
        sent, lost = self._vector.send(self._socket.fileno(), 0, count)
        self.tx_packets += sent
        self.tx_dropped += lost
        return sent

    def _point(self, row: int, buffer: npt.NDArray[np.uint8]) -> None:
        self._vector.bases[row] = buffer.ctypes.data
        self._vector.sizes[row] = len(buffer)

    def _retag(
        self, block: FrameBlock, indices: npt.NDArray[np.intp] | None, start: int, rows: npt.NDArray[np.intp]
    ) -> list[npt.NDArray[np.uint8]]:
        """Point the given rows at copies of their frames that carry their VLAN tags; the copies, to be kept alive."""
        copies = []
        for row in rows.tolist():
            number = start + row if indices is None else int(indices[start + row])
            copies.append(np.frombuffer(tagged_frame(block, number), np.uint8))
            self._point(row, copies[-1])
        return copies

    def __enter__(self) -> PacketSender:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()


def tagged_frame(block: FrameBlock, number: int) -> bytes:
    """One frame with its VLAN tag put back, the virtio header in front adjusted to the longer Ethernet header."""
    frame = block.frame(number)
    tag = int(block.vlan_protocols[number]).to_bytes(2, "big") + int(block.vlan[0][number]).to_bytes(2, "big")
    header = b""
    if block.prefix:
        vnet = bytearray(block.vnet[number].tobytes())
        _grow(vnet, _VNET_HEADER_LENGTH)
        if vnet[0] & 1:
            _grow(vnet, _VNET_CSUM_START)
        header = bytes(vnet)
    return b"".join((header, frame[:12], tag, frame[12:]))


def _grow(vnet: bytearray, field: slice) -> None:
    value = int.from_bytes(vnet[field], "little")
    if value:
        vnet[field] = (value + _VLAN_TAG).to_bytes(2, "little")
