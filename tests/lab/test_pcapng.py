"""Blocks of a pcapng file, read back by scapy, and by Wireshark's own programs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from testbed.lab import pcapng
from testbed.lab.pcapng import INBOUND, OUTBOUND, Statistics

FRAME = bytes.fromhex("02000000000b02000000000a0800") + bytes(46)
TIME_NS = 1_700_000_000_123_456_789

packets = st.tuples(
    st.integers(0, (1 << 64) - 1), st.binary(max_size=70), st.integers(0, 70_000), st.text(max_size=9)
)


def write(path: Path, *blocks: bytes) -> Path:
    path.write_bytes(pcapng.section_header("test") + pcapng.interface_description("eth0", 70) + b"".join(blocks))
    return path


@given(st.lists(packets, max_size=8))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, each: list[tuple[int, bytes, int, str]]
) -> None:
    blocks = [
        pcapng.enhanced_packet(time_ns, data, length, INBOUND, comment) for time_ns, data, length, comment in each
    ]
    path = write(tmp_path_factory.mktemp("capture") / "some.pcapng", *blocks)
    with RawPcapNgReader(str(path)) as reader:
        read = list(reader)
    assert [data for data, _ in read] == [data for _, data, _, _ in each]
    for (_, about), (time_ns, _, length, comment) in zip(read, each, strict=True):
        assert (about.tshigh << 32 | about.tslow, about.tsresol, about.wirelen) == (time_ns, 10**9, length)
        assert [text.decode() for text in about.comments or []] == ([comment] if comment else [])
        assert (about.linktype, about.direction) == (pcapng.LINKTYPE_ETHERNET, INBOUND)


def test_every_block_is_whole_words_and_says_its_length_twice() -> None:
    for size in range(9):
        block = pcapng.enhanced_packet(TIME_NS, bytes(size), 60, OUTBOUND, "x" * size)
        assert len(block) % 4 == 0
        assert block[4:8] == block[-4:] == len(block).to_bytes(4, "little")


def test_the_last_block_tells_what_is_in_the_file(tmp_path: Path) -> None:
    end = pcapng.interface_statistics(TIME_NS, Statistics(written=3, lost=1 << 40))
    assert pcapng.read_statistics(write(tmp_path / "whole", end)) == Statistics(3, 1 << 40)
    assert pcapng.read_statistics(write(tmp_path / "killed", end[:-4])) is None
    assert pcapng.read_statistics(write(tmp_path / "no statistics")) is None
    (tmp_path / "empty").touch()
    assert pcapng.read_statistics(tmp_path / "empty") is None


@pytest.mark.program("capinfos")
@pytest.mark.program("tshark")
def test_wireshark_opens_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "some.pcapng",
        pcapng.enhanced_packet(TIME_NS, FRAME, len(FRAME), INBOUND),
        pcapng.enhanced_packet(TIME_NS + 1, FRAME[:20], len(FRAME), OUTBOUND, "dropped: für nichts"),
        pcapng.interface_statistics(TIME_NS, Statistics(2, 5)),
    )
    about = subprocess.run(["capinfos", path], capture_output=True, text=True, check=True).stdout
    assert "pcapng" in about
    assert "nanoseconds (9)" in about
    fields = ["frame.time_epoch", "frame.len", "frame.cap_len", "frame.packet_flags_direction", "frame.comment"]
    words = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|", *(f"-e{field}" for field in fields)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split("|") for line in lines] == [
        ["1700000000.123456789", "60", "60", "0x00000001", ""],
        ["1700000000.123456790", "60", "20", "0x00000002", "dropped: für nichts"],
    ]
