"""The management console of User Mode Linux: datagrams on a Unix socket, answered from an interrupt of the guest.

It therefore answers a guest whose processes all hang (arch/um/drivers/mconsole.h).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

_REQUEST = struct.Struct("=IIi512s")
_REPLY = struct.Struct("=IIi")
_MOST = 4096
_MAGIC, _VERSION = 0xCAFEBABE, 2


def ask(console: Path, command: str, patience_s: float) -> str | None:
    """The answer to `command`, such as "sysrq m"; None if there was none within `patience_s` seconds."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as asker:
        asker.bind(f"\0testbed-mconsole-{os.getpid()}")
        asker.settimeout(patience_s)
        words = command.encode()
        answer = b""
        try:
            asker.sendto(_REQUEST.pack(_MAGIC, _VERSION, len(words), words), str(console))
            more = 1
            while more:
                reply = asker.recv(_MOST)
                _, more, length = _REPLY.unpack_from(reply)
                answer += reply[_REPLY.size : _REPLY.size + length].rstrip(b"\0")
        except OSError:
            return answer.decode("utf-8", "replace") or None
    return answer.decode("utf-8", "replace")
