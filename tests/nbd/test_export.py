"""Exports: what is written is read, what is trimmed is zero and costs nothing."""

import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.nbd.constants import NBD_STATE_ZERO
from testbed.nbd.export import Export, FileExport, MemoryExport

SIZE = 64 * 4096 + 100


def memfd() -> int:
    return os.memfd_create("swap")


@pytest.fixture(params=["memory", "memfd", "file"])
def export(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Export]:
    opened: Export
    if request.param == "memory":
        opened = MemoryExport(SIZE)
    elif request.param == "memfd":
        opened = MemoryExport(SIZE, memfd())
    else:
        path = tmp_path / "disk"
        path.write_bytes(bytes(SIZE))
        opened = FileExport(path)
    yield opened
    opened.close()


def write(export: Export, offset: int, data: bytes) -> None:
    while data:
        landing = export.landing(offset, len(data))
        landing[:] = data[: len(landing)]
        export.commit(offset, landing)
        offset, data = offset + len(landing), data[len(landing) :]


def test_against_a_model(export: Export) -> None:
    chance = random.Random(4)
    model = bytearray(SIZE)
    for _ in range(500):
        offset = chance.choice([0, 4096, chance.randrange(SIZE)])
        length = min(chance.choice([0, 1, 4096, 8192, SIZE]), SIZE - offset)
        match chance.randrange(6):
            case 0:
                data = chance.randbytes(length)
                write(export, offset, data)
                model[offset : offset + length] = data
            case 1:
                export.trim(offset, length)
                model[offset : offset + length] = bytes(length)
            case 2:
                export.flush()
            case 3:
                export.write_zeroes(offset, length, hole=chance.random() < 0.5, fast=False)
                model[offset : offset + length] = bytes(length)
            case 4:
                assert zeroes_are_zero(export, model, offset, length)
            case _:
                assert bytes(export.read(offset, length)) == model[offset : offset + length]
    assert bytes(export.read(0, SIZE)) == model


def zeroes_are_zero(export: Export, model: bytearray, offset: int, length: int) -> bool:
    """What the extents call zero is, and none is empty or beyond what was asked for."""
    end = offset + length
    for part, flags in export.extents(offset, length):
        assert 0 < part <= end - offset
        if flags & NBD_STATE_ZERO and any(model[offset : offset + part]):
            return False
        offset += part
    return True


def test_extents_tell_data_from_zeroes(export: Export) -> None:
    export.write_zeroes(0, SIZE, hole=True, fast=False)
    export.write(8192, b"x" * 4096)
    extents = [(part, bool(flags & NBD_STATE_ZERO)) for part, flags in export.extents(0, SIZE)]
    if extents == [(SIZE, False)]:
        pytest.skip("this file system knows no holes")
    assert extents[:2] == [(8192, True), (4096, False)]
    assert extents[2][1], "a file system may keep an incomplete last page"


def test_a_memfd_outlives_the_export() -> None:
    fd = memfd()
    first = MemoryExport(SIZE, fd)
    first.write(100, b"precious")
    first.close()
    second = MemoryExport(SIZE, fd)
    assert bytes(second.read(100, 8)) == b"precious"
    assert os.fstat(fd).st_size == SIZE
    second.write(0, bytes(range(256)) * 512)
    blocks = os.fstat(fd).st_blocks
    second.trim(0, SIZE)
    assert os.fstat(fd).st_blocks < blocks
    os.close(fd)


def test_memory_makes_zeroes_fast() -> None:
    export = MemoryExport(SIZE)
    export.write(0, b"x" * 9000)
    export.write_zeroes(1, 8998, hole=False, fast=True)
    assert bytes(export.read(0, 9000)) == b"x" + bytes(8998) + b"x"


class NoFallocate(FileExport):
    """As on a file system that has no holes."""

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        return False


def test_a_file_without_holes_is_written_unless_that_had_to_be_fast(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (3 << 20))
    export = NoFallocate(path)
    with pytest.raises(OSError, match="not supported") as refused:
        export.write_zeroes(0, 4096, hole=True, fast=True)
    assert refused.value.errno == errno.EOPNOTSUPP
    export.write_zeroes(1, (3 << 20) - 2, hole=True, fast=False)
    export.close()
    assert path.read_bytes() == b"x" + bytes((3 << 20) - 2) + b"x"


def test_describe(export: Export) -> None:
    assert export.size == SIZE
    assert not export.read_only
    assert export.description


def test_memory_is_the_landing() -> None:
    export = MemoryExport(4096)
    export.landing(10, 3)[:] = b"abc"
    assert bytes(export.read(9, 5)) == b"\0abc\0"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_untouched_memory_costs_nothing_and_trimmed_memory_no_more() -> None:
    before = resident()
    export = MemoryExport(1 << 40)
    write(export, (1 << 40) - 4096, b"x" * 4096)
    assert resident() - before < 8 << 20
    write(export, 1 << 30, bytes(range(256)) * (64 << 12))
    assert resident() - before > 48 << 20
    export.trim((1 << 30) + 1, (64 << 20) - 2)
    assert resident() - before < 16 << 20
    assert bytes(export.read(1 << 30, 2)) == b"\0\0"
    assert bytes(export.read((1 << 30) + (64 << 20) - 1, 1)) == b"\xff"


def test_memory_of_no_size() -> None:
    with pytest.raises(ValueError, match="at least 1 byte"):
        MemoryExport(0)


def test_trim_punches_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (1 << 20))
    export = FileExport(path)
    blocks = path.stat().st_blocks
    export.trim(0, 1 << 19)
    export.flush()
    export.close()
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks < blocks


def test_a_read_only_file_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 4096)
    export = FileExport(path, read_only=True)
    assert export.read_only
    with pytest.raises(OSError, match="Bad file descriptor"):
        write(export, 0, b"y")
    with pytest.raises(OSError, match="Bad file descriptor"):
        export.trim(0, 4096)
    export.close()


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 8192)
    export = FileExport(path)
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="shorter") as caught:
        export.read(0, 8192)
    assert caught.value.errno == errno.EIO
    export.close()


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileExport(tmp_path / "nothing")
