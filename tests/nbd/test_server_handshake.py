"""What the server answers while options are haggled, byte by byte, and that hostile clients get nowhere."""

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.block_size import DEFAULT_BLOCK_SIZE, BlockSize
from testbed.nbd.server_protocol import Disconnect, ExportChosen, Flush, ServerProtocol, Violation
from tests.nbd.support import (
    ERROR,
    FIXED,
    FIXED_NO_ZEROES,
    GREETING,
    cuts,
    feed,
    feed_parts,
    go,
    info_export,
    option,
    option_reply,
    request,
    split,
)

CACHE, FAST_ZERO = 1 << 10, 1 << 11
WRITABLE = 1 | 4 | 8 | 32 | 64 | 256 | CACHE | FAST_ZERO  # HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN
READ_ONLY = 1 | 2 | 4 | 256 | CACHE


@dataclass
class Disk:
    size: int = 1 << 20
    read_only: bool = False
    description: str = ""
    block_size: BlockSize = DEFAULT_BLOCK_SIZE

    def landing(self, offset: int, length: int) -> memoryview:
        return memoryview(bytearray(length))


EXPORTS = {"swap": Disk(), "rö": Disk(4096, True, "a small one")}


def converse(data: bytes) -> tuple[list[object], bytes]:
    """The events, and what the server says after its greeting."""
    protocol = ServerProtocol(EXPORTS)
    assert protocol.data_to_send() == GREETING
    events: list[object] = list(feed(protocol, data))
    return events, protocol.data_to_send()


def test_go() -> None:
    events, answer = converse(FIXED_NO_ZEROES + go(b"swap"))
    assert events == [ExportChosen("swap")]
    assert answer == option_reply(7, 3, info_export(1 << 20, WRITABLE)) + option_reply(7, 1)


def test_go_with_everything_asked() -> None:
    events, answer = converse(FIXED_NO_ZEROES + go("rö".encode(), 1, 2, 3, 99))
    assert events == [ExportChosen("rö")]
    assert answer == (
        option_reply(7, 3, info_export(4096, READ_ONLY))
        + option_reply(7, 3, b"\0\1" + "rö".encode())
        + option_reply(7, 3, b"\0\2a small one")
        + option_reply(7, 3, struct.pack(">HLLL", 3, 1, 4096, 32 << 20))
        + option_reply(7, 1)
    )


def test_the_empty_name_is_the_first_export_and_says_so() -> None:
    events, answer = converse(FIXED + go(b"", 1))
    assert events == [ExportChosen("swap")]
    assert option_reply(7, 3, b"\0\1swap") in answer


def test_a_description_only_where_there_is_one() -> None:
    _, answer = converse(FIXED + go(b"swap", 2))
    assert answer == option_reply(7, 3, info_export(1 << 20, WRITABLE)) + option_reply(7, 1)


def test_info_leaves_the_client_haggling() -> None:
    events, answer = converse(FIXED + go(b"swap", number=6) + go(b"swap"))
    assert events == [ExportChosen("swap")]
    granted = [option_reply(n, 3, info_export(1 << 20, WRITABLE)) + option_reply(n, 1) for n in (6, 7)]
    assert answer == b"".join(granted)


@pytest.mark.parametrize(("flags", "zeroes"), [(FIXED, 124), (FIXED_NO_ZEROES, 0), (bytes(4), 124)])
def test_export_name(flags: bytes, zeroes: int) -> None:
    events, answer = converse(flags + option(1, b"swap"))
    assert events == [ExportChosen("swap")]
    assert answer == struct.pack(">QH", 1 << 20, WRITABLE) + bytes(zeroes)


def test_requests_may_follow_at_once() -> None:
    events, _ = converse(FIXED + option(1, b"swap") + request(3, 5))
    assert events == [ExportChosen("swap"), Flush(5)]


def test_list() -> None:
    events, answer = converse(FIXED + option(3))
    assert events == []
    first, second = (struct.pack(">L", len(name)) + name for name in (b"swap", "rö".encode()))
    expected = option_reply(3, 2, first) + option_reply(3, 2, second + b"a small one") + option_reply(3, 1)
    assert answer == expected


def test_abort() -> None:
    events, answer = converse(FIXED + option(2) + b"anything")
    assert events == [Disconnect()]
    assert answer == option_reply(2, 1)


def kind_of(answer: bytes) -> tuple[int, int]:
    magic, number, kind, length = struct.unpack_from(">QLLL", answer)
    assert magic == 0x0003E889045565A9
    assert len(answer) == 20 + length, "one reply, and nothing else"
    return number, kind - ERROR


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (option(5), 2),  # NBD_OPT_STARTTLS: no certificates
        (option(8, b"x"), 3),
        (option(9, struct.pack(">LL", 0, 0)), 3),  # no structured replies yet
        (option(4), 1),  # NBD_OPT_PEEK_EXPORT, which was withdrawn
        (option(4242, b"what?"), 1),
        (option(3, b"x"), 3),
        (option(7), 3),
        (option(7, b"\0\0\0\x05swap\0\0"), 3),
        (option(7, b"\0\0\0\x04swap\0\1"), 3),
        (option(7, b"\0\0\0\x04swap\0\0\0\0"), 3),
        (option(6, b"\xff\xff\xff\xffswap\0\0"), 3),
        (go(b"nothing"), 6),
        (go(b"nothing", number=6), 6),
        (go(b"\xff\xfe"), 6),
        (option(7, b"\xff" * 8192), 3),
        (option(7, bytes(8193)), 9),
        (option(77, bytes(1 << 20)), 9),
    ],
)
def test_refusals_leave_the_client_haggling(sent: bytes, error: int) -> None:
    number = struct.unpack_from(">L", sent, 8)[0]
    events, answer = converse(FIXED + sent)
    assert events == []
    assert kind_of(answer) == (number, error)
    events, _ = converse(FIXED + sent + go())
    assert events == [ExportChosen("swap")]


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\0\0\x80",  # an unknown client flag
        b"GET / HTTP/1.1\r\n\r\n",
        FIXED + b"NBDMAGIC" + bytes(8),
        FIXED + option(1, b"nothing"),
        FIXED + option(1, length=8193),
        FIXED + option(7, length=(1 << 20) + 1),
        FIXED + option(3, length=0xFFFFFFFF),
        bytes(4) + option(3),  # replies to options exist only in the fixed newstyle handshake
        FIXED + option(99) * 64,
    ],
)
def test_clients_that_are_hung_up_on(sent: bytes) -> None:
    events, _ = converse(sent + go())
    assert len(events) == 1
    assert isinstance(events[0], Violation)
    assert "\n" not in events[0].reason


def test_what_a_client_can_make_the_server_say_is_bounded() -> None:
    protocol = ServerProtocol(EXPORTS)
    list(feed(protocol, FIXED + option(3) * 100_000))
    assert len(protocol.data_to_send()) < 64 * 1024


def test_a_server_without_exports_knows_none() -> None:
    protocol = ServerProtocol({})
    protocol.data_to_send()
    assert list(feed(protocol, FIXED + go())) == []
    assert kind_of(protocol.data_to_send()) == (7, 6)


conversations = st.lists(
    st.sampled_from([option(3), option(98, b"huh"), go(b"no"), go(b"swap", 1, 3, number=6), option(99, bytes(9000))]),
    max_size=8,
).flatmap(lambda parts: st.sampled_from([go(), go("rö".encode(), 2), option(1), option(2), b"garbage" * 9]).map(
    lambda end: b"".join([FIXED, *parts, end])
))


@given(conversations, cuts)
def test_any_split_gives_the_same(data: bytes, where: list[int]) -> None:
    protocol = ServerProtocol(EXPORTS)
    protocol.data_to_send()
    assert (feed_parts(protocol, split(data, where)), protocol.data_to_send()) == converse(data)


@given(st.binary(max_size=200), st.sampled_from([b"", FIXED, FIXED + b"IHAVEOPT", FIXED + option(7, length=40)]))
def test_garbage_does_no_harm(garbage: bytes, before: bytes) -> None:
    events, answer = converse(before + garbage)
    assert len(events) <= 100
    assert len(answer) < 100_000
