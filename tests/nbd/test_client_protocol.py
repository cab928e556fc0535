"""Requests as the client puts them on the wire, and replies as they fill its pages."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.client_protocol import ClientProtocol
from testbed.nbd.errors import NbdError
from tests.nbd.support import cuts, feed, feed_parts, reply, request, split

READ, WRITE, DISC, FLUSH, TRIM = range(5)


def pages(count: int, size: int = 4096) -> list[memoryview]:
    """Scattered: every second piece of one buffer."""
    memory = memoryview(bytearray(2 * count * size))
    return [memory[at : at + size] for at in range(0, len(memory), 2 * size)]


def said(protocol: ClientProtocol) -> bytes:
    data = b"".join(protocol.outgoing)
    assert len(data) == protocol.outgoing_bytes
    return data


def test_each_request() -> None:
    protocol = ClientProtocol()
    written = pages(2)
    written[0][:3], written[1][:3] = b"abc", b"xyz"
    protocol.read(1, 8192, pages(3))
    protocol.write(2, 1 << 40, written)
    protocol.flush(3)
    protocol.trim((1 << 64) - 1, 4096, 0xFFFFF000)
    protocol.disconnect()
    assert said(protocol) == (
        request(READ, 1, 8192, 3 * 4096)
        + request(WRITE, 2, 1 << 40, 8192, b"abc" + bytes(4093) + b"xyz" + bytes(4093))
        + request(FLUSH, 3)
        + request(TRIM, (1 << 64) - 1, 4096, 0xFFFFF000)
        + request(DISC, 0)
    )
    assert protocol.in_flight == 4


def test_pages_are_sent_from_where_they_are() -> None:
    protocol = ClientProtocol()
    (page,) = pages(1)
    protocol.write(1, 0, [page])
    assert protocol.outgoing[1] is page


def test_a_handle_in_flight_is_refused_and_nothing_queued() -> None:
    protocol = ClientProtocol()
    protocol.read(1, 0, pages(1))
    before = said(protocol)
    with pytest.raises(ValueError, match="handle 1 is in flight"):
        protocol.write(1, 0, pages(1))
    assert said(protocol) == before
    assert list(feed(protocol, reply(1, 0, bytes(4096)))) == [(1, 0)]
    protocol.flush(1)


def test_replies_in_any_order() -> None:
    protocol = ClientProtocol()
    first, second = pages(2), pages(1)
    protocol.read(1, 0, first)
    protocol.read(2, 0, second)
    protocol.write(3, 0, pages(1))
    protocol.read(4, 0, pages(1))
    stream = reply(3) + reply(2, 0, b"b" * 4096) + reply(4, 5) + reply(1, 0, b"c" * 4096 + b"d" * 4096)
    assert list(feed(protocol, stream)) == [(3, 0), (2, 0), (4, 5), (1, 0)]
    assert [bytes(page[:1]) for page in (*first, *second)] == [b"c", b"d", b"b"]
    assert protocol.in_flight == 0


def test_a_payload_lands_in_place() -> None:
    protocol = ClientProtocol()
    landing = pages(3)
    protocol.read(1, 0, landing)
    assert list(feed(protocol, reply(1, 0, b"a" * 5000))) == []
    rest, last, staging = protocol.next_buffers()
    assert (len(rest), len(last)) == (2 * 4096 - 5000, 4096)
    rest[:], last[:] = b"b" * len(rest), b"c" * 4096
    protocol.flush(2)
    staging[:16] = reply(2)
    assert protocol.received(len(rest) + 4096 + 16) == [(1, 0), (2, 0)]
    assert b"".join(landing) == b"a" * 5000 + b"b" * len(rest) + b"c" * 4096


def test_more_pages_than_one_call_takes() -> None:
    protocol = ClientProtocol()
    landing = pages(3000, 16)
    protocol.read(1, 0, landing)
    data = bytes(range(256)) * 188
    assert list(feed(protocol, reply(1) + data[:10])) == []
    assert len(protocol.next_buffers()) == 1024
    assert list(feed(protocol, data[10:48000])) == [(1, 0)]
    assert b"".join(landing) == data[:48000]


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (reply(2), "handle 2"),
        (reply(1, 5) + reply(1, 5), "handle 1"),
        (bytes(16), "wrong magic 0x0"),
        (reply(1, 0, bytes(4096)) + b"x" * 16, "wrong magic 0x78787878"),
    ],
)
def test_violations(stream: bytes, told: str) -> None:
    protocol = ClientProtocol()
    protocol.read(1, 0, pages(1))
    with pytest.raises(NbdError, match=told):
        list(feed(protocol, stream))


orders = st.permutations(range(8)).flatmap(
    lambda order: st.tuples(st.just(order), st.lists(st.sampled_from([0, 0, 0, 5, 22]), min_size=8, max_size=8))
)


@given(orders, cuts, st.sampled_from([1, 4096, 40_000]))
def test_any_split_gives_the_same(case: tuple[list[int], list[int]], where: list[int], size: int) -> None:
    order, errors = case
    protocol = ClientProtocol()
    landings = [pages(handle % 3 + 1, size) for handle in range(8)]
    for handle, landing in enumerate(landings):
        if handle == 7:
            protocol.flush(handle)
        else:
            protocol.read(handle, 0, landing)
    stream = b""
    for handle, error in zip(order, errors, strict=True):
        wanted = 0 if error or handle == 7 else len(landings[handle]) * size
        stream += reply(handle, error, bytes([handle + 1]) * wanted)
    assert feed_parts(protocol, split(stream, where)) == list(zip(order, errors, strict=True))
    for handle, error in zip(order, errors, strict=True):
        expected = bytes([0 if error or handle == 7 else handle + 1]) * size
        assert all(page == expected for page in landings[handle])


@given(st.binary(max_size=400), cuts)
def test_garbage_does_no_harm(garbage: bytes, where: list[int]) -> None:
    protocol = ClientProtocol()
    protocol.read(1, 0, pages(1))
    protocol.flush(2)
    with contextlib.suppress(NbdError):
        assert len(feed_parts(protocol, split(reply(2) + garbage, where))) <= 2
