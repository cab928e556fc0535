"""What the server answers while options are haggled, byte by byte, and that hostile clients get nowhere."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.block_size import DEFAULT_BLOCK_SIZE, BlockSize
from testbed.nbd.server_handshake import TlsMode
from testbed.nbd.server_protocol import (
    BlockStatus,
    Disconnect,
    ExportChosen,
    Flush,
    Refused,
    ServerProtocol,
    StartTls,
    UnfragmentedRead,
    Violation,
)
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


def converse(
    data: bytes, exports: Mapping[str, Disk] = EXPORTS, tls: TlsMode = TlsMode.NOTLS
) -> tuple[list[object], bytes]:
    """The events, and what the server says after its greeting."""
    protocol = ServerProtocol(exports, tls)
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


STARTTLS, STRUCTURED, LIST_CONTEXTS, SET_CONTEXTS = 5, 8, 9, 10
DF = 1 << 7
ACK = {number: option_reply(number, 1) for number in (STARTTLS, STRUCTURED, LIST_CONTEXTS, SET_CONTEXTS)}


def contexts(number: int, *queries: bytes, export: bytes = b"swap") -> bytes:
    words = b"".join(struct.pack(">L", len(query)) + query for query in queries)
    return option(number, struct.pack(">L", len(export)) + export + struct.pack(">L", len(queries)) + words)


def test_structured_replies() -> None:
    events, answer = converse(FIXED + option(STRUCTURED) + go(b"swap") + request(0, 1, 0, 9, flags=4))
    assert events == [ExportChosen("swap"), UnfragmentedRead(1, 0, 9)]
    assert isinstance(events[1], UnfragmentedRead)
    granted = option_reply(7, 3, info_export(1 << 20, WRITABLE | DF)) + option_reply(7, 1)
    assert answer == ACK[STRUCTURED] + granted


@pytest.mark.parametrize(
    ("queries", "listed", "selected"),
    [
        ([], True, False),
        ([b"base:"], True, False),
        ([b"base:allocation"], True, True),
        ([b"x-none:", b"base:allocation"], True, True),
        ([b"qemu:dirty-bitmap:"], False, False),
    ],
)
def test_metadata_contexts(queries: list[bytes], listed: bool, selected: bool) -> None:
    asked = contexts(LIST_CONTEXTS, *queries) + contexts(SET_CONTEXTS, *queries)
    events, answer = converse(FIXED + option(STRUCTURED) + asked + go(b"swap") + request(7, 1, 512, 512, flags=8))
    described = [struct.pack(">L", number) + b"base:allocation" for number in (0, 1)]
    told = option_reply(LIST_CONTEXTS, 4, described[0]) * listed + ACK[LIST_CONTEXTS]
    told += option_reply(SET_CONTEXTS, 4, described[1]) * selected + ACK[SET_CONTEXTS]
    assert answer.startswith(ACK[STRUCTURED] + told + option_reply(7, 3, info_export(1 << 20, WRITABLE | DF)))
    assert events[1] == (BlockStatus(1, 512, 512, one=True) if selected else Refused(1, 22))


@pytest.mark.parametrize(
    "afterwards",
    [contexts(SET_CONTEXTS), contexts(SET_CONTEXTS, b"base:allocation", export=b"no"), option(SET_CONTEXTS, b"x")],
)
def test_the_last_choice_of_contexts_holds(afterwards: bytes) -> None:
    chosen = option(STRUCTURED) + contexts(SET_CONTEXTS, b"base:allocation")
    events, _ = converse(FIXED + chosen + afterwards + go(b"swap") + request(7, 1, 0, 512))
    assert events[1] == Refused(1, 22)


def test_contexts_are_those_of_the_export_they_were_chosen_for() -> None:
    chosen = option(STRUCTURED) + contexts(SET_CONTEXTS, b"base:allocation")
    events, _ = converse(FIXED + chosen + go("rö".encode()) + request(7, 1, 0, 512))
    assert events[1] == Refused(1, 22)


@given(st.binary(max_size=60))
def test_garbage_as_a_query_for_contexts(data: bytes) -> None:
    events, answer = converse(FIXED + option(STRUCTURED) + option(LIST_CONTEXTS, data) + go(b"swap"))
    assert events == [ExportChosen("swap")]
    assert answer.startswith(ACK[STRUCTURED] + struct.pack(">QL", 0x0003E889045565A9, LIST_CONTEXTS))


SMALL = {"small": Disk(block_size=BlockSize(512, 4096, 1 << 20))}


def test_a_client_that_asks_learns_the_block_sizes() -> None:
    events, answer = converse(FIXED + go(b"small", 3), SMALL)
    assert events == [ExportChosen("small")]
    assert option_reply(7, 3, struct.pack(">HLLL", 3, 512, 4096, 1 << 20)) in answer


def test_a_client_that_does_not_ask_is_told_to() -> None:
    events, answer = converse(FIXED + go(b"small"), SMALL)
    assert events == []
    assert option_reply(7, 3, struct.pack(">HLLL", 3, 512, 4096, 1 << 20)) in answer
    assert answer.endswith(option_reply(7, ERROR + 8, b"ask for the block size constraints"))
    events, _ = converse(FIXED + option(1, b"small"), SMALL)
    assert isinstance(events[0], Violation)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (request(0, 1, 1, 512), 22),
        (request(0, 1, 0, 511), 22),
        (request(0, 1, 0, 2 << 20), 22),
        (request(1, 1, 256, 512, bytes(512)), 22),
        (request(4, 1, 0, 100), 22),
        (request(6, 1, 100, 512), 22),
        (request(5, 1, 0, 100), 22),
    ],
)
def test_block_sizes_are_enforced(sent: bytes, error: int) -> None:
    disk = Disk(4 << 20, block_size=SMALL["small"].block_size)
    events, _ = converse(FIXED + go(b"small", 3) + sent + request(3, 2), {"small": disk})
    assert events[1:] == [Refused(1, error), Flush(2)]


@pytest.mark.parametrize("sent", [option(3), go(b"swap"), go(b"swap", number=6), option(STRUCTURED), option(77)])
def test_forced_tls(sent: bytes) -> None:
    events, answer = converse(FIXED + sent, tls=TlsMode.FORCEDTLS)
    assert events == []
    assert kind_of(answer)[1] == 5
    assert isinstance(converse(FIXED + option(1, b"swap"), tls=TlsMode.FORCEDTLS)[0][0], Violation)
    assert converse(FIXED + option(2), tls=TlsMode.FORCEDTLS)[0] == [Disconnect()]


def test_selective_tls_serves_in_the_clear_too() -> None:
    assert converse(FIXED + go(b"swap"), tls=TlsMode.SELECTIVETLS)[0] == [ExportChosen("swap")]


@pytest.mark.parametrize("mode", [TlsMode.FORCEDTLS, TlsMode.SELECTIVETLS])
def test_tls_forgets_what_was_said_in_the_clear(mode: TlsMode) -> None:
    protocol = ServerProtocol(EXPORTS, mode)
    protocol.data_to_send()
    before = FIXED + (option(STRUCTURED) if mode is TlsMode.SELECTIVETLS else b"")
    assert list(feed(protocol, before + option(STARTTLS))) == [StartTls()]
    assert protocol.data_to_send().endswith(ACK[STARTTLS])
    assert list(feed(protocol, option(STARTTLS))) == []
    assert kind_of(protocol.data_to_send()) == (STARTTLS, 3)
    assert list(feed(protocol, go(b"swap"))) == [ExportChosen("swap")]
    assert not protocol.structured


def test_nothing_may_be_slipped_in_before_tls() -> None:
    events, _ = converse(FIXED + option(STARTTLS) + go(b"swap"), tls=TlsMode.FORCEDTLS)
    assert len(events) == 1
    assert isinstance(events[0], Violation)


@pytest.mark.parametrize(
    "sizes",
    [(3,), (0,), (128 << 10, 128 << 10), (1, 256), (4096, 512), (1, 4096, 64 << 20), (512, 4096, 5000), (1, 4096, 512)],
)
def test_block_sizes_that_the_spec_forbids(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="block size is a"):
        BlockSize(*sizes)
