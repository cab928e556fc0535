"""A limit on the memory that payloads take on their way from files to sockets.

What comes in takes little: a long WRITE goes to its file in parts. What goes out is read whole, and short payloads are
bounded by what one connection sends in one go. For long ones a connection needs one of a fixed number of turns, waits
for it while it holds no other, and keeps it until its last long buffer is gone: nobody waits while holding, so nobody
waits for ever. A connection that waits does not read from its socket, and TCP tells the client.
"""

import threading
from dataclasses import dataclass, field

from testbed.nbd.constants import MAX_REQUEST_LENGTH

LONG = 32 << 10  # bytes
BUFFERS = 2  # that one connection can hold: the data of a READ that went out, and of the next
GATHERED = 1 << 20  # bytes of replies that wait for the next to be sent with them
DEFAULT_LIMIT = 1 << 30  # bytes


class PayloadMemory:
    """At most `limit` bytes in long buffers, where none is longer than `longest`; one connection always may."""

    def __init__(self, limit: int = DEFAULT_LIMIT, longest: int = MAX_REQUEST_LENGTH) -> None:
        self.turns = max(1, limit // (BUFFERS * longest + GATHERED))
        self._turn = threading.BoundedSemaphore(self.turns)
        self._of_thread = threading.local()

    def buffer(self, length: int) -> memoryview:
        """Writable memory of `length` bytes, once the calling thread (a connection) has its turn."""
        if length < LONG:
            return memoryview(bytearray(length))
        share: _Share | None = getattr(self._of_thread, "share", None)
        if share is None:
            share = self._of_thread.share = _Share(self._turn)
        share.take()
        buffer = _Buffer(length)
        buffer.share = share
        return memoryview(buffer)


@dataclass(slots=True)
class _Share:
    """What one connection holds."""

    turn: threading.BoundedSemaphore
    buffers: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> None:
        if not self.buffers:
            self.turn.acquire()
        with self.lock:
            self.buffers += 1

    def give_back(self) -> None:
        with self.lock:
            self.buffers -= 1
            last = not self.buffers
        if last:
            self.turn.release()


class _Buffer(bytearray):
    """Counts as long as somebody looks at it."""

    share: _Share

    def __del__(self) -> None:
        self.share.give_back()
