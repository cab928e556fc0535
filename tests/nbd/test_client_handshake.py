"""The client's end of the handshake: what it says, what it makes of the answers, and what it tells people."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.client_handshake import (
    ClientHandshake,
    ExportInformation,
    ExportListed,
    HandshakeFinished,
    TlsBegins,
)
from testbed.nbd.constants import Option
from testbed.nbd.errors import NbdError
from tests.nbd.support import ERROR, FIXED, FIXED_NO_ZEROES, GREETING, cuts, info_export, option, option_reply, split

OLD_GREETING = GREETING[:16] + b"\0\0"
BLOCK_SIZES = struct.pack(">HLLL", 3, 1, 4096, 65536)
GRANT = option_reply(7, 3, info_export(8192, 5)) + option_reply(7, 1)
LISTING = option_reply(3, 2, b"\0\0\0\x01a") + option_reply(3, 2, b"\0\0\0\x02bcfine") + option_reply(3, 1)


def converse(handshake: ClientHandshake, *parts: bytes) -> tuple[list[object], bytes]:
    """The events, and everything the client said."""
    events: list[object] = []
    said = handshake.data_to_send()
    for part in parts:
        events += handshake.received(part)
        said += handshake.data_to_send()
    return events, said


def asked(number: int, name: bytes) -> bytes:
    return option(number, struct.pack(">L", len(name)) + name + struct.pack(">HHHH", 3, 1, 2, 3))


def test_go() -> None:
    handshake = ClientHandshake("swap")
    events, said = converse(handshake, GREETING, GRANT)
    assert events == [ExportInformation(8192, 5), HandshakeFinished()]
    assert said == FIXED_NO_ZEROES + asked(7, b"swap")
    assert handshake.finished


def test_go_with_everything_told() -> None:
    told = [
        option_reply(7, 3, b"\0\1swap"),
        option_reply(7, 3, b"\0\2fast"),
        option_reply(7, 3, b"\xff\xff????"),
        option_reply(7, 3, BLOCK_SIZES),
    ]
    events, _ = converse(ClientHandshake(), GREETING, *told, GRANT)
    assert events[0] == ExportInformation(8192, 5, "swap", "fast", 1, 4096, 65536)


def test_fall_back_to_export_name() -> None:
    unknown = option_reply(7, ERROR + 1, b"never heard of it")
    events, said = converse(ClientHandshake("swap"), GREETING, unknown, struct.pack(">QH", 8192, 5))
    assert events == [ExportInformation(8192, 5), HandshakeFinished()]
    assert said == FIXED_NO_ZEROES + asked(7, b"swap") + option(1, b"swap")


@pytest.mark.parametrize(("greeting", "flags", "zeroes"), [(b"\0\0", bytes(4), 124), (b"\0\2", b"\0\0\0\2", 0)])
def test_a_server_without_fixed_newstyle(greeting: bytes, flags: bytes, zeroes: int) -> None:
    handshake = ClientHandshake("swap")
    events, said = converse(handshake, GREETING[:16] + greeting, struct.pack(">QH", 8192, 5) + bytes(zeroes))
    assert events == [ExportInformation(8192, 5), HandshakeFinished()]
    assert said == flags + option(1, b"swap")


def test_zeroes_are_awaited_where_the_server_sends_them() -> None:
    handshake = ClientHandshake()
    answer = struct.pack(">QH", 8192, 5) + bytes(123)
    events, said = converse(handshake, GREETING[:17] + b"\1", option_reply(7, ERROR + 1), answer)
    assert events == []
    assert said.startswith(FIXED)
    assert handshake.received(b"\0") == [ExportInformation(8192, 5), HandshakeFinished()]


def test_list() -> None:
    events, said = converse(ClientHandshake(goal=Option.NBD_OPT_LIST), GREETING, LISTING)
    assert events == [ExportListed("a", ""), ExportListed("bc", "fine"), HandshakeFinished()]
    assert said == FIXED_NO_ZEROES + option(3) + option(2)


def test_info() -> None:
    grant = option_reply(6, 3, info_export(8192, 5)) + option_reply(6, 1)
    events, said = converse(ClientHandshake("swap", Option.NBD_OPT_INFO), GREETING, grant)
    assert events == [ExportInformation(8192, 5), HandshakeFinished()]
    assert said == FIXED_NO_ZEROES + asked(6, b"swap") + option(2)


def test_abort() -> None:
    events, said = converse(ClientHandshake(goal=Option.NBD_OPT_ABORT), GREETING)
    assert events == [HandshakeFinished()]
    assert said == FIXED_NO_ZEROES + option(2)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([b"SSH-2.0-OpenSSH"], "not an NBD server"),
        ([b"NBDMAGIC" + b"IHAVEIPT"], "not an NBD server"),
        ([b"NBDMAGIC" + struct.pack(">Q", 0x00420281861253)], "oldstyle"),
        ([GREETING, option_reply(7, ERROR + 6)], "no export 'swap'"),
        ([GREETING, option_reply(7, ERROR + 5, b"TLS first")], "requires TLS"),
        ([GREETING, option_reply(7, ERROR + 7)], "shutting down"),
        ([GREETING, option_reply(7, ERROR + 2, b"not\nyou")], r"NBD_REP_ERR_POLICY \(not you\)"),
        ([GREETING, option_reply(7, ERROR + 8)], "NBD_REP_ERR_BLOCK_SIZE_REQD"),
        ([GREETING, option_reply(7, ERROR + 99)], "error 99"),
        ([GREETING, option_reply(7, 2, bytes(4))], "unexpected reply of type 2"),
        ([GREETING, option_reply(3, 1)], "not an option reply"),
        ([GREETING, bytes(20)], "not an option reply"),
        ([GREETING, option_reply(7, 3, bytes(1 << 16))], "too long"),
        ([GREETING, option_reply(7, 3, b"\0\0")], "malformed"),
        ([GREETING, option_reply(7, 3, b"\0\3")], "malformed"),
        ([GREETING, option_reply(7, 3, b"")], "malformed"),
        ([GREETING, option_reply(7, 1)], "without telling its size"),
        ([GREETING, GRANT + b"x"], "nobody asked for"),
    ],
)
def test_refusals(sent: list[bytes], told: str) -> None:
    with pytest.raises(NbdError, match=told) as caught:
        converse(ClientHandshake("swap"), *sent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("goal", "sent", "told"),
    [
        (Option.NBD_OPT_LIST, [GREETING, option_reply(3, ERROR + 2)], "refused NBD_OPT_LIST: NBD_REP_ERR_POLICY$"),
        (Option.NBD_OPT_LIST, [GREETING, option_reply(3, 2, b"\0\0\0\x09x")], "malformed"),
        (Option.NBD_OPT_LIST, [OLD_GREETING], "too old"),
        (Option.NBD_OPT_INFO, [GREETING, option_reply(6, ERROR + 1)], "does not know NBD_OPT_INFO"),
    ],
)
def test_refusals_of_other_goals(goal: Option, sent: list[bytes], told: str) -> None:
    with pytest.raises(NbdError, match=told):
        converse(ClientHandshake("swap", goal), *sent)


@pytest.mark.parametrize(
    ("goal", "answer"),
    [(Option.NBD_OPT_LIST, option_reply(3, 2, bytes(4))), (Option.NBD_OPT_GO, option_reply(7, 3, b"\0\1x"))],
)
def test_a_server_that_never_ends_is_left(goal: Option, answer: bytes) -> None:
    handshake = ClientHandshake(goal=goal)
    handshake.received(GREETING)
    with pytest.raises(NbdError, match="does not end"):
        handshake.received(answer * 65537)


def test_arguments_are_checked() -> None:
    assert ClientHandshake("x" * 4096)
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        ClientHandshake("x" * 4097)
    with pytest.raises(ValueError, match="goal"):
        ClientHandshake(goal=Option.NBD_OPT_STARTTLS)


@given(st.sampled_from([(Option.NBD_OPT_GO, BLOCK_SIZES), (Option.NBD_OPT_LIST, b"")]), cuts)
def test_any_split_gives_the_same(case: tuple[Option, bytes], where: list[int]) -> None:
    goal, block_sizes = case
    data = GREETING + (option_reply(7, 3, block_sizes) + GRANT if block_sizes else LISTING)
    parts = split(data, where)
    assert converse(ClientHandshake(goal=goal), *parts) == converse(ClientHandshake(goal=goal), data)


@given(st.binary(max_size=200), st.sampled_from([b"", GREETING, GREETING + option_reply(7, 1)[:12]]), cuts)
def test_garbage_does_no_harm(garbage: bytes, before: bytes, where: list[int]) -> None:
    handshake = ClientHandshake()
    with contextlib.suppress(NbdError):
        events, _ = converse(handshake, *split(before + garbage, where))
        assert len(events) < 5


TLS_AGREED = option_reply(5, 1)


@pytest.mark.parametrize(
    ("answer", "agreed"),
    [(option_reply(8, 1), True), (option_reply(8, ERROR + 1), False), (option_reply(8, ERROR + 2, b"no"), False)],
)
def test_structured_replies_are_asked_for_and_may_be_refused(answer: bytes, agreed: bool) -> None:
    handshake = ClientHandshake("swap", ask_structured_replies=True)
    events, said = converse(handshake, GREETING, answer, GRANT)
    assert events == [ExportInformation(8192, 5), HandshakeFinished()]
    assert said == FIXED_NO_ZEROES + option(8) + asked(7, b"swap")
    assert handshake.structured_replies == agreed


def test_with_tls_nothing_is_said_of_the_export_before_it() -> None:
    handshake = ClientHandshake("swap", tls=True)
    events, said = converse(handshake, GREETING, TLS_AGREED)
    assert (events, said) == ([TlsBegins()], FIXED_NO_ZEROES + option(5))
    handshake.tls_started()
    events, said = converse(handshake, GRANT)
    assert (events, said) == ([ExportInformation(8192, 5), HandshakeFinished()], asked(7, b"swap"))


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([GREETING, option_reply(5, ERROR + 1)], "refused NBD_OPT_STARTTLS: NBD_REP_ERR_UNSUP$"),
        ([GREETING, option_reply(5, ERROR + 2, b"no TLS here")], r"NBD_REP_ERR_POLICY \(no TLS here\)"),
        ([GREETING, option_reply(5, 2)], "unexpected reply of type 2"),
        ([OLD_GREETING], "too old for TLS"),
        ([GREETING, TLS_AGREED + b"injected"], "nobody asked for"),
    ],
)
def test_without_tls_there_is_no_connection(sent: list[bytes], told: str) -> None:
    with pytest.raises(NbdError, match=told):
        converse(ClientHandshake("swap", tls=True), *sent)
