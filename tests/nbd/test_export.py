"""Exports: what is written is read, what is trimmed is zero and costs nothing."""

import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.nbd.export import Export, FileExport, MemoryExport

SIZE = 64 * 4096 + 100


@pytest.fixture(params=["memory", "file"])
def export(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Export]:
    opened: Export
    if request.param == "memory":
        opened = MemoryExport(SIZE)
    else:
        path = tmp_path / "disk"
        path.write_bytes(bytes(SIZE))
        opened = FileExport(path)
    yield opened
    opened.close()


def write(export: Export, offset: int, data: bytes) -> None:
    landing = export.landing(offset, len(data))
    landing[:] = data
    export.commit(offset, landing)


def test_against_a_model(export: Export) -> None:
    chance = random.Random(4)
    model = bytearray(SIZE)
    for _ in range(500):
        offset = chance.choice([0, 4096, chance.randrange(SIZE)])
        length = min(chance.choice([0, 1, 4096, 8192, SIZE]), SIZE - offset)
        match chance.randrange(4):
            case 0:
                data = chance.randbytes(length)
                write(export, offset, data)
                model[offset : offset + length] = data
            case 1:
                export.trim(offset, length)
                model[offset : offset + length] = bytes(length)
            case 2:
                export.flush()
            case _:
                assert bytes(export.read(offset, length)) == model[offset : offset + length]
    assert bytes(export.read(0, SIZE)) == model


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
