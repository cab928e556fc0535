"""What a server does not give away: places, addresses, memory, and its TLS."""

import errno
import gc
import ipaddress
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.nbd.client import open_connection
from testbed.nbd.connection import serve_connection
from testbed.nbd.constants import MAX_REQUEST_LENGTH
from testbed.nbd.errors import NbdError
from testbed.nbd.export import FileExport, MemoryExport
from testbed.nbd.payload_memory import LONG, PayloadMemory
from testbed.nbd.server import Access, NbdServer
from testbed.nbd.transmission import ServerStatistics
from tests.nbd.support import FIXED_NO_ZEROES, eventually, exactly, option, reply, request
from tests.nbd.test_client import complete, pages
from tests.nbd.test_serve import StartServe, dial, ready


@pytest.mark.parametrize(
    ("networks", "address", "admitted"),
    [
        ([], ("192.0.2.1", 1), True),
        (["192.0.2.0/24"], ("192.0.2.1", 1), True),
        (["192.0.2.0/24"], ("198.51.100.1", 1), False),
        (["192.0.2.0/24"], ("::ffff:192.0.2.1", 1, 0, 0), True),
        (["192.0.2.0/24"], ("::1", 1, 0, 0), False),
        (["198.51.100.1/32", "fe80::/10"], ("fe80::1%eth0", 1, 0, 2), True),
        (["192.0.2.0/24"], "", True),  # a unix socket
    ],
)
def test_networks(networks: list[str], address: object, admitted: bool) -> None:
    access = Access(networks=[ipaddress.ip_network(network) for network in networks])
    assert access.admits(address) is admitted


def test_only_clients_from_networks_allowed(start_serve: StartServe) -> None:
    process = start_serve("--listen", "127.0.0.1:0", "--allow", "192.0.2.0/24", "--allow", "127.0.0.2/32")
    address = ready(process)
    with dial(address) as refused:
        assert refused.recv(1) == b""
    port = int(address.rsplit(":", 1)[1].rstrip("/"))
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) as admitted:
        assert admitted.recv(8) == b"NBDMAGIC"
    assert process.stderr is not None
    assert process.stderr.readline() == "testbed serve: refused a client: 127.0.0.1 is not an address allowed\n"


def test_only_so_many_clients(start_serve: StartServe) -> None:
    address = ready(start_serve("--listen", "127.0.0.1:0", "--clients-max", "2"))
    with dial(address) as first:
        with dial(address) as second, dial(address) as third:
            assert first.recv(1) == second.recv(1) == b"N"
            assert third.recv(1) == b""

        def again() -> bool:
            with dial(address) as sock:
                return sock.recv(1) == b"N"

        eventually(again)


def test_only_the_export_named(start_serve: StartServe) -> None:
    address = ready(start_serve("--listen", "127.0.0.1:0", "--export", "swap"))
    with dial(address) as sock, pytest.raises(NbdError, match="has no export 'other'"):
        open_connection(sock, "other")


@pytest.fixture
def few_turns() -> PayloadMemory:
    memory = PayloadMemory(limit=1, longest=LONG)
    assert memory.turns == 1
    return memory


def test_a_second_connection_waits_for_its_turn(few_turns: PayloadMemory) -> None:
    mine = [few_turns.buffer(LONG), few_turns.buffer(LONG)]  # who has its turn need not wait
    got = threading.Event()

    def other() -> None:
        assert few_turns.buffer(100)
        assert few_turns.buffer(LONG)
        got.set()

    thread = threading.Thread(target=other)
    thread.start()
    mine.pop()
    assert not got.is_set()
    mine.pop()
    thread.join(20)
    assert got.is_set()


def test_who_has_had_a_turn_waits_behind_those_that_wait(few_turns: PayloadMemory) -> None:
    """Else a busy connection would have turn after turn while the others starve."""
    order = []
    held = [few_turns.buffer(LONG)]

    def other(name: int) -> None:
        assert few_turns.buffer(LONG)
        order.append(name)

    threads = [threading.Thread(target=other, args=(name,)) for name in range(3)]
    for thread in threads:
        before = few_turns.waiting
        thread.start()
        eventually(lambda before=before: few_turns.waiting > before)  # type: ignore[misc]
    held.clear()
    assert few_turns.buffer(LONG)
    assert order == [0, 1, 2]
    for thread in threads:
        thread.join(20)


def test_short_payloads_need_no_turn(few_turns: PayloadMemory) -> None:
    held = [few_turns.buffer(LONG - 1) for _ in range(100)]
    thread = threading.Thread(target=lambda: held.append(few_turns.buffer(LONG)))
    thread.start()
    thread.join(20)
    assert len(held) == 101


@pytest.mark.parametrize(("limit", "turns"), [(0, 1), (100 << 20, 1), (1 << 30, 15)])
def test_how_many_turns(limit: int, turns: int) -> None:
    assert PayloadMemory(limit, MAX_REQUEST_LENGTH).turns == turns


@pytest.fixture
def file_pair(tmp_path: Path, few_turns: PayloadMemory) -> Iterator[list[socket.socket]]:
    """Two clients of a file whose payloads have to take turns."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4 << 20))
    export = FileExport(disk, memory=few_turns)
    clients: list[socket.socket] = []
    threads = []
    for _ in range(2):
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        clients.append(ours)
        threads.append(threading.Thread(target=_serve_and_close, args=(theirs, export)))
        threads[-1].start()
        ours.sendall(FIXED_NO_ZEROES + option(1))
        assert len(exactly(ours, 28)) == 28
    yield clients
    for sock, thread in zip(clients, threads, strict=True):
        sock.close()
        thread.join(20)
        assert not thread.is_alive()
    export.close()


def _serve_and_close(sock: socket.socket, export: FileExport) -> None:
    with sock:
        serve_connection(sock, {"": export}, ServerStatistics())


def test_a_connection_gives_its_turn_back(file_pair: list[socket.socket]) -> None:
    """Each client's long payloads are answered while the other one is connected and idle."""
    for turn in range(4):
        sock = file_pair[turn % 2]
        sock.sendall(request(1, 1, 0, 1 << 20, bytes(1 << 20)) + request(1, 2, 0, 1 << 20, bytes(1 << 20)))
        assert exactly(sock, 32) == reply(1) + reply(2)
        sock.sendall(request(0, 3, 0, 1 << 20))
        assert len(exactly(sock, 16 + (1 << 20))) == 16 + (1 << 20)


@pytest.mark.parametrize("sent", [0, 100, 300 << 10, (1 << 20) - 1])
def test_a_client_that_stalls_in_a_payload_keeps_nobody_waiting(file_pair: list[socket.socket], sent: int) -> None:
    stalling, other = file_pair
    payload = bytes(range(256)) * (1 << 12)
    stalling.sendall(request(1, 7, 0, 1 << 20, payload[:sent]))
    for _ in range(2):
        other.sendall(request(1, 1, 2 << 20, 1 << 20, payload) + request(0, 2, 2 << 20, 1 << 20))
        assert exactly(other, 16) == reply(1)
        assert exactly(other, 16 + (1 << 20)) == reply(2) + payload
    stalling.sendall(payload[sent:] + request(0, 8, 0, 1 << 20))
    assert exactly(stalling, 16) == reply(7)
    assert exactly(stalling, 16 + (1 << 20)) == reply(8) + payload


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_write_of_which_one_part_fails_fails_and_the_next_does_not(tmp_path: Path, failing: int) -> None:
    """Whichever part it is, and the reply comes once, at the end."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    export = FileExport(disk)
    commits = 0

    def commit(offset: int, data: memoryview) -> None:
        nonlocal commits
        commits += 1
        if commits == failing + 1:
            raise OSError(errno.ENOSPC, "full")
        FileExport.commit(export, offset, data)

    export.commit = commit  # type: ignore[method-assign]
    ours, theirs = socket.socketpair()
    statistics = ServerStatistics()
    with ours, theirs:
        ours.settimeout(20)
        thread = threading.Thread(target=serve_connection, args=(theirs, {"": export}, statistics))
        thread.start()
        ours.sendall(FIXED_NO_ZEROES + option(1))
        exactly(ours, 28)
        ours.sendall(request(1, 1, 0, 1 << 20, bytes(1 << 20)) + request(1, 1, 0, 512, b"x" * 512))
        assert exactly(ours, 32) == reply(1, errno.ENOSPC) + reply(1)
        ours.shutdown(socket.SHUT_WR)
        thread.join(20)
    export.close()
    assert commits >= 4
    assert (statistics.errors, statistics.writes) == (1, 1)


def test_a_client_that_vanishes_in_a_payload_gives_its_turn_back(file_pair: list[socket.socket]) -> None:
    first, second = file_pair
    first.sendall(request(1, 1, 0, 1 << 20, b"half"))
    first.shutdown(socket.SHUT_WR)
    assert first.recv(1) == b""
    gc.collect()
    second.sendall(request(1, 1, 0, 1 << 20, bytes(1 << 20)))
    assert exactly(second, 16) == reply(1)


def test_faults_from_the_command_line(start_serve: StartServe) -> None:
    process = start_serve("--listen", "127.0.0.1:0", "--fault", "eio_write:every_nth=2", "--fault", "eio_flush")
    with dial(ready(process)) as sock:
        client = open_connection(sock)
        for handle in range(4):
            client.write(handle, 0, pages(b"x"))
        client.flush(4)
        assert sorted(complete(client, 5)) == [(0, 0), (1, 5), (2, 0), (3, 5), (4, 5)]


def test_many_clients_do_not_cost_memory_for_ever() -> None:
    """Connections that came and went leave nothing behind in the server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = NbdServer(listener, {"": MemoryExport(1 << 20)})
        thread = threading.Thread(target=server.serve)
        thread.start()
        for _ in range(50):
            with socket.create_connection(listener.getsockname()) as sock:
                exactly(sock, 18)
        eventually(lambda: server.statistics().connections == 50 and not server.clients)
        server.stop()
        thread.join(20)
        server.close()
