"""The client's half of the transmission phase: requests and bytes in, replies out, no socket.

Payloads are not copied where that can be helped. A WRITE's pages join the queue `outgoing` as they are, behind their
header, for a gathered send. A reply's header names the READ it answers, so the rest of its payload can be received
straight into that READ's pages; what comes behind it lands in a staging buffer, which is where the following headers,
and the short payloads that came along, are found. After a long payload only little staging is offered: the next long
payload then lands in place too.
"""

from collections import deque
from collections.abc import Sequence

from testbed.nbd.constants import (
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    REQUEST,
    SIMPLE_REPLY,
    Command,
)
from testbed.nbd.errors import NbdError

MAX_PIECES = 1024  # IOV_MAX
STAGING = 256 << 10  # bytes
LONG_PAYLOAD = 32 << 10  # bytes; a payload this long is worth a call of its own
STAGING_AFTER_LONG = 1024  # bytes

NBD_CMD_READ = int(Command.NBD_CMD_READ)
NBD_CMD_WRITE = int(Command.NBD_CMD_WRITE)
NBD_CMD_DISC = int(Command.NBD_CMD_DISC)
NBD_CMD_FLUSH = int(Command.NBD_CMD_FLUSH)
NBD_CMD_TRIM = int(Command.NBD_CMD_TRIM)
NBD_CMD_CACHE = int(Command.NBD_CMD_CACHE)
NBD_CMD_WRITE_ZEROES = int(Command.NBD_CMD_WRITE_ZEROES)

Buffer = bytes | memoryview


Reply = tuple[int, int]
"""A request is complete: its handle, and 0 or an NBD_E... number (spec: "Error values")."""


class ClientProtocol:
    """One connection after its handshake.

    Requests queue in `outgoing`, `outgoing_bytes` long in all; whoever sends takes pieces from its left. Handles are
    the caller's, unsigned 64-bit and unique among the requests in flight (ValueError otherwise). A READ's memoryviews
    belong to the protocol until its reply; a WRITE's until they have been sent.
    """

    def __init__(self) -> None:
        self.outgoing: deque[Buffer] = deque()
        self.outgoing_bytes = 0
        self._in_flight: dict[int, Sequence[memoryview]] = {}  # handle: where the payload of its reply goes
        self._staging = memoryview(bytearray(STAGING))
        self._staged = 0  # bytes of an incomplete header, at the start of the staging
        self._handle = 0  # the reply in progress, and what is still to fill of its payload
        self._payload: list[memoryview] = []
        self._long = False

    @property
    def in_flight(self) -> int:
        """Requests without a reply."""
        return len(self._in_flight)

    def read(self, handle: int, offset: int, buffers: Sequence[memoryview]) -> None:
        """NBD_CMD_READ of the bytes from `offset` on, into writable `buffers`, one after the other."""
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        self._request(NBD_CMD_READ, handle, offset, length, buffers)

    def write(self, handle: int, offset: int, buffers: Sequence[memoryview], *, fua: bool = False) -> None:
        """NBD_CMD_WRITE of `buffers`, one after the other, from byte `offset` on; with `fua` on stable storage when it
        is answered.
        """
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        self._request(NBD_CMD_WRITE, handle, offset, length, (), flags=NBD_CMD_FLAG_FUA * fua)
        self.outgoing += buffers
        self.outgoing_bytes += length

    def flush(self, handle: int) -> None:
        """NBD_CMD_FLUSH: writes answered before it was sent are on stable storage when it is answered."""
        self._request(NBD_CMD_FLUSH, handle, 0, 0, ())

    def trim(self, handle: int, offset: int, length: int, *, fua: bool = False) -> None:
        """NBD_CMD_TRIM: the contents of these bytes no longer matter."""
        self._request(NBD_CMD_TRIM, handle, offset, length, (), flags=NBD_CMD_FLAG_FUA * fua)

    def write_zeroes(
        self, handle: int, offset: int, length: int, *, fua: bool = False, no_hole: bool = False
    ) -> None:
        """NBD_CMD_WRITE_ZEROES: these bytes are zero from now on; with `no_hole` their storage stays allocated."""
        flags = NBD_CMD_FLAG_FUA * fua | NBD_CMD_FLAG_NO_HOLE * no_hole
        self._request(NBD_CMD_WRITE_ZEROES, handle, offset, length, (), flags=flags)

    def cache(self, handle: int, offset: int, length: int) -> None:
        """NBD_CMD_CACHE: these bytes will be read soon."""
        self._request(NBD_CMD_CACHE, handle, offset, length, ())

    def disconnect(self) -> None:
        """NBD_CMD_DISC, which has no reply; the server finishes what came before and hangs up."""
        self.outgoing.append(REQUEST.pack(NBD_REQUEST_MAGIC, 0, NBD_CMD_DISC, 0, 0, 0))
        self.outgoing_bytes += REQUEST.size

    def _request(
        self, command: int, handle: int, offset: int, length: int, landing: Sequence[memoryview], *, flags: int = 0
    ) -> None:
        if handle in self._in_flight:
            raise ValueError(f"handle {handle} is in flight already")
        self.outgoing.append(REQUEST.pack(NBD_REQUEST_MAGIC, flags, command, handle, offset, length))
        self.outgoing_bytes += REQUEST.size
        self._in_flight[handle] = landing

    def sent(self, count: int) -> None:
        """The first `count` bytes of `outgoing` are on their way."""
        outgoing = self.outgoing
        self.outgoing_bytes -= count
        if not self.outgoing_bytes:
            outgoing.clear()
            return
        while count >= len(outgoing[0]):
            count -= len(outgoing.popleft())
        if count:
            outgoing[0] = memoryview(outgoing[0])[count:]

    def next_buffers(self) -> list[memoryview]:
        """Where the next bytes of the stream belong, in order; at most 1024 pieces."""
        payload = self._payload
        if len(payload) >= MAX_PIECES:
            return payload[:MAX_PIECES]
        return [*payload, self._staging[self._staged : STAGING_AFTER_LONG if self._long else STAGING]]

    def received(self, count: int) -> list[Reply]:
        """`count` bytes were put into `next_buffers()`. Raises NbdError for what is not a reply to a request in flight.
        """
        replies: list[Reply] = []
        if self._payload:
            count = self._fill_payload(count)
            if self._payload:
                return replies
            replies.append((self._handle, 0))
        staging = self._staging
        end = self._staged + count
        at = 0
        unpack, in_flight = SIMPLE_REPLY.unpack_from, self._in_flight
        while end - at >= 16:
            magic, error, handle = unpack(staging, at)
            if magic != NBD_SIMPLE_REPLY_MAGIC:
                raise NbdError(f"the NBD server's reply has the wrong magic {magic:#x}")
            landing = in_flight.pop(handle, None)
            if landing is None:
                raise NbdError(f"the NBD server answered handle {handle}, which no request in flight has")
            at += 16
            if landing and not error:
                begin = at
                for number, piece in enumerate(landing):
                    after = at + len(piece)
                    if after > end:
                        piece[: end - at] = staging[at:end]
                        self._payload = [piece[end - at :], *landing[number + 1 :]]
                        self._handle = handle
                        self._long = sum(map(len, landing)) >= LONG_PAYLOAD
                        self._staged = 0
                        return replies
                    piece[:] = staging[at:after]
                    at = after
                self._long = at - begin >= LONG_PAYLOAD
            replies.append((handle, error))
        self._staged = end - at
        if at and at < end:
            staging[: end - at] = bytes(staging[at:end])
        return replies

    def _fill_payload(self, count: int) -> int:
        """Account `count` bytes to the payload in progress; returns how many lie behind it."""
        payload = self._payload
        done = 0
        for piece in payload:
            size = len(piece)
            if count < size:
                payload[done] = piece[count:]
                count = 0
                break
            count -= size
            done += 1
        del payload[:done]
        return count
