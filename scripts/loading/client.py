"""A client that never rests: so many requests in flight, reads and writes of 4 to 128 KiB at random places.

It has a part of the export to itself, of which it knows every byte. The part is divided among the requests in flight,
so no two of them ever overlap and each READ has one right answer.
"""

from __future__ import annotations

import random
import socket
import time

from scripts.loading.judgement import Served
from testbed.nbd.client import open_connection
from testbed.nbd.client_protocol import Reply

UNIT = 4096  # bytes
LONGEST = 128 << 10  # bytes of a request
NOISE = random.Random(0).randbytes(1 << 20)


class LoadClient:
    """One connection, which fills its part at first: the `size` bytes from `offset` on. Raises NbdError."""

    def __init__(self, sock: socket.socket, offset: int, size: int, depth: int, seed: int) -> None:
        self.connection = open_connection(sock)
        self._offset = offset
        self._lane = size // depth // UNIT * UNIT  # bytes for each request in flight
        self._known = bytearray(self._lane * depth)
        self._chance = random.Random(seed)
        self._landing = [memoryview(bytearray(LONGEST)) for _ in range(depth)]
        self._asked = [(0, 0, 0.0)] * depth  # of each READ in flight: where, how long (0: a WRITE), when it was asked
        self.requests = self.errors = self.corrupt = 0
        self.longest_wait = 0.0

    def fill(self) -> None:
        """Write the whole part once, waiting for each reply."""
        self.connection.sock.setblocking(True)
        for at in range(0, len(self._known), LONGEST):
            self._write(0, at, min(LONGEST, len(self._known) - at))
            self.connection.send_pending()
            while self.connection.in_flight:
                self.errors += sum(error != 0 for _, error in self.connection.receive())
        self.connection.sock.setblocking(False)

    def begin(self) -> None:
        """Put all requests in flight; from now on they are counted."""
        for handle in range(len(self._landing)):
            self._ask(handle)

    def received(self, replies: list[Reply]) -> None:
        """Look at the replies, and ask again for each."""
        for handle, error in replies:
            self._check(handle, error)
            self._ask(handle)

    def finish(self) -> Served:
        """What was served until now; the replies still under way are awaited and looked at, but not counted."""
        requests = self.requests
        self.connection.sock.setblocking(True)
        self.connection.send_pending()
        while self.connection.in_flight:
            for handle, error in self.connection.receive():
                self._check(handle, error)
        self.connection.disconnect()
        self.connection.send_pending()
        self.connection.close()
        return Served(requests, self.errors, self.corrupt, self.longest_wait)

    def _ask(self, handle: int) -> None:
        chance = self._chance
        length = UNIT * chance.randint(1, min(LONGEST, self._lane) // UNIT)
        at = handle * self._lane + UNIT * chance.randint(0, (self._lane - length) // UNIT)
        if chance.random() < 0.5:
            self._asked[handle] = at, length, time.monotonic()
            self.connection.read(handle, self._offset + at, [self._landing[handle][:length]])
        else:
            self._asked[handle] = at, 0, time.monotonic()
            self._write(handle, at, length)

    def _write(self, handle: int, at: int, length: int) -> None:
        noise = self._chance.randrange(len(NOISE) - length)
        self._known[at : at + length] = NOISE[noise : noise + length]
        self.connection.write(handle, self._offset + at, [memoryview(self._known)[at : at + length]])

    def _check(self, handle: int, error: int) -> None:
        at, length, asked = self._asked[handle]
        self.requests += 1
        self.errors += error != 0
        self.longest_wait = max(self.longest_wait, time.monotonic() - asked)
        if length and not error:
            self.corrupt += bytes(self._landing[handle][:length]) != self._known[at : at + length]
