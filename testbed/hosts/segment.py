"""Cuts a GSO frame of TCP over IPv4 into wire frames, for when the emulated NIC lost some of its segments."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

ETHERNET, IPV4 = 14, 20
TCP_FIN, TCP_PSH = 0x01, 0x08


def kept_segments(frame: bytes, gso_size: int, kept: Sequence[bool]) -> list[bytes]:
    """The segments of `frame` that are to go on, each a whole Ethernet frame with its checksums complete.

    `gso_size` is the bytes of data in each segment but the last; `kept` has one entry for each segment.
    """
    header_end = ETHERNET + IPV4 + (frame[ETHERNET + IPV4 + 12] >> 4) * 4
    total = struct.unpack_from(">H", frame, ETHERNET + 2)[0]
    payload = frame[header_end : ETHERNET + total]
    return [
        _segment(frame[:header_end], payload[number * gso_size : (number + 1) * gso_size], number, gso_size, kept)
        for number, wanted in enumerate(kept)
        if wanted
    ]


def _segment(header: bytes, data: bytes, number: int, gso_size: int, kept: Sequence[bool]) -> bytes:
    ethernet, ip, tcp = header[:ETHERNET], bytearray(header[ETHERNET:][:IPV4]), bytearray(header[ETHERNET + IPV4 :])
    identification = struct.unpack_from(">H", ip, 4)[0] + number
    struct.pack_into(">HH", ip, 2, len(ip) + len(tcp) + len(data), identification & 0xFFFF)
    struct.pack_into(">H", ip, 10, 0)
    struct.pack_into(">H", ip, 10, internet_checksum(bytes(ip)))
    sequence = struct.unpack_from(">I", tcp, 4)[0] + number * gso_size
    struct.pack_into(">I", tcp, 4, sequence & 0xFFFFFFFF)
    if number != len(kept) - 1:
        tcp[13] &= ~(TCP_FIN | TCP_PSH)
    struct.pack_into(">H", tcp, 16, 0)
    pseudo = bytes(ip[12:20]) + struct.pack(">BBH", 0, ip[9], len(tcp) + len(data))
    struct.pack_into(">H", tcp, 16, internet_checksum(pseudo + bytes(tcp) + data))
    return ethernet + bytes(ip) + bytes(tcp) + data


def internet_checksum(data: bytes) -> int:
    """The Internet checksum of `data` (RFC 1071)."""
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2")
    total = int(words.sum(dtype=np.uint64))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
