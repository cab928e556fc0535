"""What a server exports: a range of bytes kept in memory or in a file.

A WRITE's payload is first put where `landing` says, a long one in parts, then `commit` makes it part of the export. In
memory the landing *is* the export, and `read` hands out the memory itself: nothing is copied. Methods raise OSError
when the storage fails. Every connection's thread calls them at the same time; like a disk, an export gives no promise
about overlapping requests in flight.
"""

import ctypes
import errno
import mmap
import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path

from testbed.nbd.block_size import DEFAULT_BLOCK_SIZE, BlockSize
from testbed.nbd.constants import NBD_STATE_HOLE, NBD_STATE_ZERO
from testbed.nbd.payload_memory import PayloadMemory
from testbed.nbd.replies import Extent
from testbed.size import format_size

MAP_NORESERVE = 0x4000
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_ZERO_RANGE = 16
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENODEV, errno.ENOSYS)

MAX_EXTENTS = 1024  # told at once
MAX_SCANNED = 32 << 20  # bytes of memory looked through at once
ZEROES = bytes(1 << 20)
LARGEST_LANDING = 256 << 10  # bytes of a payload on its way to a file


class Export(ABC):
    """`size` in bytes. Offsets and lengths are in bytes and lie inside the export; who calls has checked that."""

    def __init__(
        self, size: int, read_only: bool, description: str, block_size: BlockSize = DEFAULT_BLOCK_SIZE
    ) -> None:
        self.size = size
        self.read_only = read_only
        self.description = description
        self.block_size = block_size

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes | memoryview: ...

    @abstractmethod
    def landing(self, offset: int, length: int) -> memoryview: ...

    @abstractmethod
    def commit(self, offset: int, data: memoryview) -> None: ...

    @abstractmethod
    def flush(self) -> None: ...

    @abstractmethod
    def trim(self, offset: int, length: int) -> None: ...

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Make bytes from anywhere part of the export."""
        data = memoryview(data)
        while data:
            landing = self.landing(offset, len(data))
            landing[:] = data[: len(landing)]
            self.commit(offset, landing)
            offset, data = offset + len(landing), data[len(landing) :]

    def write_zeroes(self, offset: int, length: int, *, hole: bool, fast: bool) -> None:
        """Make the bytes zero, as a `hole` if that is permitted and possible. Raises OSError (ENOTSUP) if it has to be
        `fast` and would take as long as a write.
        """
        if fast:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        for at in range(offset, offset + length, len(ZEROES)):
            self.write(at, ZEROES[: offset + length - at])

    def cache(self, offset: int, length: int) -> None:
        """A READ of these bytes may follow soon. Advice, so nothing need be done."""
        return

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What the bytes from `offset` on are, for `length` bytes or less, but never for none."""
        return [(length, 0)]

    def close(self) -> None:
        """Give back what the export holds; nothing else may be called afterwards."""
        return


class MemoryExport(Export):
    """Memory, zero until written; only pages that were written are resident. TRIM makes whole pages free again.

    Anonymous, or with `fd` the beginning of that memfd, which then grows to `size` and keeps the data when the export
    is closed; the descriptor stays the caller's. Raises ValueError for a size of 0, and OSError when the address space
    has no room.
    """

    def __init__(
        self,
        size: int,
        fd: int | None = None,
        *,
        read_only: bool = False,
        block_size: BlockSize = DEFAULT_BLOCK_SIZE,
    ) -> None:
        if size <= 0:
            raise ValueError("an export in memory needs a size of at least 1 byte")
        super().__init__(size, read_only, f"{format_size(size)} of memory", block_size)
        if fd is None:
            self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        else:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED | MAP_NORESERVE)
        self._forget = mmap.MADV_DONTNEED if fd is None else mmap.MADV_REMOVE
        self.memory = memoryview(self._map)

    def read(self, offset: int, length: int) -> memoryview:
        return self.memory[offset : offset + length]

    def landing(self, offset: int, length: int) -> memoryview:
        return self.memory[offset : offset + length]

    def commit(self, offset: int, data: memoryview) -> None:
        return

    def flush(self) -> None:
        return

    def trim(self, offset: int, length: int) -> None:
        end = offset + length
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end if end == self.size else end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self._map.madvise(self._forget, first, last - first)
            self._zero(offset, first)
            self._zero(last, end)
        else:
            self._zero(offset, end)

    def write_zeroes(self, offset: int, length: int, *, hole: bool, fast: bool) -> None:
        """Always faster than a write, since nothing has to be received."""
        if hole:
            self.trim(offset, length)
        else:
            self._zero(offset, offset + length)

    def _zero(self, offset: int, end: int) -> None:
        for at in range(offset, end, len(ZEROES)):
            part = min(end - at, len(ZEROES))
            self.memory[at : at + part] = ZEROES[:part]

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Pages that are zero, and others; which of them are resident nobody can tell."""
        end = offset + min(length, MAX_SCANNED)
        found: list[Extent] = []
        while offset < end and len(found) < MAX_EXTENTS:
            part = min(end, (offset // mmap.PAGESIZE + 1) * mmap.PAGESIZE) - offset
            zero = bytes(self.memory[offset : offset + part]) == ZEROES[:part]
            _append(found, part, NBD_STATE_ZERO if zero else 0)
            offset += part
        return found


def _append(extents: list[Extent], length: int, flags: int) -> None:
    """One more, or the last one longer."""
    if extents and extents[-1][1] == flags:
        length += extents.pop()[0]
    extents.append((length, flags))


class FileExport(Export):
    """A file, or a block device, of fixed size; FLUSH is fdatasync, TRIM punches a hole where the file system can."""

    def __init__(
        self,
        path: str | Path,
        *,
        read_only: bool = False,
        block_size: BlockSize = DEFAULT_BLOCK_SIZE,
        memory: PayloadMemory | None = None,
    ) -> None:
        """What is read passes through `memory`. Raises OSError, its text one clear line, if the file cannot be used."""
        self._file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        if stat.S_ISCHR(os.fstat(self._file).st_mode):
            os.close(self._file)
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
        size = os.lseek(self._file, 0, os.SEEK_END)
        super().__init__(size, read_only, f"file {Path(path).name}", block_size)
        self._read_memory = (memory or PayloadMemory(longest=block_size.maximum)).buffer

    def read(self, offset: int, length: int) -> memoryview:
        data = self._read_memory(length)
        done = 0
        while done < length:
            count = os.preadv(self._file, [data[done:]], offset + done)
            if not count:
                raise OSError(errno.EIO, "the file became shorter")
            done += count
        return data

    def landing(self, offset: int, length: int) -> memoryview:
        """Little memory, which needs no turn: a client that stalls in a payload keeps nobody waiting."""
        return memoryview(bytearray(min(length, LARGEST_LANDING)))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.commit(offset, memoryview(data))

    def commit(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._file, data, offset)
            offset += written
            data = data[written:]

    def flush(self) -> None:
        os.fdatasync(self._file)

    def trim(self, offset: int, length: int) -> None:
        self._allocate(FALLOC_FL_PUNCH_HOLE, offset, length)  # TRIM is advice: it matters not if the file cannot

    def write_zeroes(self, offset: int, length: int, *, hole: bool, fast: bool) -> None:
        mode = FALLOC_FL_PUNCH_HOLE if hole else FALLOC_FL_ZERO_RANGE
        if not self._allocate(mode, offset, length):
            super().write_zeroes(offset, length, hole=hole, fast=fast)

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        """fallocate(2); False if this kind of file cannot."""
        if not length:
            return True
        if not _libc.fallocate(
            self._file, mode | FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)
        ):
            return True
        number = ctypes.get_errno()
        if number not in NOT_SUPPORTED:
            raise OSError(number, os.strerror(number))
        return False

    def cache(self, offset: int, length: int) -> None:
        """The kernel reads ahead, if it likes."""
        os.posix_fadvise(self._file, offset, length, os.POSIX_FADV_WILLNEED)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Data and holes, where the file system tells them apart."""
        end = offset + length
        found: list[Extent] = []
        while offset < end and len(found) < MAX_EXTENTS:
            data = min(self._seek(offset, os.SEEK_DATA, end), end)
            if data > offset:
                found.append((data - offset, NBD_STATE_HOLE | NBD_STATE_ZERO))
            if data < end:
                offset = min(self._seek(data, os.SEEK_HOLE, end), end)
                found.append((offset - data, 0))
            else:
                offset = end
        return found

    def _seek(self, offset: int, whence: int, end: int) -> int:
        """lseek(2), which moves no position that anybody uses; `end` where there is nothing more to find."""
        try:
            return os.lseek(self._file, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            if error.errno == errno.EINVAL:  # a file that does not know its holes is all data
                return offset if whence == os.SEEK_DATA else end
            raise

    def close(self) -> None:
        os.close(self._file)


_libc = ctypes.CDLL(None, use_errno=True)
