"""What several of the tests need: the wire, written out independently of the code under test, and ways to feed it."""

import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from hypothesis import strategies as st

GREETING = b"NBDMAGIC" + b"IHAVEOPT" + b"\x00\x03"
FIXED = struct.pack(">L", 1)
FIXED_NO_ZEROES = struct.pack(">L", 3)
ERROR = 0x80000000

E_co = TypeVar("E_co", covariant=True)


class Receiver(Protocol[E_co]):
    def next_buffers(self) -> list[memoryview]: ...
    def received(self, count: int) -> Sequence[E_co]: ...


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return b"IHAVEOPT" + struct.pack(">LL", number, len(data) if length is None else length) + data


def go(name: bytes = b"", *requests: int, number: int = 7) -> bytes:
    data = struct.pack(">L", len(name)) + name + struct.pack(f">H{len(requests)}H", len(requests), *requests)
    return option(number, data)


def option_reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QLLL", 0x0003E889045565A9, number, kind, len(data)) + data


def info_export(size: int, flags: int) -> bytes:
    return struct.pack(">HQH", 0, size, flags)


def request(
    command: int, handle: int, offset: int = 0, length: int = 0, payload: bytes = b"", *, flags: int = 0
) -> bytes:
    return struct.pack(">LHHQQL", 0x25609513, flags, command, handle, offset, length) + payload


def reply(handle: int, error: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">LLQ", 0x67446698, error, handle) + payload


def feed(receiver: Receiver[E_co], data: bytes, most: int = 1 << 30) -> Iterator[E_co]:
    """As a socket would, with at most `most` bytes in one go."""
    while data:
        taken = 0
        for buffer in receiver.next_buffers():
            part = data[taken : min(taken + len(buffer), most)]
            buffer[: len(part)] = part
            taken += len(part)
        assert taken, "the protocol offered no room"
        data = data[taken:]
        yield from receiver.received(taken)


def feed_parts(receiver: Receiver[E_co], parts: Iterable[bytes]) -> list[E_co]:
    return [event for part in parts for event in feed(receiver, part)]


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


cuts = st.lists(st.integers(min_value=0, max_value=1 << 20), max_size=30)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


def exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer at the end of the stream."""
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data
