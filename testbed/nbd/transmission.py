"""The transmission phase on one export: a request is carried out, and its reply is built.

Storage fails with OSError, which becomes the spec's error of the same meaning. Nothing is sent here.
"""

import errno
import sys
from dataclasses import dataclass, fields

from testbed.nbd.constants import NBD_STATE_ZERO, NbdErrno
from testbed.nbd.export import Export
from testbed.nbd.replies import (
    Extent,
    block_status,
    error_chunk,
    none,
    offset_data,
    offset_hole,
    simple_data,
    simple_reply,
    undivided_data,
)
from testbed.nbd.server_handshake import ALLOCATION_ID
from testbed.nbd.server_protocol import (
    BlockStatus,
    Cache,
    Flush,
    Read,
    Refused,
    Request,
    Trim,
    UnfragmentedRead,
    Write,
    WriteZeroes,
)

Reply = list[bytes | memoryview]
"""The pieces of one message, or of the chunks that belong together."""

SHORTEST_HOLE = 8 << 10  # bytes; a shorter READ is sent in less time than it is looked through for holes

NBD_ERRORS = {
    errno.EPERM: NbdErrno.NBD_EPERM,
    errno.EACCES: NbdErrno.NBD_EPERM,
    errno.EROFS: NbdErrno.NBD_EPERM,
    errno.ENOMEM: NbdErrno.NBD_ENOMEM,
    errno.EINVAL: NbdErrno.NBD_EINVAL,
    errno.ENOSPC: NbdErrno.NBD_ENOSPC,
    errno.EDQUOT: NbdErrno.NBD_ENOSPC,
    errno.EFBIG: NbdErrno.NBD_ENOSPC,
    errno.EOVERFLOW: NbdErrno.NBD_EOVERFLOW,
    errno.EOPNOTSUPP: NbdErrno.NBD_ENOTSUP,
    errno.ESHUTDOWN: NbdErrno.NBD_ESHUTDOWN,
}  # every other errno is NBD_EIO


@dataclass(slots=True)
class ServerStatistics:
    """Counts since the server began: requests carried out, by kind, and `errors`, those answered with an error."""

    connections: int = 0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    trims: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    write_zeroes: int = 0
    caches: int = 0
    block_statuses: int = 0

    def add(self, other: "ServerStatistics") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Transmission:
    """Requests of one client on `export`, counted into `statistics`.

    A READ of at least one byte and less than `undivided` is answered by `data_header`, of `data_header_size` bytes, and
    its data.
    """

    def __init__(self, export: Export, statistics: ServerStatistics, structured: bool) -> None:
        self.export = export
        self.structured = structured
        self.undivided = SHORTEST_HOLE if structured else sys.maxsize
        self.data_header = undivided_data if structured else simple_data
        self.data_header_size = len(self.data_header(0, 0, 1))
        self._statistics = statistics

    def answer(self, request: Request) -> Reply:
        """Do what is asked, and say how it went."""
        statistics = self._statistics
        try:
            match request:
                case Read():
                    return self._read(request)
                case Write(_, offset, data, fua):
                    self.export.write(offset, data)
                    self._persist(fua)
                    statistics.writes += 1
                    statistics.bytes_written += len(data)
                case WriteZeroes(_, offset, length, fua, hole, fast):
                    self.export.write_zeroes(offset, length, hole=hole, fast=fast)
                    self._persist(fua)
                    statistics.write_zeroes += 1
                case Trim(_, offset, length, fua):
                    self.export.trim(offset, length)
                    self._persist(fua)
                    statistics.trims += 1
                case Flush():
                    self.export.flush()
                    statistics.flushes += 1
                case Cache(_, offset, length):
                    self.export.cache(offset, length)
                    statistics.caches += 1
                case BlockStatus():
                    return self._block_status(request)
                case Refused(handle, error):
                    return self.refuse(handle, error)
        except OSError as failure:
            return self.fail(request.handle, failure)
        return [simple_reply(request.handle)]

    def fail(self, handle: int, failure: OSError, offset: int | None = None) -> Reply:
        """The reply when storage failed, at this `offset` if that is known."""
        return self.refuse(handle, NBD_ERRORS.get(failure.errno or 0, NbdErrno.NBD_EIO), offset)

    def refuse(self, handle: int, error: int, offset: int | None = None) -> Reply:
        """The reply with an NBD_E... number."""
        self._statistics.errors += 1
        return [error_chunk(handle, error, offset) if self.structured else simple_reply(handle, error)]

    def _persist(self, fua: bool) -> None:
        if fua:
            self.export.flush()

    def _read(self, request: Read) -> Reply:
        handle, offset, length = request
        if self.structured and not length:
            reply: Reply = [none(handle)]
        elif length < self.undivided or isinstance(request, UnfragmentedRead):
            reply = [self.data_header(handle, offset, length), self.export.read(offset, length)]
        else:
            return self._read_extents(request)
        self._statistics.reads += 1
        self._statistics.bytes_read += length
        return reply

    def _read_extents(self, request: Read) -> Reply:
        """Data and holes in chunks of their own; after one that cannot be read comes no other."""
        handle, offset, length = request
        end = offset + length
        reply: Reply = []
        while offset < end:
            for part, flags in self._runs(offset, end - offset):
                done = offset + part == end
                if flags & NBD_STATE_ZERO:
                    reply.append(offset_hole(handle, offset, part, done=done))
                else:
                    try:
                        data = self.export.read(offset, part)
                    except OSError as failure:
                        return reply + self.fail(handle, failure, offset)
                    reply += offset_data(handle, offset, part, done=done), data
                offset += part
        self._statistics.reads += 1
        self._statistics.bytes_read += length
        return reply

    def _runs(self, offset: int, length: int) -> list[Extent]:
        """The extents to read, where one chunk serves if none of them is zero."""
        extents = self.export.extents(offset, length)
        if any(flags & NBD_STATE_ZERO for _, flags in extents):
            return extents
        return [(sum(part for part, _ in extents), 0)]

    def _block_status(self, request: BlockStatus) -> Reply:
        handle, offset, length, one = request
        extents = self.export.extents(offset, length)
        self._statistics.block_statuses += 1
        return [block_status(handle, ALLOCATION_ID, extents[:1] if one else extents)]
