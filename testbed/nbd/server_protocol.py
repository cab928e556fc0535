"""The server's half of a connection: bytes in, frozen events out, no socket.

The stream is received into `next_buffers()`. Requests are found in a staging buffer; the payload of a WRITE is received
straight into the memory where its export wants it to land, followed by more staging for the requests behind it. After a
long payload only little staging is offered, so that the next long payload lands in place too.

An export may give less memory than a payload has: then the payload comes in parts, the last of which is the `Write`.

Every request is checked here, so an event can be carried out as it is; what the checks refuse comes out as `Refused`,
after its payload (if any) has been thrown away, and the stream goes on. Memory is bounded: the staging, and one landing
of at most MAX_REQUEST_LENGTH.
"""

import struct
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple, Protocol

from testbed.nbd.constants import (
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_REQUEST_MAGIC,
    REQUEST,
    Command,
    NbdErrno,
)
from testbed.nbd.server_handshake import Described, ProtocolError, ServerHandshake, TlsMode

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
NBD_CMD_BLOCK_STATUS = int(Command.NBD_CMD_BLOCK_STATUS)

HEAD = struct.Struct(">QQQL")
"""REQUEST, with what makes a READ or WRITE plain (its magic, flags and command) in one number."""
PLAIN_READ = NBD_REQUEST_MAGIC << 32 | NBD_CMD_READ
PLAIN_WRITE = NBD_REQUEST_MAGIC << 32 | NBD_CMD_WRITE

WRITING = {NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES}
WITH_PAYLOAD = {NBD_CMD_READ, NBD_CMD_WRITE}
FLAGS = {
    NBD_CMD_WRITE_ZEROES: NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_BLOCK_STATUS: NBD_CMD_FLAG_REQ_ONE,
}  # beside NBD_CMD_FLAG_FUA, and NBD_CMD_FLAG_DF with structured replies


class Landing(Described, Protocol):
    """An export, as far as the protocol needs it."""

    def landing(self, offset: int, length: int) -> memoryview:
        """Writable memory for the payload of a WRITE at `offset`: of `length` bytes, or of at least STAGING, if that is
        less.
        """
        ...


class ExportChosen(NamedTuple):
    """The handshake is over; the events that follow concern this export."""

    name: str


class StartTls(NamedTuple):
    """Send what there is to send in the clear, then shake hands for TLS; the stream goes on inside it."""


class Read(NamedTuple):
    handle: int
    offset: int
    length: int


class UnfragmentedRead(Read):
    """With NBD_CMD_FLAG_DF: the data are wanted in one chunk."""

    __slots__ = ()


class WritePart(NamedTuple):
    """Some of the payload of a WRITE, in the memory that the export gave for it; more is to come, and then `Write`."""

    handle: int
    offset: int
    data: memoryview


class Write(NamedTuple):
    """The payload is complete, or the rest of it, in the memory that the export gave for it."""

    handle: int
    offset: int
    data: memoryview
    fua: bool


class Flush(NamedTuple):
    handle: int


class Trim(NamedTuple):
    handle: int
    offset: int
    length: int
    fua: bool


class WriteZeroes(NamedTuple):
    """`hole`: the bytes may be given back to the storage. `fast`: refuse unless it is faster than a WRITE."""

    handle: int
    offset: int
    length: int
    fua: bool
    hole: bool
    fast: bool


class Cache(NamedTuple):
    handle: int
    offset: int
    length: int


class BlockStatus(NamedTuple):
    """`one`: one extent is enough."""

    handle: int
    offset: int
    length: int
    one: bool


class Refused(NamedTuple):
    """To be answered with `error`, an NBD_E... number."""

    handle: int
    error: int


class Disconnect(NamedTuple):
    """The client takes its leave: answer what came before, then hang up. Nothing is parsed after it."""


class Violation(NamedTuple):
    """The client broke the protocol beyond repair, for this reason: hang up. Nothing is parsed after it."""

    reason: str


Request = Read | Write | Flush | Trim | WriteZeroes | Cache | BlockStatus | Refused
Event = ExportChosen | StartTls | WritePart | Request | Disconnect | Violation


class ServerProtocol:
    """One connection to a server of `exports`, from the greeting on.

    `answering`: `data_to_send` has something. `structured`: replies are to be structured. `landing` gives the memory
    for a WRITE's payload, at first the export's own; whoever carries out the requests may put another in its place.
    """

    landing: Callable[[int, int], memoryview]

    def __init__(self, exports: Mapping[str, Landing], tls: TlsMode = TlsMode.NOTLS) -> None:
        self._exports = exports
        self._handshake = ServerHandshake(exports, tls)
        self.structured = False
        self._negotiation: Generator[int, bytes, str | None] | None = self._handshake.negotiate()
        self._needed = next(self._negotiation)
        self.answering = True
        self._closed = False
        self._size = 0
        self._read_only = False
        self._unaligned = 0  # the bits that no offset and no length may have
        self._longest = 0  # bytes of payload
        self._staging = memoryview(bytearray(STAGING))
        self._everything = [self._staging]
        self._staged = 0  # bytes not yet parsed, at the start of the staging
        self._payload = self._staging[:0]  # what is still to fill of the WRITE in progress
        self._write: Write
        self._rest = 0  # bytes of that WRITE beyond the payload that is being filled
        self._skip = 0  # bytes still to throw away of a refused WRITE
        self._refused: Refused
        self._long = False

    def data_to_send(self) -> bytes:
        """The handshake's bytes for the client since the last call."""
        data = bytes(self._handshake.output)
        self._handshake.output.clear()
        self.answering = False
        return data

    @property
    def writing(self) -> bool:
        """Is there a WRITE of whose payload some has not come yet?"""
        return bool(self._payload)

    def next_buffers(self) -> list[memoryview]:
        """Where the next bytes of the stream belong, in order."""
        if not (self._staged or self._long or self._payload):
            return self._everything
        if self._rest:
            return [self._payload]
        staging = self._staging[self._staged : STAGING_AFTER_LONG if self._long else STAGING]
        return [self._payload, staging] if self._payload else [staging]

    def received(self, count: int) -> list[Event]:
        """`count` bytes were put into `next_buffers()`; what they complete."""
        events: list[Event] = []
        if self._closed:
            return events
        payload = len(self._payload)
        if payload:
            self._payload = self._payload[count:]
            if count < payload:
                return events
            if self._rest:
                events.append(self._next_part())
                return events
            events.append(self._write)
            del self._write  # the payload belongs to the event, for as long as that lives
            self._payload = self._staging[:0]
            count -= payload
        end = self._staged + count
        at = 0
        if self._negotiation is not None:
            at = self._negotiate(self._negotiation, end, events)
            self.answering = bool(self._handshake.output)
        if self._negotiation is None and not self._closed:
            at = self._requests(at, end, events)
        self._staged = 0 if self._closed else end - at
        if at and self._staged:
            self._staging[: end - at] = bytes(self._staging[at:end])
        return events

    def _negotiate(self, negotiation: Generator[int, bytes, str | None], end: int, events: list[Event]) -> int:
        """Feed the handshake from the staging; returns up to where."""
        at = 0
        while end - at >= self._needed:
            portion = bytes(self._staging[at : at + self._needed])
            at += self._needed
            try:
                self._needed = negotiation.send(portion)
            except StopIteration as choice:
                self._negotiation = None
                if choice.value is None:
                    self._closed = True
                    events.append(Disconnect())
                else:
                    self._choose(self._exports[choice.value])
                    events.append(ExportChosen(choice.value))
                break
            except ProtocolError as error:
                self._closed = True
                events.append(Violation(str(error)))
                break
            if self._handshake.starting_tls:
                self._handshake.starting_tls = False
                events.append(StartTls())
                if at < end:  # whoever put it there, it is not protected
                    self._closed = True
                    events[-1] = Violation("the client said more before it started TLS")
                break
        return at

    def _choose(self, export: Landing) -> None:
        self.landing = export.landing
        self.structured = self._handshake.structured
        self._size = export.size
        self._read_only = export.read_only
        self._unaligned = export.block_size.minimum - 1
        self._longest = export.block_size.maximum

    def _requests(self, at: int, end: int, events: list[Event]) -> int:
        """Parse the requests in the staging; returns up to where. Nearly all are plain, and cheap."""
        staging, unpack, header, append, new = self._staging, HEAD.unpack_from, HEAD.size, events.append, tuple.__new__
        size, unaligned, longest = self._size, self._unaligned, self._longest
        writable = -1 if self._read_only else PLAIN_WRITE
        if self._skip:
            at = self._throw_away(at, end, events)
        while end - at >= header:
            head, handle, offset, length = unpack(staging, at)
            fits = offset + length <= size and length <= longest and not (unaligned and (offset | length) & unaligned)
            if fits and head == PLAIN_READ:
                append(new(Read, (handle, offset, length)))
                at += header
            elif fits and head == writable:
                write = new(Write, (handle, offset, self.landing(offset, length), False))
                at = self._begin(write, length, at + header, end, events)
            else:
                at = self._other_request(at, end, events)
        return at

    def _begin(self, write: Write, length: int, at: int, end: int, events: list[Event]) -> int:
        """Land what has come of the payload of a WRITE, whose landing may be for its first part; up to where."""
        landing = write.data
        self._long = length >= LONG_PAYLOAD
        after = at + length
        if after > end:
            self._rest = length - len(landing)
            landing[: end - at] = self._staging[at:end]
            self._write, self._payload = write, landing[end - at :]
            return end
        landing[:] = self._staging[at:after]
        events.append(write)
        return after

    def _other_request(self, at: int, end: int, events: list[Event]) -> int:
        """Parse one request of any kind; returns up to where."""
        magic, flags, command, handle, offset, length = REQUEST.unpack_from(self._staging, at)
        at += REQUEST.size
        if magic != NBD_REQUEST_MAGIC:
            self._closed = True
            events.append(Violation(f"the client's request has the wrong magic {magic:#x}"))
            return end
        error = self._check(command, flags, offset, length)
        if command == NBD_CMD_WRITE and error:
            self._refused, self._skip = Refused(handle, error), length
            return self._throw_away(at, end, events)
        if command == NBD_CMD_WRITE:
            write = Write(handle, offset, self.landing(offset, length), flags != 0)
            return self._begin(write, length, at, end, events)
        if error:
            events.append(Refused(handle, error))
        elif command == NBD_CMD_DISC:
            self._closed = True
            events.append(Disconnect())
            return end
        else:
            events.append(_request(command, flags, handle, offset, length))
        return at

    def _throw_away(self, at: int, end: int, events: list[Event]) -> int:
        """The payload of a refused WRITE, as far as it has come; returns up to where."""
        skipped = min(self._skip, end - at)
        self._skip -= skipped
        if not self._skip:
            events.append(self._refused)
        return at + skipped

    def _next_part(self) -> WritePart:
        """What is full of a payload that comes in parts; the next part is what is filled now."""
        handle, offset, data, fua = self._write
        offset += len(data)
        self._payload = self.landing(offset, self._rest)
        self._rest -= len(self._payload)
        part, self._write = WritePart(*self._write[:3]), Write(handle, offset, self._payload, fua)
        return part

    def _check(self, command: int, flags: int, offset: int, length: int) -> int:
        """The NBD_E... number a request deserves, 0 if it is in order (spec: "Error values", "Request types")."""
        if command == NBD_CMD_DISC:
            return 0
        if flags & ~self._permitted_flags(command):
            return NbdErrno.NBD_EINVAL
        if command == NBD_CMD_FLUSH:
            return NbdErrno.NBD_EINVAL if offset or length else 0
        if command in WRITING and self._read_only:
            return NbdErrno.NBD_EPERM
        if command > NBD_CMD_BLOCK_STATUS or (offset | length) & self._unaligned:
            return NbdErrno.NBD_EINVAL
        if command in WITH_PAYLOAD and length > self._longest:
            return NbdErrno.NBD_EINVAL
        if command == NBD_CMD_BLOCK_STATUS and not (self._handshake.allocation and length):
            return NbdErrno.NBD_EINVAL
        if offset + length > self._size:
            return NbdErrno.NBD_ENOSPC if command in (NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES) else NbdErrno.NBD_EINVAL
        return 0

    def _permitted_flags(self, command: int) -> int:
        permitted = FLAGS.get(command, 0)
        if command == NBD_CMD_READ and self.structured:
            permitted |= NBD_CMD_FLAG_DF
        return permitted if self._read_only else permitted | NBD_CMD_FLAG_FUA


def _request(command: int, flags: int, handle: int, offset: int, length: int) -> Request:
    """The event for a request that is in order and has no payload to wait for."""
    if command == NBD_CMD_READ:
        return (UnfragmentedRead if flags & NBD_CMD_FLAG_DF else Read)(handle, offset, length)
    if command == NBD_CMD_FLUSH:
        return Flush(handle)
    fua = bool(flags & NBD_CMD_FLAG_FUA)
    if command == NBD_CMD_TRIM:
        return Trim(handle, offset, length, fua)
    if command == NBD_CMD_CACHE:
        return Cache(handle, offset, length)
    if command == NBD_CMD_BLOCK_STATUS:
        return BlockStatus(handle, offset, length, bool(flags & NBD_CMD_FLAG_REQ_ONE))
    hole, fast = not flags & NBD_CMD_FLAG_NO_HOLE, bool(flags & NBD_CMD_FLAG_FAST_ZERO)
    return WriteZeroes(handle, offset, length, fua, hole, fast)
