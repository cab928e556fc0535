"""The packet socket through which User Mode Linux receives: we hold it, too, so as to read its kernel's counters.

Frames that the guest did not fetch stay in it when the guest is gone, where they can be counted. It is also told to
leave out what the guest sends: the driver's own filter against that does not work, and a guest that receives every
frame it sends spends twice the memory on swap.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from pathlib import Path

from testbed.lab.errors import LabError, lab_error
from testbed.lab.linux import libc

_SYS_PIDFD_GETFD = 438
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 33, 26
_ETH_P_ALL = "0003"
_RETURN_0 = struct.pack("=HBBI", 0x06, 0, 0, 0)


class PacketSocket:
    """A duplicate of the receiving packet socket of process `pid`. Raises LabError when it has none."""

    def __init__(self, pid: int, buffer: int) -> None:
        self.packets = 0
        """Frames that the socket was given, those it lost included."""
        self.drops = 0
        """Frames that it had no room for."""
        self._socket = _duplicate(pid, _receiving(pid))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)

    def read_statistics(self) -> None:
        """Add what the kernel has counted since the last time."""
        packets, drops = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self.packets += packets
        self.drops += drops

    def shut(self) -> None:
        """Take no more frames."""
        code = ctypes.create_string_buffer(_RETURN_0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("=H6xQ", 1, ctypes.addressof(code)))

    def drain(self) -> int:
        """Take out what nobody has fetched; how many frames that were."""
        count = 0
        while True:
            try:
                self._socket.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return count
            except OSError:
                continue
            count += 1

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


def _receiving(pid: int) -> int:
    """The process's descriptor of its packet socket for all protocols."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[8]}]" for row in rows if row[3] == _ETH_P_ALL}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if str(entry.readlink()) in inodes:
            return int(entry.name)
    raise LabError("User Mode Linux has no packet socket: its network driver did not start (see the console log)")


def _duplicate(pid: int, fd: int) -> socket.socket:
    pidfd = os.pidfd_open(pid)
    try:
        ours = libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), pidfd, fd, 0)
    finally:
        os.close(pidfd)
    if ours < 0:
        raise lab_error("looking at the packet socket of User Mode Linux", ctypes.get_errno())
    return socket.socket(fileno=ours)
