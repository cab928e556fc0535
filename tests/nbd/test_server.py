"""The server on real sockets: many clients, failing storage, hostile peers, and stopping."""

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from testbed.nbd.client import open_connection
from testbed.nbd.connection import serve_connection
from testbed.nbd.errors import NbdDisconnected
from testbed.nbd.export import MemoryExport
from testbed.nbd.transmission import ServerStatistics
from tests.nbd.conftest import StartServer
from tests.nbd.support import FIXED_NO_ZEROES, GREETING, eventually, go, option, reply, request
from tests.nbd.test_client import PAGE, complete, connect, pages
from tests.nbd.test_transmission import BadSector, parse

HANDSHAKE = 18 + 32 + 20  # bytes of the greeting, NBD_INFO_EXPORT and NBD_REP_ACK


class FailingExport(MemoryExport):
    """Reads, writes and the rest fail with `failure`."""

    failure = errno.EIO

    def read(self, offset: int, length: int) -> memoryview:
        raise OSError(self.failure, os.strerror(self.failure))

    def commit(self, offset: int, data: memoryview) -> None:
        self.read(0, 0)

    def flush(self) -> None:
        self.read(0, 0)

    def trim(self, offset: int, length: int) -> None:
        self.read(0, 0)


class CountingExport(MemoryExport):
    flushes = 0

    def flush(self) -> None:
        self.flushes += 1


class Dribbling(socket.socket):
    """Takes at most 1000 bytes at a time, and notes how much it was offered."""

    offered = 0

    def sendmsg(self, buffers: Iterable[bytes | memoryview], *arguments: Any) -> int:  # type: ignore[override]
        data = b"".join(buffers)
        self.offered = max(self.offered, len(data))
        return self.send(data[:1000])


def serve_dribbling(said: bytes, export: MemoryExport, options: bytes = b"") -> tuple[bytes, int]:
    """What the server answers after the handshake, and the most it offered to send at once."""
    ours, far = socket.socketpair()
    with ours, Dribbling(fileno=far.detach()) as theirs:
        ours.sendall(FIXED_NO_ZEROES + options + go() + said)
        ours.shutdown(socket.SHUT_WR)
        thread = threading.Thread(target=serve_connection, args=(theirs, {"": export}, ServerStatistics()))
        thread.start()
        answer = b""
        while len(answer) < HANDSHAKE or thread.is_alive():
            answer += ours.recv(1 << 20, socket.MSG_DONTWAIT) if select.select([ours], [], [], 0.01)[0] else b""
        thread.join()
        while select.select([ours], [], [], 0)[0]:
            answer += ours.recv(1 << 20)
        return answer[HANDSHAKE :], theirs.offered


def test_partial_sends_keep_the_stream_whole() -> None:
    export = MemoryExport(1 << 20)
    export.memory[:] = bytes(range(256)) * 4096
    lengths = [0, 1, 983, 984, 985, 5000, 40_000]
    said = b"".join(request(0, length, 7, length) for length in lengths)
    answer, _ = serve_dribbling(said, export)
    assert answer == b"".join(reply(length, 0, bytes(export.memory[7 : 7 + length])) for length in lengths)


def test_structured_replies_in_the_midst_of_others_keep_the_stream_whole() -> None:
    """A page that cannot be read, and READs of nothing, of a little, in one piece, and of much, in a single batch."""
    export = BadSector(1 << 20)
    export.memory[:] = bytes(range(1, 129)) * 8192
    reads = [(1, 0, 0), (2, 7, 983), (3, export.bad, PAGE), (4, 0, PAGE), (5, 2 * export.bad, 100_000), (6, 3, 1)]
    said = b"".join(request(0, handle, at, length, flags=4 * (handle == 4)) for handle, at, length in reads)
    answer, _ = serve_dribbling(said + request(1, 7, 0, 1, b"x"), export, option(8))
    answer = answer[20:]  # the option's NBD_REP_ACK
    for handle, at, length in reads:
        header = struct.unpack_from(">LHHQL", answer)
        size = 20 + header[4]
        assert header[:2] == (0x668E33EF, 1)
        assert header[3] == handle
        content = parse(answer[:size], handle)
        assert content.error == (5 if handle == 3 else 0)
        assert content.data == (b"" if handle == 3 else export.memory[at : at + length])
        answer = answer[size:]
    assert answer == reply(7)


def test_what_is_gathered_for_one_send_is_bounded() -> None:
    answer, offered = serve_dribbling(request(0, 1, 0, 256 << 10) * 20, MemoryExport(1 << 20))
    assert answer == reply(1, 0, bytes(256 << 10)) * 20
    assert offered <= (1 << 20) + (256 << 10) + 80


def test_forced_unit_access_flushes() -> None:
    export = CountingExport(1 << 20)
    said = request(1, 1, 0, 1, b"x") + request(1, 2, 0, 1, b"y", flags=1) + request(4, 3, 0, 1, flags=1)
    answer, _ = serve_dribbling(said, export)
    assert answer == reply(1) + reply(2) + reply(3)
    assert export.flushes == 2


def test_clients_share_the_export_and_are_counted(start_server: StartServer) -> None:
    server, path = start_server({"": MemoryExport(1 << 20)})
    with connect(path) as one, connect(path) as two:
        first, second = open_connection(one), open_connection(two)
        first.write(1, 0, pages(b"shared"))
        complete(first, 1)
        landing = pages(b"")
        second.read(1, 0, landing)
        second.flush(2)
        second.trim(3, PAGE, PAGE)
        second.read(4, 1 << 20, landing)
        assert sorted(complete(second, 4)) == [(1, 0), (2, 0), (3, 0), (4, 22)]
        assert bytes(landing[0][:6]) == b"shared"
        expected = ServerStatistics(2, reads=1, writes=1, flushes=1, trims=1, errors=1)
        expected.bytes_read = expected.bytes_written = PAGE
        assert server.statistics() == expected
    eventually(lambda: not server.clients)
    assert server.statistics() == expected


@pytest.mark.parametrize(
    ("failure", "told"), [(errno.EIO, 5), (errno.EDQUOT, 28), (errno.EROFS, 1), (errno.ESTALE, 5), (errno.ENOMEM, 12)]
)
def test_failing_storage(start_server: StartServer, failure: int, told: int) -> None:
    export = FailingExport(1 << 20)
    export.failure = failure
    server, path = start_server({"": export})
    with connect(path) as sock:
        client = open_connection(sock)
        client.read(1, 0, pages(b""))
        client.write(2, 0, pages(b""))
        client.flush(3)
        client.trim(4, 0, PAGE)
        assert sorted(complete(client, 4)) == [(handle, told) for handle in (1, 2, 3, 4)]
    assert server.statistics().errors == 4


def test_stopping_hangs_up_on_clients(start_server: StartServer) -> None:
    server, path = start_server({"": MemoryExport(1 << 20)})
    with connect(path) as sock, connect(path) as silent:
        client = open_connection(sock)
        assert silent.recv(18) == GREETING
        server.stop()
        select.select([client], [], [], 10)
        with pytest.raises(NbdDisconnected):
            client.receive()
        eventually(lambda: not server.clients)


def test_stopping_frees_a_server_stuck_in_a_send(start_server: StartServer) -> None:
    server, path = start_server({"": MemoryExport(32 << 20)})
    with connect(path) as sock:
        client = open_connection(sock)
        client.read(1, 0, [memoryview(bytearray(32 << 20))])
        assert client.send_pending()
        select.select([client], [], [], 10)
        server.stop()
        eventually(lambda: not server.clients)


def test_a_hostile_client_harms_nobody(start_server: StartServer) -> None:
    _, path = start_server({"": MemoryExport(1 << 20)})
    with connect(path) as good:
        client = open_connection(good)
        chosen = FIXED_NO_ZEROES + go()
        for said in (b"\xff" * 100, chosen + b"\xff" * 28, chosen + request(1, 1, 0, 99)):
            with connect(path) as bad:
                bad.sendall(said)
                bad.shutdown(socket.SHUT_WR)
                while bad.recv(4096):
                    pass
        client.flush(1)
        assert complete(client, 1) == [(1, 0)]


def test_what_a_client_did_wrong_is_logged() -> None:
    lines: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(FIXED_NO_ZEROES + go() + request(3, 1) + b"\xff" * 28)
        serve_connection(theirs, {"": MemoryExport(4096)}, ServerStatistics(), lines.append)
        assert ours.recv(4096).endswith(reply(1))
    assert lines == ["hung up on a client: the client's request has the wrong magic 0xffffffff"]


def test_more_is_asked_than_fits_in_one_answer(start_server: StartServer) -> None:
    """2000 requests in one go: more pieces than one sendmsg takes, and more data than one batch gathers."""
    export = MemoryExport(1 << 20)
    export.memory[:] = bytes(range(256)) * 4096
    _, path = start_server({"": export})
    with connect(path) as sock:
        client = open_connection(sock)
        landings = [[memoryview(bytearray(1 + number % 5000))] for number in range(2000)]
        for number, landing in enumerate(landings):
            client.read(number, number, landing)
        assert [handle for handle, _ in complete(client, 2000)] == list(range(2000))
        for number, (landed,) in enumerate(landings):
            assert landed == export.memory[number : number + len(landed)]


def test_thousands_of_short_answers_at_once(start_server: StartServer) -> None:
    _, path = start_server({"": MemoryExport(1 << 20)})
    with connect(path) as sock:
        client = open_connection(sock)
        for handle in range(9000):
            client.flush(handle)
        assert [handle for handle, _ in complete(client, 9000)] == list(range(9000))


def test_many_clients_at_once(start_server: StartServer) -> None:
    server, path = start_server({"": MemoryExport(1 << 20)})
    wrong: list[object] = []

    def work(number: int) -> None:
        with connect(path) as sock:
            client = open_connection(sock)
            for turn in range(20):
                client.write(1, number * PAGE, pages(b"%d %d" % (number, turn)))
                complete(client, 1)
                landing = pages(b"")
                client.read(2, number * PAGE, landing)
                complete(client, 1)
                if landing != pages(b"%d %d" % (number, turn)):
                    wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert wrong == []
    assert server.statistics().writes == 160


def test_over_tcp(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            arguments = (theirs, {"": MemoryExport(1 << 20)}, ServerStatistics())
            thread = threading.Thread(target=serve_connection, args=arguments)
            thread.start()
            client = open_connection(ours)
            assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.disconnect()
            client.send_pending()
            thread.join(10)
            assert not thread.is_alive()
