"""Where the fuzzer starts: well-formed conversations, of which it makes others. The first byte sets the portions,
and what a handshake wants.
"""

import struct

from scripts.fuzzing.targets import NEGOTIATION

PORTIONS = b"\xfc\xfd\xfe\xff"


def _option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">LL", number, len(data)) + data


def _request(command: int, flags: int, offset: int, length: int, payload: bytes = b"") -> bytes:
    return struct.pack(">LHHQQL", 0x25609513, flags, command, 7, offset, length) + payload


def _option_reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QLLL", 0x0003E889045565A9, number, kind, len(data)) + data


def _reply(handle: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">LLQ", 0x67446698, error, handle) + data


def _chunk(kind: int, handle: int, payload: bytes = b"", *, done: int = 1) -> bytes:
    return struct.pack(">LHHQL", 0x668E33EF, done, kind, handle, len(payload)) + payload


_FIXED = struct.pack(">L", 3)
_GREETING = b"NBDMAGICIHAVEOPT\0\3"

SEEDS = {
    "server-handshake": [
        NEGOTIATION,
        *(_FIXED + _option(number) for number in (1, 2, 3, 5, 8, 99)),
        _FIXED + _option(1, b"swap") + _request(3, 0, 0, 0),
    ],
    "server-transmission": [
        _request(0, 0, 0, 4096) + _request(1, 1, 512, 9, b"some data") + _request(3, 0, 0, 0),
        _request(4, 1, 0, 4096) + _request(6, 0x13, 4096, 8192) + _request(5, 0, 0, 1),
        _request(7, 8, 0, 1 << 20) + _request(0, 4, 0, 512) + _request(2, 0, 0, 0),
        _request(1, 0, 0, 1 << 31, bytes(100)),
    ],
    "client-handshake": [
        _GREETING + _option_reply(7, 3, struct.pack(">HQH", 0, 1 << 20, 1)) + _option_reply(7, 1),
        _GREETING + _option_reply(3, 2, struct.pack(">L", 4) + b"swap") + _option_reply(3, 1),
        _GREETING + _option_reply(7, (1 << 31) + 6, b"no such export"),
        _GREETING + _option_reply(5, 1) + _option_reply(8, 1) + _option_reply(7, 3, struct.pack(">HQH", 0, 1 << 20, 1)),
        b"NBDMAGIC" + struct.pack(">QQL", 0x00420281861253, 1 << 20, 1) + bytes(124),
    ],
    "client-replies": [
        _reply(0, 0, bytes(512)) + _reply(1, 5) + _reply(4),
        _reply(5) + _reply(3, 0, bytes(512)) + _reply(2, 0, bytes(512)),
    ],
    "client-structured-replies": [
        _chunk(1, 0, struct.pack(">Q", 0) + bytes(512)) + _reply(4) + _chunk(2, 1, struct.pack(">QL", 512, 512)),
        _chunk(1, 2, struct.pack(">Q", 1280) + bytes(256), done=0)
        + _chunk(2, 3, struct.pack(">QL", 1536, 512), done=0)
        + _chunk(1, 2, struct.pack(">Q", 1024) + bytes(256))
        + _chunk(0, 3),
        _chunk(0x8001, 5, struct.pack(">LH", 5, 4) + b"late")
        + _chunk(0x8002, 0, struct.pack(">LH", 28, 0) + struct.pack(">Q", 100)),
    ],
}
"""Inputs by the name of their target."""
