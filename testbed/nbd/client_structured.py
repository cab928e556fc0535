"""Structured replies (spec: "Structured reply message"): a READ is answered in chunks, in any order, with holes, and an
error may name the place it happened at.

The stream is received into a staging buffer of fixed size and copied from there, so that what a server sends cannot
make it grow. Of each READ is kept which bytes of it have come, merged where they touch; no byte may come twice, and all
have come when it ends without an error.
"""

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from testbed.nbd.client_protocol import STAGING, ClientProtocol, Reply
from testbed.nbd.constants import (
    CHUNK,
    CHUNK_ERROR,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_ERROR_BIT,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    OFFSET_DATA,
    OFFSET_HOLE,
    SIMPLE_REPLY,
    ChunkType,
    NbdErrno,
)
from testbed.nbd.errors import NbdError

MAX_ERROR_LENGTH = 4096 + 64  # bytes of an error chunk: its message has 4096 at most
MAX_RUNS = 65536  # pieces of one reply with bytes missing between them
ZEROES = bytes(64 << 10)


@dataclass(slots=True)
class Answer:
    """What has come of the reply to one request: its first `error` if any, and where, if the server said so."""

    error: int = 0
    error_offset: int | None = None


@dataclass(slots=True)
class ReadAnswer(Answer):
    """The answer to a READ from `offset` into `buffers`."""

    offset: int = 0
    buffers: Sequence[memoryview] = ()
    starts: list[int] = field(default_factory=list)
    length: int = 0
    come: list[tuple[int, int]] = field(default_factory=list)
    """Runs of bytes that have come: begin and end, in order, none touching another."""

    def claim(self, offset: int, size: int) -> int:
        """Where in the buffers `size` bytes from `offset` of the export go. Raises NbdError."""
        begin = offset - self.offset
        end = begin + size
        if not size or begin < 0 or end > self.length:
            raise NbdError("the NBD server sent a chunk outside of what was asked for")
        place = bisect_right(self.come, (begin, end))
        before = self.come[place - 1] if place else (-1, -1)
        after = self.come[place] if place < len(self.come) else (self.length + 1, self.length + 1)
        if before[1] > begin or after[0] < end or before[0] == begin:
            raise NbdError("the NBD server sent the same bytes of a reply twice")
        if before[1] == begin:
            self.come.remove(before)
            begin = before[0]
        if after[0] == end:
            self.come.remove(after)
            end = after[1]
        insort(self.come, (begin, end))
        if len(self.come) > MAX_RUNS:
            raise NbdError("the NBD server sent its reply in too many pieces")
        return offset - self.offset

    @property
    def complete(self) -> bool:
        """Have all bytes come?"""
        return self.come == [(0, self.length)] or not self.length

    def put(self, at: int, data: bytes | memoryview) -> None:
        """Copy data to position `at` of the buffers, as a whole."""
        number = bisect_right(self.starts, at) - 1
        at -= self.starts[number]
        while len(data):
            piece = self.buffers[number][at : at + len(data)]
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]
            number, at = number + 1, 0

    def put_zeroes(self, at: int, size: int) -> None:
        """Clear `size` bytes from position `at` of the buffers."""
        while size:
            part = min(size, len(ZEROES))
            self.put(at, ZEROES[:part])
            at, size = at + part, size - part


class StructuredClientProtocol(ClientProtocol):
    """One connection whose server answers READs in chunks. `error_offsets` has the place of an error by its handle."""

    def __init__(self) -> None:
        super().__init__()
        self.error_offsets: dict[int, int] = {}
        self._answers: dict[int, Answer] = {}
        self._chunk: tuple[int, int, bool] | None = None  # of the data chunk under way: handle, position, done
        self._left = 0  # bytes still to come of it

    def read(self, handle: int, offset: int, buffers: Sequence[memoryview]) -> None:
        """As `ClientProtocol.read`."""
        super().read(handle, offset, buffers)
        starts = list(accumulate(map(len, buffers), initial=0))
        length = starts.pop()
        self._answers[handle] = ReadAnswer(offset=offset, buffers=buffers, starts=starts, length=length)

    def next_buffers(self) -> list[memoryview]:
        """Where the next bytes of the stream belong."""
        return [self._staging[self._staged :]]

    def received(self, count: int) -> list[Reply]:
        """`count` bytes were put into `next_buffers()`. Raises NbdError for what answers no request in flight."""
        replies: list[Reply] = []
        staging = self._staging
        end = self._staged + count
        at = 0
        while True:
            if self._chunk is not None:
                at += self._data(staging[at:end], replies)
                if self._chunk is not None:
                    break
            taken = self._reply(staging[at:end], replies)
            if not taken:
                break
            at += taken
        self._staged = end - at
        if at and at < end:
            staging[: end - at] = bytes(staging[at:end])
        return replies

    def _reply(self, data: memoryview, replies: list[Reply]) -> int:
        """Parse one header, with its payload unless that is data; how many bytes that were, 0 if more must come."""
        if len(data) < SIMPLE_REPLY.size:
            return 0
        magic, error, handle = SIMPLE_REPLY.unpack_from(data)
        if magic == NBD_SIMPLE_REPLY_MAGIC:
            if handle in self._answers and not error:
                raise NbdError("the NBD server agreed to structured replies, and answered a READ with a simple one")
            self._end(handle, error, replies)
            return SIMPLE_REPLY.size
        if magic != NBD_STRUCTURED_REPLY_MAGIC:
            raise NbdError(f"the NBD server's reply has the wrong magic {magic:#x}")
        if len(data) < CHUNK.size:
            return 0
        _, flags, kind, handle, length = CHUNK.unpack_from(data)
        if handle not in self._in_flight:
            raise NbdError(f"the NBD server answered handle {handle}, which no request in flight has")
        done = bool(flags & NBD_REPLY_FLAG_DONE)
        taken = self._chunk_payload(kind, handle, length, data[CHUNK.size :], done)
        if taken is None:
            return 0
        if done and self._chunk is None:
            self._end(handle, 0, replies)
        return CHUNK.size + taken

    def _chunk_payload(self, kind: int, handle: int, length: int, data: memoryview, done: bool) -> int | None:
        """Take a chunk's payload, or of data only what it begins with; None if more must come."""
        if kind == ChunkType.NBD_REPLY_TYPE_NONE:
            if length or not done:
                raise NbdError("the NBD server sent an empty chunk that is not empty, or not the last")
            return 0
        if kind & NBD_REPLY_TYPE_ERROR_BIT:
            return self._error(kind, handle, length, data)
        answer = self._answers.get(handle)
        if not isinstance(answer, ReadAnswer):
            raise NbdError(f"the NBD server sent a chunk of type {kind} for what is no READ")
        if kind == ChunkType.NBD_REPLY_TYPE_OFFSET_DATA and length > OFFSET_DATA.size:
            if len(data) < OFFSET_DATA.size:
                return None
            self._left = length - OFFSET_DATA.size
            self._chunk = handle, answer.claim(OFFSET_DATA.unpack_from(data)[0], self._left), done
            return OFFSET_DATA.size
        if kind == ChunkType.NBD_REPLY_TYPE_OFFSET_HOLE and length == OFFSET_HOLE.size:
            if len(data) < OFFSET_HOLE.size:
                return None
            offset, size = OFFSET_HOLE.unpack_from(data)
            answer.put_zeroes(answer.claim(offset, size), size)
            return OFFSET_HOLE.size
        raise NbdError(f"the NBD server sent a chunk of type {kind} with {length} bytes, which does not exist")

    def _error(self, kind: int, handle: int, length: int, data: memoryview) -> int | None:
        """An error chunk; one of a kind that we do not know is an error all the same."""
        if not CHUNK_ERROR.size <= length <= MAX_ERROR_LENGTH:
            raise NbdError(f"the NBD server sent an error of {length} bytes")
        if len(data) < length:
            return None
        error, message = CHUNK_ERROR.unpack_from(data)
        place = CHUNK_ERROR.size + message
        needed = place + (OFFSET_DATA.size if kind == ChunkType.NBD_REPLY_TYPE_ERROR_OFFSET else 0)
        if not error or needed > length:
            raise NbdError("the NBD server sent an error that is malformed")
        answer = self._answers.setdefault(handle, Answer())
        if not answer.error:
            answer.error = error
            if needed > place:
                answer.error_offset = OFFSET_DATA.unpack_from(data, place)[0]
        return length

    def _data(self, data: memoryview, replies: list[Reply]) -> int:
        """Copy what has come of the data chunk under way; how many bytes that were."""
        assert self._chunk is not None
        handle, at, done = self._chunk
        part = data[: self._left]
        answer = self._answers[handle]
        assert isinstance(answer, ReadAnswer)
        if len(part):
            answer.put(at, part)
        self._left -= len(part)
        self._chunk = (handle, at + len(part), done) if self._left else None
        if done and not self._left:
            self._end(handle, 0, replies)
        return len(part)

    def _end(self, handle: int, error: int, replies: list[Reply]) -> None:
        """The last of a reply has come."""
        if self._in_flight.pop(handle, None) is None:
            raise NbdError(f"the NBD server answered handle {handle}, which no request in flight has")
        answer = self._answers.pop(handle, Answer())
        error = error or answer.error
        if not error and isinstance(answer, ReadAnswer) and not answer.complete:
            raise NbdError("the NBD server ended its reply to a READ before all of it had come")
        if answer.error_offset is not None and len(self.error_offsets) < STAGING:
            self.error_offsets[handle] = answer.error_offset
        replies.append((handle, error or NbdErrno.NBD_SUCCESS))
