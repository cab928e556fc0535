"""TCP connections that send at a rate: ordinary sockets of this host, whose kernel retransmits what gets lost.

What a connection does not take is not sent later: like a flood, a stream that was held up forgets all but 20 ms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from testbed.lab.errors import lab_error

TICK_S = 0.001
CATCH_UP_S = 0.02
CHUNK = bytes(16 << 10)
TCP_INFO_SIZE = 192
TCPI_TOTAL_RETRANS = struct.Struct("=100xI")
TCPI_SEGS_OUT = struct.Struct("=136xI")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class StreamProfile:
    """One connection to each of the ports, and the bytes a second for all of them together."""

    destination_ip: str
    ports: Sequence[int]
    bytes_per_second: int


class Pacing:
    """Lets `bytes_per_second` through, in chunks; those who send take turns."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._credit = 0.0
        self._last: float | None = None
        self._turn = 0

    def restart(self) -> None:
        """Nothing is due for the time until the next step."""
        self._last = None

    def step(self, now: float, senders: Sequence[Callable[[], int]]) -> float:
        """Have `senders` send what is due at `now`, each a chunk at a time, until none takes any more; in how many
        seconds the next chunk is due. A sender returns how many bytes were taken.
        """
        elapsed = 0.0 if self._last is None else now - self._last
        self._last = now
        self._credit = min(self._credit + elapsed * self._rate, max(CATCH_UP_S * self._rate, len(CHUNK)))
        idle = 0
        while self._credit >= len(CHUNK) and idle < len(senders):
            taken = senders[self._turn]()
            self._turn = (self._turn + 1) % len(senders)
            self._credit -= taken
            idle = 0 if taken else idle + 1
        return (len(CHUNK) - self._credit) / self._rate


class Stream:
    """The connections of one `StreamProfile`, opened by `start`. `sent` counts bytes the sockets have taken."""

    def __init__(self, profile: StreamProfile) -> None:
        self.profile = profile
        self.sent = 0
        self._sockets: list[socket.socket] = []
        self._pacing = Pacing(profile.bytes_per_second)

    def start(self) -> None:
        """Open the connections that are not open yet. Raises LabError for an address that cannot be reached at all."""
        self._pacing.restart()
        if self._sockets:
            return
        for port in self.profile.ports:
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._sockets.append(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            number = connection.connect_ex((self.profile.destination_ip, port))
            if number not in (0, errno.EINPROGRESS):
                raise lab_error(f"connecting to {self.profile.destination_ip} port {port}", number, os.strerror(number))

    def step(self, now: float) -> float:
        """Send what is due at `now` (CLOCK_MONOTONIC seconds); when to come back."""
        return now + max(TICK_S, self._pacing.step(now, [partial(self._send, each) for each in self._sockets]))

    def _send(self, connection: socket.socket) -> int:
        """One chunk's worth; 0 when the connection takes nothing now, is not there yet, or has ended."""
        try:
            taken = connection.send(CHUNK, socket.MSG_NOSIGNAL)
        except OSError:
            return 0
        self.sent += taken
        return taken

    def report(self) -> dict[str, int]:
        """`sent` bytes, and the kernel's own count of `segments` (retransmitted ones included) and `retransmits`."""
        infos = [info for connection in self._sockets if (info := _tcp_info(connection))]
        return {
            "sent": self.sent,
            "segments": sum(TCPI_SEGS_OUT.unpack_from(info)[0] for info in infos),
            "retransmits": sum(TCPI_TOTAL_RETRANS.unpack_from(info)[0] for info in infos),
        }

    def close(self) -> None:
        """Reset the connections."""
        for connection in self._sockets:
            connection.close()


def _tcp_info(connection: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    return b""
