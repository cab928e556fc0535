"""A WRITE that began to arrive while faults acted is stored although they are over when its end comes."""

from __future__ import annotations

import socket
import struct
import threading

from testbed.nbd.client import open_connection
from testbed.nbd.connection import Connection
from testbed.nbd.export import MemoryExport
from testbed.nbd.faults import make
from testbed.nbd.faults.active import ActiveFaults
from testbed.nbd.transmission import ServerStatistics

REQUEST = struct.Struct(">IHHQQI")
MAGIC, READ, WRITE = 0x25609513, 0, 1
LENGTH = 1 << 20
"""More than one receive brings."""


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more
        data += more
    return data


def test_a_payload_that_landed_aside_is_not_forgotten_when_the_last_fault_ends() -> None:
    ours, theirs = socket.socketpair()
    export, faults = MemoryExport(2 * LENGTH), ActiveFaults()
    connection = Connection(theirs, {"": export}, ServerStatistics(), faults=faults)
    server = threading.Thread(target=connection.serve)
    server.start()
    with ours, theirs:
        open_connection(ours)
        ours.setblocking(True)
        faults.set(1, make("eio_flush", {}, 1))
        read = REQUEST.pack(MAGIC, 0, READ, 1, 0, 512)
        ours.sendall(read)
        exactly(ours, 16 + 512)
        payload = bytes(range(256)) * (LENGTH // 256)
        ours.sendall(read + REQUEST.pack(MAGIC, 0, WRITE, 2, 4096, LENGTH) + payload[:100])
        exactly(ours, 16 + 512)
        faults.clear(1)
        ours.sendall(payload[100:])
        assert exactly(ours, 16)[4:8] == bytes(4)
        assert bytes(export.read(4096, LENGTH)) == payload
        ours.shutdown(socket.SHUT_WR)
        server.join()
