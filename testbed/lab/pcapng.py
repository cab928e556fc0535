"""Blocks of a pcapng file, as bytes (draft-ietf-opsawg-pcapng), little-endian, with times in nanoseconds.

A file here is a section with one Ethernet interface: header, description, a block for each packet, and the interface's
statistics last. A reader that wants no more than how many packets there are finds that in the last block.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SECTION_HEADER, INTERFACE_DESCRIPTION = 0x0A0D0D0A, 1
INTERFACE_STATISTICS, ENHANCED_PACKET = 5, 6
BYTE_ORDER_MAGIC = 0x1A2B3C4D
LINKTYPE_ETHERNET = 1
SNAPLEN = 128
"""Bytes kept of each frame unless asked otherwise: all headers, and those of an NBD request."""
INBOUND, OUTBOUND = 1, 2
"""The lowest two bits of `epb_flags`."""

OPT_ENDOFOPT, OPT_COMMENT = 0, 1
SHB_USERAPPL, IF_NAME, IF_TSRESOL, EPB_FLAGS = 4, 2, 9, 2
ISB_IFRECV, ISB_OSDROP, ISB_USRDELIV = 4, 7, 8
NANOSECONDS = b"\x09"

_PACKET = struct.Struct("<IIIIIII")
_WORD = struct.Struct("<I")
_OPTION = struct.Struct("<HH")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Packets in a file, and those that were lost before they could be written."""

    written: int
    lost: int


def section_header(application: str) -> bytes:
    """The first block of a file; `application` is what writes it."""
    body = struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)
    return _block(SECTION_HEADER, body + options((SHB_USERAPPL, application.encode())))


def interface_description(name: str, snaplen: int) -> bytes:
    """The interface that all packets are of; at most `snaplen` bytes of each are kept."""
    body = struct.pack("<HHI", LINKTYPE_ETHERNET, 0, snaplen)
    return _block(INTERFACE_DESCRIPTION, body + options((IF_NAME, name.encode()), (IF_TSRESOL, NANOSECONDS)))


def enhanced_packet(time_ns: int, data: bytes | memoryview, length: int, direction: int, comment: str = "") -> bytes:
    """A packet of `length` bytes, as many of which were kept as `data` has. `time_ns` is from the epoch."""
    kept = len(data)
    tail = _after_data(-kept % 4, direction, comment)
    total = _PACKET.size + kept + len(tail) + _WORD.size
    head = _PACKET.pack(ENHANCED_PACKET, total, 0, time_ns >> 32, time_ns & 0xFFFFFFFF, kept, length)
    return b"".join((head, data, tail, _WORD.pack(total)))


def interface_statistics(time_ns: int, statistics: Statistics) -> bytes:
    """How many packets the interface had, how many were lost, and how many are in the file."""
    counts = (
        (ISB_IFRECV, statistics.written + statistics.lost),
        (ISB_OSDROP, statistics.lost),
        (ISB_USRDELIV, statistics.written),
    )
    body = struct.pack("<III", 0, time_ns >> 32, time_ns & 0xFFFFFFFF)
    return _block(INTERFACE_STATISTICS, body + options(*((code, struct.pack("<Q", count)) for code, count in counts)))


def read_statistics(path: Path) -> Statistics | None:
    """What the last block says; None if the file does not end with statistics, as when its writer was killed."""
    size = len(interface_statistics(0, Statistics(0, 0)))
    with path.open("rb") as file:
        if path.stat().st_size < size:
            return None
        file.seek(-size, 2)
        block = file.read()
    if struct.unpack_from("<II", block) != (INTERFACE_STATISTICS, size):
        return None
    counts = {code: count for code, _, count in struct.iter_unpack("<HHQ", block[20 : 20 + 3 * 12])}
    return Statistics(counts[ISB_USRDELIV], counts[ISB_OSDROP])


def options(*each: tuple[int, bytes]) -> bytes:
    """A list of options, with its end."""
    return b"".join(_OPTION.pack(code, len(value)) + _padded(value) for code, value in (*each, (OPT_ENDOFOPT, b"")))


@lru_cache(maxsize=4096)
def _after_data(padding: int, direction: int, comment: str) -> bytes:
    """What follows a packet's data: few of them differ, and most packets of a flood have the same."""
    flags = (EPB_FLAGS, _WORD.pack(direction))
    return bytes(padding) + options(flags, *([(OPT_COMMENT, comment.encode())] if comment else []))


def _block(kind: int, body: bytes) -> bytes:
    total = _WORD.pack(len(body) + 12)
    return _WORD.pack(kind) + total + body + total


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
