"""Real sockets get more room than the model's limits allow, so that only the model ever refuses anything."""

from __future__ import annotations

import socket

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
_FORCED = {socket.SO_SNDBUF: SO_SNDBUFFORCE, socket.SO_RCVBUF: SO_RCVBUFFORCE}


def enlarge(real: socket.socket, option: int, size: int) -> None:
    """Set SO_SNDBUF or SO_RCVBUF to `size` bytes, beyond the system's limit where we may, up to it elsewhere."""
    try:
        real.setsockopt(socket.SOL_SOCKET, _FORCED[option], size)
    except PermissionError:
        real.setsockopt(socket.SOL_SOCKET, option, size)
