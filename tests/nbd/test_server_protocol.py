"""Requests as the server finds them in the stream: the events, what is refused, and where payloads land."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.block_size import BlockSize
from testbed.nbd.replies import simple_reply
from testbed.nbd.server_protocol import (
    STAGING,
    Cache,
    Disconnect,
    Event,
    ExportChosen,
    Flush,
    Read,
    Refused,
    ServerProtocol,
    Trim,
    Violation,
    Write,
    WritePart,
    WriteZeroes,
)
from tests.nbd.support import FIXED, cuts, feed, feed_parts, go, reply, request, split

SIZE = 1 << 20
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
EPERM, EINVAL, ENOSPC = 1, 22, 28
LIMIT = 32 << 20


class Disk:
    """An export whose landings are its memory."""

    description = ""
    block_size = BlockSize()

    def __init__(self, size: int = SIZE, read_only: bool = False) -> None:
        self.size = size
        self.read_only = read_only
        self.memory = memoryview(bytearray(min(size, SIZE)))

    def landing(self, offset: int, length: int) -> memoryview:
        assert offset + length <= self.size
        return self.memory[offset : offset + length]


def chosen(disk: Disk) -> ServerProtocol:
    protocol = ServerProtocol({"": disk})
    assert list(feed(protocol, FIXED + go())) == [ExportChosen("")]
    return protocol


def events_of(data: bytes, disk: Disk | None = None) -> list[Event]:
    return list(feed(chosen(disk or Disk()), data))


def test_each_request() -> None:
    disk = Disk()
    data = (
        request(READ, 1, 4096, 8192)
        + request(WRITE, 2, 0, 4, b"abcd")
        + request(FLUSH, 3)
        + request(TRIM, 4, 512, SIZE - 512)
        + request(WRITE, 5, SIZE - 2, 2, b"yz", flags=1)
        + request(WRITE_ZEROES, 6, 0, SIZE)
        + request(WRITE_ZEROES, 7, 1, 2, flags=0x13)
        + request(CACHE, 8, 4096, 4096)
        + request(DISC, 9)
    )
    assert events_of(data, disk) == [
        Read(1, 4096, 8192),
        Write(2, 0, memoryview(b"abcd"), False),
        Flush(3),
        Trim(4, 512, SIZE - 512, False),
        Write(5, SIZE - 2, memoryview(b"yz"), True),
        WriteZeroes(6, 0, SIZE, fua=False, hole=True, fast=False),
        WriteZeroes(7, 1, 2, fua=True, hole=False, fast=True),
        Cache(8, 4096, 4096),
        Disconnect(),
    ]
    assert bytes(disk.memory[:4]) == b"abcd"
    assert bytes(disk.memory[-2:]) == b"yz"


def test_nothing_is_parsed_after_disconnect() -> None:
    protocol = chosen(Disk())
    assert list(feed(protocol, request(DISC, 1) + request(FLUSH, 2))) == [Disconnect()]
    assert list(feed(protocol, request(FLUSH, 3))) == []


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (request(READ, 7, SIZE - 1, 2), EINVAL),
        (request(READ, 7, 1 << 63, 1), EINVAL),
        (request(READ, 7, (1 << 64) - 1, 0xFFFFFFFF), EINVAL),
        (request(READ, 7, 0, 1, flags=2), EINVAL),
        (request(WRITE, 7, SIZE - 1, 2, b"xy"), ENOSPC),
        (request(WRITE, 7, 1 << 63, 0), ENOSPC),
        (request(WRITE, 7, 0, 300_000, bytes(300_000), flags=0x10), EINVAL),
        (request(TRIM, 7, SIZE, 1), EINVAL),
        (request(TRIM, 7, 0, 1, flags=0x8000), EINVAL),
        (request(FLUSH, 7, 1), EINVAL),
        (request(FLUSH, 7, 0, 1), EINVAL),
        (request(WRITE_ZEROES, 7, SIZE, 512), ENOSPC),
        (request(WRITE_ZEROES, 7, 0, 512, flags=4), EINVAL),
        (request(CACHE, 7, SIZE, 1), EINVAL),
        (request(CACHE, 7, 0, 1, flags=2), EINVAL),
        (request(BLOCK_STATUS, 7, 0, 1), EINVAL),  # no metadata context was selected
        (request(READ, 7, 0, 1, flags=4), EINVAL),  # NBD_CMD_FLAG_DF needs structured replies
        (request(0xFFFF, 7), EINVAL),
    ],
)
def test_refused_and_in_step_again(sent: bytes, error: int) -> None:
    disk = Disk()
    assert events_of(sent + request(FLUSH, 8), disk) == [Refused(7, error), Flush(8)]
    assert not any(disk.memory)


@pytest.mark.parametrize(
    ("sent", "event"),
    [
        (request(READ, 7, 0, 1), Read(7, 0, 1)),
        (request(READ, 7, 0, 1, flags=1), Refused(7, EINVAL)),  # FUA was not offered
        (request(WRITE, 7, 0, 1, b"x"), Refused(7, EPERM)),
        (request(WRITE, 7, SIZE, 1, b"x"), Refused(7, EPERM)),
        (request(TRIM, 7, 0, 1), Refused(7, EPERM)),
        (request(WRITE_ZEROES, 7, 0, 1), Refused(7, EPERM)),
        (request(CACHE, 7, 0, 1), Cache(7, 0, 1)),
        (request(FLUSH, 7), Flush(7)),
    ],
)
def test_read_only(sent: bytes, event: Event) -> None:
    disk = Disk(read_only=True)
    assert events_of(sent + request(FLUSH, 8), disk) == [event, Flush(8)]
    assert not any(disk.memory)


def test_the_length_limit() -> None:
    huge = Disk(1 << 40)
    sent = request(READ, 1, 0, LIMIT) + request(READ, 2, 0, LIMIT + 1) + request(TRIM, 3, 0, 0xFFFFFFFF)
    assert events_of(sent, huge) == [Read(1, 0, LIMIT), Refused(2, EINVAL), Trim(3, 0, 0xFFFFFFFF, False)]


def test_a_write_over_the_limit_is_read_to_its_end_and_refused() -> None:
    protocol = chosen(Disk(1 << 40))
    length = LIMIT + 1
    assert list(feed(protocol, request(WRITE, 1, 0, length))) == []
    while length:
        portion = min(length, sum(map(len, protocol.next_buffers())))
        length -= portion
        expected = [] if length else [Refused(1, EINVAL)]
        assert protocol.received(portion) == expected
    assert list(feed(protocol, request(FLUSH, 2))) == [Flush(2)]


def test_zero_length() -> None:
    sent = request(READ, 1, SIZE, 0) + request(WRITE, 2, 0, 0) + request(WRITE, 3, 0, 0, flags=2) + request(TRIM, 4)
    assert events_of(sent) == [
        Read(1, SIZE, 0),
        Write(2, 0, memoryview(b""), False),
        Refused(3, EINVAL),
        Trim(4, 0, 0, False),
    ]


def test_wrong_magic() -> None:
    events = events_of(request(FLUSH, 1) + bytes(28) + request(FLUSH, 2))
    assert events[0] == Flush(1)
    assert isinstance(events[1], Violation)
    assert len(events) == 2


def test_a_payload_lands_in_place() -> None:
    disk = Disk()
    protocol = chosen(disk)
    assert list(feed(protocol, request(WRITE, 1, 4096, 8192, b"ab"))) == []
    landing, staging = protocol.next_buffers()
    assert len(landing) == 8190
    landing[:] = b"c" * 8190
    assert bytes(disk.memory[4096:12288]) == b"ab" + b"c" * 8190
    staging[:28] = request(FLUSH, 2)
    assert protocol.received(8190 + 28) == [Write(1, 4096, disk.memory[4096:12288], False), Flush(2)]


class SmallLandings(Disk):
    """Gives no more memory than it has to."""

    def landing(self, offset: int, length: int) -> memoryview:
        return super().landing(offset, min(length, STAGING))


@pytest.mark.parametrize("length", [STAGING - 1, STAGING, STAGING + 1, 3 * STAGING, 3 * STAGING + 17])
@pytest.mark.parametrize("most", [1 << 30, 100_000, 4099])
def test_a_payload_that_has_too_little_memory_comes_in_parts(length: int, most: int) -> None:
    payload = (bytes(range(251)) * (length // 251 + 1))[:length]
    data = request(FLUSH, 1) + request(WRITE, 2, 512, length, payload, flags=1) + request(FLUSH, 3)
    first, *parts, last, after = feed(chosen(SmallLandings()), data, most)
    assert (first, after) == (Flush(1), Flush(3))
    assert isinstance(last, Write)
    assert (last.handle, last.fua) == (2, True)
    assert all(isinstance(part, WritePart) and len(part.data) == STAGING for part in parts)
    stored = bytearray(512)
    for part in (*parts, last):
        assert isinstance(part, (Write, WritePart))
        assert (part.handle, part.offset) == (2, len(stored))
        stored += part.data
    assert stored[512:] == payload


def test_the_reply() -> None:
    assert simple_reply(0xFFFFFFFFFFFFFFFF) == reply(0xFFFFFFFFFFFFFFFF)
    assert simple_reply(1, EINVAL) == reply(1, EINVAL)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    command = draw(st.sampled_from([READ, WRITE, FLUSH, TRIM, WRITE, 9]))
    length = draw(st.sampled_from([0, 1, 27, 28, 4096, 70_000]))
    offset = draw(st.sampled_from([0, 1, SIZE - 4096, SIZE - 1, SIZE, 1 << 63]))
    payload = draw(st.binary(min_size=1, max_size=9)) * length if command == WRITE else b""
    flags = draw(st.sampled_from([0, 1, 2]))
    return request(command, draw(st.integers(0, 5)), offset, length, payload[:length], flags=flags)


def frozen(events: list[Event]) -> list[object]:
    return [(*event[:2], bytes(event.data)) if isinstance(event, Write) else event for event in events]


@given(st.lists(requests(), max_size=12), st.sampled_from([b"", request(DISC, 0), b"\xff" * 60]), cuts)
def test_any_split_gives_the_same(parts: list[bytes], end: bytes, where: list[int]) -> None:
    data = b"".join([*parts, end])
    whole, pieces = Disk(), Disk()
    expected = events_of(data, whole)
    events = feed_parts(chosen(pieces), split(data, where))
    assert pieces.memory == whole.memory
    kinds = [(type(event), event[:2]) for event in events]
    assert kinds == [(type(event), event[:2]) for event in expected]
    assert frozen(events)[-1:] == frozen(expected)[-1:]


@given(st.lists(requests(), max_size=4), st.integers(1, 100))
def test_one_byte_or_a_few_at_a_time(parts: list[bytes], most: int) -> None:
    data = b"".join(part[:6000] if len(part) > 6000 else part for part in parts)
    protocol = chosen(Disk())
    kinds = [type(event) for event in feed(protocol, data, most)]
    assert kinds == [type(event) for event in events_of(data)]


@given(st.binary(max_size=300), st.lists(requests(), max_size=2))
def test_garbage_does_no_harm(garbage: bytes, before: list[bytes]) -> None:
    events = events_of(b"".join(before) + garbage)
    assert len(events) < 20


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFFFFFF)), max_size=20))
def test_whatever_is_asked_an_event_is_inside_the_export(asked: list[tuple[int, int, int]]) -> None:
    for (command, offset, length), read_only in product(asked, (False, True)):
        disk = Disk(read_only=read_only)
        for event in events_of(request(command, 1, offset, length), disk):
            if isinstance(event, Read | Trim):
                assert event.offset + event.length <= SIZE
            if read_only:
                assert not isinstance(event, Write | Trim)
