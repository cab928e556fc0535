"""Structured replies: chunks in any order and any split, holes, errors with a place, and what no server may send."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.client_structured import StructuredClientProtocol
from testbed.nbd.errors import NbdError
from tests.nbd.support import cuts, feed, feed_parts, reply, split

OFFSET, SIZE = 8192, 3 * 4096
DONE = 1
NONE, DATA, HOLE, STATUS, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 0x8001, 0x8002


def chunk(kind: int, payload: bytes = b"", *, flags: int = 0, handle: int = 1, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">LHHQL", 0x668E33EF, flags, kind, handle, size) + payload


def data(at: int, content: bytes, **more: int) -> bytes:
    return chunk(DATA, struct.pack(">Q", OFFSET + at) + content, **more)


def hole(at: int, size: int, **more: int) -> bytes:
    return chunk(HOLE, struct.pack(">QL", OFFSET + at, size), **more)


def error(number: int, at: int | None = None, message: bytes = b"", **more: int) -> bytes:
    payload = struct.pack(">LH", number, len(message)) + message
    if at is None:
        return chunk(ERROR, payload, **more)
    return chunk(ERROR_OFFSET, payload + struct.pack(">Q", OFFSET + at), **more)


class Reading:
    """A READ under way as handle 1, into three pages, and a FLUSH as handle 2."""

    def __init__(self) -> None:
        self.protocol = StructuredClientProtocol()
        self.pages = [memoryview(bytearray(b"?" * 4096)) for _ in range(3)]
        self.protocol.read(1, OFFSET, self.pages)
        self.protocol.flush(2)

    def take(self, stream: bytes) -> list[tuple[int, int]]:
        return list(feed(self.protocol, stream))

    @property
    def content(self) -> bytes:
        return b"".join(map(bytes, self.pages))


WHOLE = bytes(range(256)) * 48


@pytest.mark.parametrize(
    ("stream", "content"),
    [
        (data(0, WHOLE, flags=DONE), WHOLE),
        (data(0, WHOLE) + chunk(NONE, flags=DONE), WHOLE),
        (data(5000, WHOLE[5000:]) + data(0, WHOLE[:5000], flags=DONE), WHOLE),
        (hole(0, SIZE, flags=DONE), bytes(SIZE)),
        (hole(100, 9000) + data(9100, WHOLE[9100:]) + data(0, WHOLE[:100], flags=DONE), None),
    ],
)
def test_a_read_is_put_together(stream: bytes, content: bytes | None) -> None:
    reading = Reading()
    assert reading.take(stream + reply(2)) == [(1, 0), (2, 0)]
    assert reading.content == (content or WHOLE[:100] + bytes(9000) + WHOLE[9100:])
    assert reading.protocol.in_flight == 0


def test_replies_are_interleaved() -> None:
    reading = Reading()
    replies = reading.take(data(0, WHOLE[:10]) + chunk(NONE, flags=DONE, handle=2) + data(10, WHOLE[10:], flags=DONE))
    assert replies == [(2, 0), (1, 0)]
    assert reading.content == WHOLE


@pytest.mark.parametrize(
    ("stream", "number", "place"),
    [
        (error(5, flags=DONE), 5, None),
        (error(5, 4096, b"bad sector", flags=DONE), 5, OFFSET + 4096),
        (data(0, b"x") + error(28, 1) + error(5) + chunk(NONE, flags=DONE), 28, OFFSET + 1),
        (chunk(0x8123, struct.pack(">LH", 22, 3) + b"new", flags=DONE), 22, None),
        (error(9999, flags=DONE), 9999, None),
        (reply(1, 5), 5, None),
    ],
)
def test_errors(stream: bytes, number: int, place: int | None) -> None:
    reading = Reading()
    assert reading.take(stream) == [(1, number)]
    assert reading.protocol.error_offsets.get(1) == place


def test_other_requests_may_fail_in_chunks_too() -> None:
    assert Reading().take(error(5, handle=2, flags=DONE)) == [(2, 5)]


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (data(0, WHOLE[:100]) + chunk(NONE, flags=DONE), "before all of it"),
        (data(0, WHOLE[:100], flags=DONE), "before all of it"),
        (data(0, WHOLE[:100]) + data(99, b"xx"), "twice"),
        (data(10, WHOLE[:100]) + data(0, WHOLE[:11]), "twice"),
        (data(10, WHOLE[:100]) + hole(20, 5), "twice"),
        (data(-1, b"x"), "outside"),
        (data(SIZE, b"x"), "outside"),
        (hole(0, SIZE + 1), "outside"),
        (hole(0, 0), "outside"),
        (data(0, b""), "does not exist"),
        (chunk(HOLE, bytes(13)), "does not exist"),
        (chunk(STATUS, bytes(12)), "does not exist"),
        (chunk(77, bytes(12)), "does not exist"),
        (chunk(NONE), "not the last"),
        (chunk(NONE, b"x", flags=DONE), "not empty"),
        (data(0, b"x", handle=2), "no READ"),
        (data(0, b"x", handle=3), "handle 3"),
        (reply(1), "simple one"),
        (reply(3), "handle 3"),
        (reply(2) + reply(2), "handle 2"),
        (error(0, flags=DONE), "malformed"),
        (chunk(ERROR, struct.pack(">LH", 5, 9) + b"short"), "malformed"),
        (chunk(ERROR, bytes(5)), "of 5 bytes"),
        (chunk(ERROR, b"", length=1 << 30), "error of"),
        (b"\0" * 20, "wrong magic 0x0"),
    ],
)
def test_violations(stream: bytes, told: str) -> None:
    with pytest.raises(NbdError, match=told):
        Reading().take(stream)


def test_a_reply_in_crumbs_is_refused() -> None:
    protocol = StructuredClientProtocol()
    protocol.read(1, OFFSET, [memoryview(bytearray(1 << 20))])
    crumbs = b"".join(data(at, b"x") for at in range(0, 2 * 65538, 2))
    with pytest.raises(NbdError, match="too many pieces"):
        list(feed(protocol, crumbs))


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A READ's reply in pieces, some of them holes, in any order; and what it says."""
    edges = sorted({0, SIZE, *draw(st.lists(st.integers(0, SIZE), max_size=12))})
    content = bytearray(WHOLE)
    chunks = []
    for begin, end in pairwise(edges):
        if draw(st.booleans()):
            content[begin:end] = bytes(end - begin)
            chunks.append(hole(begin, end - begin))
        else:
            chunks.append(data(begin, WHOLE[begin:end]))
    chunks = draw(st.permutations(chunks))
    return b"".join(chunks) + chunk(NONE, flags=DONE), bytes(content)


@given(answers(), cuts)
def test_any_order_and_any_split_gives_the_same(answer: tuple[bytes, bytes], where: list[int]) -> None:
    stream, content = answer
    reading = Reading()
    assert feed_parts(reading.protocol, split(stream + reply(2), where)) == [(1, 0), (2, 0)]
    assert reading.content == content


@st.composite
def almost(draw: st.DrawFn) -> bytes:
    """Something like a reply: chunks with odd numbers, cut short or spoiled in places."""
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from([NONE, DATA, HOLE, STATUS, ERROR, ERROR_OFFSET, 9, 0x8FFF]))
        payload = draw(
            st.one_of(
                st.binary(max_size=40),
                st.builds(
                    lambda at, rest: struct.pack(">Q", at) + rest,
                    st.integers(OFFSET - 9, OFFSET + SIZE + 9),
                    st.binary(max_size=30),
                ),
            )
        )
        length = draw(st.sampled_from([None, None, None, 0, 8, 9, 12, 5000, 0xFFFFFFFF]))
        parts.append(chunk(kind, payload, flags=draw(st.integers(0, 3)), handle=draw(st.integers(1, 3)), length=length))
    stream = bytearray(b"".join(parts))
    for at in draw(st.lists(st.integers(0, len(stream) - 1), max_size=3)):
        stream[at] ^= draw(st.integers(1, 255))
    return bytes(stream)


@given(st.one_of(almost(), st.binary(max_size=400)), cuts)
def test_whatever_comes_is_taken_or_refused(stream: bytes, where: list[int]) -> None:
    reading = Reading()
    with contextlib.suppress(NbdError):
        assert len(feed_parts(reading.protocol, split(stream, where))) <= 2
    assert len(reading.content) == SIZE


def test_a_server_that_never_ends_its_reply_costs_no_memory() -> None:
    """One-byte chunks, every other byte first, then errors without end."""
    reading = Reading()
    scattered = b"".join(data(at, b"x") for at in [*range(0, SIZE, 2), *range(1, SIZE, 2)])
    assert reading.take(scattered) == []
    endless = error(5, 1, b"m" * 4000) * 100
    tracemalloc.start()
    for _ in range(50):
        assert reading.take(endless) == []
    assert tracemalloc.get_traced_memory()[0] < 1 << 20
    tracemalloc.stop()
    assert reading.take(chunk(NONE, flags=DONE)) == [(1, 5)]
