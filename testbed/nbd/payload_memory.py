"""A limit on the memory that payloads take on their way from files to sockets.

What comes in takes little: a long WRITE goes to its file in parts. What goes out is read whole, and short payloads are
bounded by what one connection sends in one go. For long ones a connection needs one of a fixed number of turns, waits
for it while it holds no other, and keeps it until its last long buffer is gone: nobody waits while holding, so nobody
waits for ever. Turns are given in the order in which they were asked for, so a busy connection cannot take its turn
again before those that wait. A connection that waits does not read from its socket, and TCP tells the client.
"""

import threading
from collections import deque
from dataclasses import dataclass, field

from testbed.nbd.constants import MAX_REQUEST_LENGTH

LONG = 32 << 10  # bytes
BUFFERS = 2  # that one connection can hold: the data of a READ that went out, and of the next
GATHERED = 1 << 20  # bytes of replies that wait for the next to be sent with them
DEFAULT_LIMIT = 1 << 30  # bytes


class PayloadMemory:
    """At most `limit` bytes in long buffers, where none is longer than `longest`; one connection always may.

    `waiting` connections have asked for a turn and have none yet.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, longest: int = MAX_REQUEST_LENGTH) -> None:
        self.turns = max(1, limit // (BUFFERS * longest + GATHERED))
        self._turn = _Turns(self.turns)
        self._of_thread = threading.local()

    @property
    def waiting(self) -> int:
        return self._turn.waiting

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


class _Turns:
    """First come, first served: a turn that is given back goes straight to who has waited longest."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.RLock()  # a buffer may be collected at any time, even in here

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def acquire(self) -> None:
        mine = threading.Lock()
        mine.acquire()
        with self._lock:
            self._waiting.append(mine)
            self._hand_out()
        mine.acquire()

    def release(self) -> None:
        with self._lock:
            self._free += 1
            self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft().release()


@dataclass(slots=True)
class _Share:
    """What one connection holds."""

    turn: _Turns
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
