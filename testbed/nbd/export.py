"""What a server exports: a range of bytes kept in memory or in a file.

A WRITE's payload is first put where `landing` says, then `commit` makes it part of the export. In memory the landing
*is* the export, and `read` hands out the memory itself: nothing is copied. Methods raise OSError when the storage
fails. Every connection's thread calls them at the same time; like a disk, an export gives no promise about overlapping
requests in flight.
"""

import ctypes
import errno
import mmap
import os
from abc import ABC, abstractmethod
from pathlib import Path

from testbed.size import format_size

MAP_NORESERVE = 0x4000
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2


class Export(ABC):
    """`size` in bytes. Offsets and lengths are in bytes and lie inside the export; who calls has checked that."""

    def __init__(self, size: int, read_only: bool, description: str) -> None:
        self.size = size
        self.read_only = read_only
        self.description = description

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

    def close(self) -> None:
        """Give back what the export holds; nothing else may be called afterwards."""
        return


class MemoryExport(Export):
    """Anonymous memory, zero until written; only pages that were written are resident. TRIM makes whole pages free
    again.

    Raises ValueError for a size of 0, and OSError when the address space has no room.
    """

    def __init__(self, size: int, *, read_only: bool = False) -> None:
        if size <= 0:
            raise ValueError("an export in memory needs a size of at least 1 byte")
        super().__init__(size, read_only, f"{format_size(size)} of memory")
        self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
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
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
            self.memory[offset:first] = bytes(first - offset)
            self.memory[last:end] = bytes(end - last)
        else:
            self.memory[offset:end] = bytes(length)


class FileExport(Export):
    """A file, or a block device, of fixed size; FLUSH is fdatasync, TRIM punches a hole where the file system can."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        """Raises OSError, its text one clear line, if the file cannot be used."""
        self._file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        super().__init__(os.lseek(self._file, 0, os.SEEK_END), read_only, f"file {Path(path).name}")

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file, length, offset)
        while len(data) < length:
            more = os.pread(self._file, length - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the file became shorter")
            data += more
        return data

    def landing(self, offset: int, length: int) -> memoryview:
        return memoryview(bytearray(length))

    def commit(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._file, data, offset)
            offset += written
            data = data[written:]

    def flush(self) -> None:
        os.fdatasync(self._file)

    def trim(self, offset: int, length: int) -> None:
        if not length:
            return
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(self._file, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            number = ctypes.get_errno()
            if number not in (errno.EOPNOTSUPP, errno.ENODEV, errno.ENOSYS):  # TRIM is advice
                raise OSError(number, os.strerror(number))

    def close(self) -> None:
        os.close(self._file)


_libc = ctypes.CDLL(None, use_errno=True)
