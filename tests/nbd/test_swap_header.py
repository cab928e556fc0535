"""Page 0 of a swap area, against the programs that write and read it."""

import struct
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.swap_header import PAGE_SIZE, SwapHeader, read_swap_header, swap_header

UUID = uuid.UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")


def area(path: Path, pages: int) -> Path:
    path.touch(mode=0o600)
    with path.open("r+b") as file:
        file.truncate(pages * PAGE_SIZE)
    return path


@pytest.mark.program("mkswap")
@pytest.mark.parametrize(("pages", "label"), [(10, ""), (131072, "swap"), (4096, "fifteen bytes..")])
def test_the_same_as_mkswap(tmp_path: Path, pages: int, label: str) -> None:
    path = area(tmp_path / "swap", pages)
    argv = ["mkswap", "--pagesize", "4096", "--uuid", str(UUID), *(["--label", label] if label else []), str(path)]
    subprocess.run(argv, check=True, capture_output=True)
    with path.open("rb") as file:
        assert file.read(PAGE_SIZE) == swap_header(pages, UUID.bytes, label)


@pytest.mark.program("blkid")
def test_blkid_knows_it(tmp_path: Path) -> None:
    path = area(tmp_path / "swap", 256)
    with path.open("r+b") as file:
        file.write(swap_header(256, UUID.bytes, "diskless"))
    argv = ["blkid", "--probe", "--output", "export", str(path)]
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    assert {"TYPE=swap", "VERSION=1", "LABEL=diskless", f"UUID={UUID}"} <= set(told)


@pytest.mark.program("file")
def test_file_knows_it(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    path.write_bytes(swap_header(256, UUID.bytes, "diskless"))
    told = subprocess.run(["file", "--brief", str(path)], check=True, capture_output=True, text=True).stdout
    assert "swap file" in told
    assert "version 1" in told
    assert "LABEL=diskless" in told
    assert f"UUID={UUID}" in told


@given(
    st.integers(10, 1 << 32),
    st.none() | st.binary(min_size=16, max_size=16).filter(any),
    st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=15),
)
def test_round_trip(pages: int, identity: bytes | None, label: str) -> None:
    page = swap_header(pages, identity, label)
    assert len(page) == PAGE_SIZE
    assert read_swap_header(page) == SwapHeader(pages - 1, 0, identity, label)


@pytest.mark.parametrize(
    ("pages", "identity", "label", "told"),
    [
        (9, None, "", "at least 10"),
        ((1 << 32) + 1, None, "", "at most 4294967296"),
        (10, b"short", "", "UUID has 16 bytes"),
        (10, None, "x" * 16, "at most 15 bytes"),
        (10, None, "ééééééé€", "at most 15 bytes"),
        (10, None, "a\0b", "none of them zero"),
    ],
)
def test_what_mkswap_would_not_make(pages: int, identity: bytes | None, label: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        swap_header(pages, identity, label)


def patched(format_: str, offset: int, *values: object) -> bytes:
    page = bytearray(swap_header(256, None))
    struct.pack_into(format_, page, offset, *values)
    return bytes(page)


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (b"", "signature"),
        (bytes(PAGE_SIZE), "signature"),
        (patched("10s", 4086, b"SWAP-SPACE"), "signature"),
        (swap_header(256, None)[:-1], "signature"),
        (patched("=L", 1024, 2), "unknown swap area version 2"),
        (patched("=L", 1024, 1 << 24), "-endian machine"),
        (patched("=L", 1028, 0), "empty"),
    ],
)
def test_what_swapon_would_not_take(page: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_swap_header(page)
