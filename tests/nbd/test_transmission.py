"""Structured replies, put together again as a client would."""

import errno
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.export import MemoryExport
from testbed.nbd.server_protocol import (
    BlockStatus,
    Cache,
    Flush,
    Read,
    Refused,
    Request,
    Trim,
    UnfragmentedRead,
    Write,
    WriteZeroes,
)
from testbed.nbd.transmission import SHORTEST_HOLE, ServerStatistics, Transmission
from tests.nbd.support import reply

PAGE = 4096
SIZE = 48 * PAGE
DATA, HOLE, ERROR, ERROR_OFFSET = 1, 2, 0x8001, 0x8002


class BadSector(MemoryExport):
    """One page cannot be read."""

    bad = 5 * PAGE

    def read(self, offset: int, length: int) -> memoryview:
        if offset <= self.bad < offset + length:
            raise OSError(errno.EIO, "a bad sector")
        return super().read(offset, length)


@dataclass
class Answer:
    """What the chunks of a reply add up to."""

    pieces: dict[int, bytes] = field(default_factory=dict)
    error: int = 0
    error_at: int | None = None
    kinds: list[int] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces[at] for at in sorted(self.pieces))


def parse(message: bytes, handle: int) -> Answer:
    answer = Answer()
    done = 0
    while message:
        assert not done, "a chunk after the last"
        magic, done, kind, of, length = struct.unpack_from(">LHHQL", message)
        assert (magic, of) == (0x668E33EF, handle)
        payload, message = message[20 : 20 + length], message[20 + length :]
        assert len(payload) == length
        answer.kinds.append(kind)
        if kind == DATA:
            answer.pieces[struct.unpack_from(">Q", payload)[0]] = payload[8:]
        elif kind == HOLE:
            at, size = struct.unpack(">QL", payload)
            answer.pieces[at] = bytes(size)
        elif kind in (ERROR, ERROR_OFFSET):
            answer.error, said = struct.unpack_from(">LH", payload)
            rest = payload[6 + said :]
            answer.error_at = struct.unpack(">Q", rest)[0] if kind == ERROR_OFFSET else None
    assert done == 1
    return answer


def ask(export: MemoryExport, request: Request) -> bytes:
    transmission = Transmission(export, ServerStatistics(), structured=True)
    return b"".join(transmission.answer(request))


@given(
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, PAGE)), max_size=6),
    st.integers(0, SIZE),
    st.integers(0, SIZE),
    st.booleans(),
)
def test_any_read_adds_up(written: list[tuple[int, int]], begin: int, end: int, whole: bool) -> None:
    export = MemoryExport(SIZE)
    for offset, length in written:
        export.write(offset, b"x" * min(length, SIZE - offset))
    begin, end = sorted((begin, end))
    kind = UnfragmentedRead if whole else Read
    answer = parse(ask(export, kind(7, begin, end - begin)), 7)
    assert answer.data == export.memory[begin:end]
    assert not answer.error
    if whole:
        assert len(answer.kinds) == 1
        assert HOLE not in answer.kinds


@pytest.mark.parametrize(
    ("length", "kinds"), [(0, [0]), (1, [DATA]), (SHORTEST_HOLE - 1, [DATA]), (SHORTEST_HOLE, [HOLE])]
)
def test_only_long_reads_are_looked_through_for_holes(length: int, kinds: list[int]) -> None:
    answer = parse(ask(MemoryExport(SIZE), Read(1, PAGE, length)), 1)
    assert answer.kinds == kinds
    assert answer.data == bytes(length)


def test_where_a_read_failed() -> None:
    export = BadSector(SIZE)
    for page in (3, 5, 7):
        export.write(page * PAGE, b"x")
    answer = parse(ask(export, Read(1, 0, SIZE)), 1)
    assert (answer.error, answer.error_at) == (5, 5 * PAGE)
    assert answer.data == bytes(export.memory[: 5 * PAGE]), "what came before is good, and nothing comes after"
    assert parse(ask(export, UnfragmentedRead(1, 0, SIZE)), 1).kinds == [ERROR]


@pytest.mark.parametrize(
    "request_",
    [
        Write(1, 0, memoryview(b"x"), True),
        Trim(1, 0, 1, True),
        WriteZeroes(1, 0, PAGE, True, True, True),
        Flush(1),
        Cache(1, 0, PAGE),
    ],
)
def test_what_has_no_payload_is_answered_simply(request_: Request) -> None:
    assert ask(MemoryExport(SIZE), request_) == reply(1)


def test_errors_say_what_they_are() -> None:
    message = ask(MemoryExport(SIZE), Refused(9, errno.EINVAL))
    assert parse(message, 9).error == errno.EINVAL
    assert b"Invalid argument" in message


@pytest.mark.parametrize(("one", "expected"), [(False, [(PAGE, 2), (PAGE, 0), (2 * PAGE, 2)]), (True, [(PAGE, 2)])])
def test_block_status(one: bool, expected: list[tuple[int, int]]) -> None:
    export = MemoryExport(SIZE)
    export.write(PAGE, b"x")
    message = ask(export, BlockStatus(3, 0, 4 * PAGE, one))
    magic, done, kind, handle, length = struct.unpack_from(">LHHQL", message)
    assert (magic, done, kind, handle, length) == (0x668E33EF, 1, 5, 3, 4 + 8 * len(expected))
    assert message[20:24] == b"\0\0\0\1"
    assert list(struct.iter_unpack(">LL", message[24:])) == expected
