"""The client on real sockets: against our server, and against a peer that misbehaves."""

import random
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.nbd.client import NbdClient, export_information, list_exports, open_connection
from testbed.nbd.client_handshake import ExportListed
from testbed.nbd.client_protocol import Reply
from testbed.nbd.connection import serve_connection
from testbed.nbd.errors import NbdDisconnected, NbdError
from testbed.nbd.export import FileExport, MemoryExport
from testbed.nbd.transmission import ServerStatistics
from tests.nbd.conftest import StartServer
from tests.nbd.support import ERROR, GREETING, option_reply, reply

PAGE = 4096
SIZE = 256 * PAGE


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def complete(client: NbdClient, count: int) -> list[Reply]:
    """Send what is queued and wait for `count` replies."""
    replies: list[Reply] = []
    while len(replies) < count:
        sent = client.send_pending()
        ready = select.select([client], [] if sent else [client], [], 10)
        assert ready[0] or ready[1], "nothing moves"
        replies += client.receive()
    return replies


def pages(*contents: bytes) -> list[memoryview]:
    return [memoryview(bytearray(content.ljust(PAGE, b"."))) for content in contents]


def test_against_our_server(memory_server: tuple[MemoryExport, Path]) -> None:
    export, path = memory_server
    with connect(path) as sock:
        client = open_connection(sock, "swap")
        assert client.export_size == export.size
        assert client.transmission_flags & 1
        client.write(1, 4 * PAGE, pages(b"one", b"two"))
        assert complete(client, 1) == [(1, 0)]
        assert bytes(export.memory[4 * PAGE : 4 * PAGE + 3]) == b"one"
        landing = pages(b"", b"")
        client.read(2, 5 * PAGE, landing)
        client.flush(3)
        assert sorted(complete(client, 2)) == [(2, 0), (3, 0)]
        assert bytes(landing[0][:4]) == b"two."
        client.trim(4, 4 * PAGE, PAGE)
        client.read(5, export.size, landing)
        client.write(6, export.size - 1, pages(b"no"))
        assert sorted(complete(client, 3)) == [(4, 0), (5, 22), (6, 28)]
        assert not any(export.memory[4 * PAGE : 5 * PAGE])
        assert client.bytes_sent == 6 * 28 + 3 * PAGE
        assert client.bytes_received == 6 * 16 + 2 * PAGE
        assert client.in_flight == client.pending_bytes == 0
        client.disconnect()
        assert client.send_pending()
        select.select([client], [], [], 10)
        with pytest.raises(NbdDisconnected):
            client.receive()


def test_nothing_to_receive(memory_server: tuple[MemoryExport, Path]) -> None:
    with connect(memory_server[1]) as sock:
        client = open_connection(sock)
        assert client.receive() == []
        assert client.send_pending()


def test_unknown_export(memory_server: tuple[MemoryExport, Path]) -> None:
    with connect(memory_server[1]) as sock, pytest.raises(NbdError, match="has no export 'swop'"):
        open_connection(sock, "swop")


def test_list_and_information(start_server: StartServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(PAGE))
    file = FileExport(disk, read_only=True)
    _, path = start_server({"a": MemoryExport(1 << 20), "b": file})
    with connect(path) as sock:
        assert list_exports(sock) == [ExportListed("a", "1M of memory"), ExportListed("b", "file disk")]
    with connect(path) as sock:
        told = export_information(sock, "b")
    assert (told.size, told.name, told.description) == (PAGE, "b", "file disk")
    assert told.maximum_block_size == 32 << 20


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "not an NBD server"),
        (GREETING + option_reply(7, ERROR + 5), "requires TLS"),
        (GREETING, "closed the connection"),
    ],
)
def test_refusals(pair: tuple[socket.socket, socket.socket], said: bytes, told: str) -> None:
    ours, theirs = pair
    theirs.sendall(said)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(NbdError, match=told):
        open_connection(ours)


def test_a_silent_server(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(NbdError, match=r"did not answer within 0\.01 s"):
        open_connection(pair[0], timeout=0.01)


def granted(pair: tuple[socket.socket, socket.socket]) -> NbdClient:
    ours, theirs = pair
    grant = option_reply(7, 3, (0).to_bytes(2, "big") + SIZE.to_bytes(8, "big") + b"\0\1") + option_reply(7, 1)
    theirs.sendall(GREETING + grant)
    client = open_connection(ours)
    assert client.export_size == SIZE
    theirs.recv(1000)
    return client


def test_a_server_that_breaks_the_protocol(pair: tuple[socket.socket, socket.socket]) -> None:
    client = granted(pair)
    pair[1].sendall(reply(99))
    with pytest.raises(NbdError, match="handle 99") as caught:
        client.receive()
    assert not isinstance(caught.value, NbdDisconnected)


def test_a_server_that_vanishes(pair: tuple[socket.socket, socket.socket]) -> None:
    client = granted(pair)
    pair[1].close()
    client.flush(1)
    with pytest.raises(NbdDisconnected, match="Broken pipe"):
        client.send_pending()
    with pytest.raises(NbdDisconnected, match="closed the connection"):
        client.receive()


def test_a_server_that_resets(memory_server: tuple[MemoryExport, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        client = granted((ours, theirs))
        client.flush(1)
        assert client.send_pending()
        select.select([theirs], [], [], 10)
        theirs.close()  # with a request unread, so the kernel resets
        select.select([client], [], [], 10)
        with pytest.raises(NbdDisconnected, match="reset"):
            client.receive()


def test_partial_sends_keep_the_stream_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    client = granted(pair)
    expected = b""
    chance = random.Random(1)
    for handle in range(300):
        contents = [chance.randbytes(PAGE) for _ in range(handle % 9)]
        client.write(handle, 0, pages(*contents))
        expected += b"".join([b"\x25\x60\x95\x13\0\0\0\1", handle.to_bytes(8, "big"), bytes(8)])
        expected += (len(contents) * PAGE).to_bytes(4, "big") + b"".join(contents)
    taken = b""
    pair[1].setblocking(False)
    blocked = 0
    while not client.send_pending():
        blocked += 1
        taken += pair[1].recv(chance.randrange(1, 100_000))
    assert blocked
    while len(taken) < len(expected):
        taken += pair[1].recv(1 << 20)
    assert taken == expected
    assert client.bytes_sent == len(expected)
    assert client.pending_bytes == 0


operations = st.tuples(st.sampled_from("rrwwtfx"), st.integers(0, SIZE // PAGE - 1), st.integers(1, 40))


@settings(max_examples=60)
@given(st.lists(operations, max_size=80), st.integers(1, 40), st.integers(2048, 300_000))
def test_many_in_flight_against_a_model(operations: list[tuple[str, int, int]], depth: int, buffer: int) -> None:
    """Requests that overlap nothing in flight, up to `depth` of them; the model is exact at every reply."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    export = MemoryExport(SIZE)
    statistics = ServerStatistics(connections=1)
    thread = threading.Thread(target=serve_connection, args=(theirs, {"": export}, statistics))
    thread.start()
    model = bytearray(SIZE)
    flying: dict[int, tuple[int, int, list[memoryview], int]] = {}

    def check(handle: int, error: int) -> None:
        offset, length, landing, expected = flying.pop(handle)
        assert error == expected
        if not error:
            assert b"".join(landing) == model[offset : offset + length][: len(landing) * PAGE]

    with ours, theirs:
        client = open_connection(ours)
        for handle, (kind, page, count) in enumerate(operations):
            count = min(count, SIZE // PAGE - page)
            offset, length = page * PAGE, count * PAGE
            while len(flying) >= depth or any(
                offset < start + size and start < offset + length for start, size, _, _ in flying.values()
            ):
                for done in complete(client, 1):
                    check(*done)
            content = [bytes([handle % 251 + 1, number]) * (PAGE // 2) for number in range(count)]
            match kind:
                case "w":
                    client.write(handle, offset, pages(*content))
                    model[offset : offset + length] = b"".join(content)
                    flying[handle] = offset, length, [], 0
                case "t":
                    client.trim(handle, offset, length)
                    model[offset : offset + length] = bytes(length)
                    flying[handle] = offset, length, [], 0
                case "f":
                    client.flush(handle)
                    flying[handle] = 0, 0, [], 0
                case "x":
                    client.write(handle, SIZE - PAGE, pages(*content, b"too far"))
                    flying[handle] = 0, 0, [], 28
                case _:
                    landing = pages(*[b""] * count)
                    client.read(handle, offset, landing)
                    flying[handle] = offset, length, landing, 0
            client.send_pending()
        for done in complete(client, len(flying)):
            check(*done)
        assert not flying
        client.disconnect()
        assert client.send_pending()
        thread.join(10)
        assert not thread.is_alive()
    assert export.memory == model
    kinds = [kind for kind, _, _ in operations]
    counted = (statistics.reads, statistics.writes, statistics.trims, statistics.flushes, statistics.errors)
    assert counted == tuple(map(kinds.count, "rwtfx"))
