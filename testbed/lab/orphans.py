"""TCP connections that nobody owns any more but that keep their namespace alive.

A closed connection lives on in the kernel until the other side has acknowledged its end. When the path is gone, as
after a kill, that takes the kernel about 100 s of retransmissions, and the namespace with all its links stays that
long. New namespaces are told to give up sooner; `end_orphans` ends them at once (sock_diag(7), SOCK_DESTROY).
"""

from __future__ import annotations

import contextlib
import socket
import struct

from testbed.lab.errors import LabError
from testbed.lab.rtnetlink import RouteSocket

NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_TIME_WAIT, _LISTEN = 6, 10
_STATES = 0xFFF & ~(1 << _TIME_WAIT) & ~(1 << _LISTEN)
_IDENTITY = slice(4, 52)
_INODE = struct.Struct("=I")
_INODE_AT = 68


def end_orphans() -> None:
    """End the TCP connections without an owner in the calling thread's namespace, as far as this kernel can."""
    with contextlib.suppress(OSError, LabError), contextlib.closing(RouteSocket(NETLINK_SOCK_DIAG)) as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            everything = _request(family, bytes(48))
            for answer in diag.dump(_SOCK_DIAG_BY_FAMILY, everything, doing="listing connections"):
                if _INODE.unpack_from(answer, _INODE_AT)[0] == 0:
                    with contextlib.suppress(LabError):
                        diag.request_bytes(_SOCK_DESTROY, _request(family, answer[_IDENTITY]), "ending a connection")


def _request(family: int, identity: bytes) -> bytes:
    """`struct inet_diag_req_v2` (linux/inet_diag.h)."""
    return struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _STATES) + identity
