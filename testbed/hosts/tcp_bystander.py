"""Unrelated TCP sockets on the client: a real listening socket, and a receive queue in the model for each connection.

The model has a connection from its SYN on, before the real socket is accepted: the SYN itself is an skb. What the
model drops the real TCP never sees, and the peer's real TCP sends it again.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

from testbed.hosts.bystander import Receiver
from testbed.hosts.real_buffer import enlarge
from testbed.net.dev import NetDevice
from testbed.net.sk_mem import Proto
from testbed.net.skbuff import SkbMemory
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue

BYTES_AT_ONCE = 64 << 10
PAYLOAD_SHARE = 0.3
"""SO_RCVBUF of the real socket as a share of the model's limit: the kernel doubles it and offers its peer that window,
and a frame's true size is about one and a half times its data."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Peer = tuple[int, int]
"""IPv4 address and port, as they are in the header."""


class TcpConnection(Receiver):
    """An accepted connection."""

    def __init__(self, queue: TcpReceiveQueue, real: socket.socket) -> None:
        super().__init__(queue.sk, real)
        self.queue = queue
        real.setblocking(False)
        real.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def read(self, device: NetDevice) -> int:
        """As `Receiver.read`, in bytes."""
        try:
            count = len(self.real.recv(BYTES_AT_ONCE))
        except BlockingIOError:
            return 0
        except OSError:
            count = 0
        if not count:
            asyncio.get_running_loop().remove_reader(self.real.fileno())
        self.received += count
        self.queue.copied(count)
        return count


class TcpBystander:
    """The socket `real` that listens on `port`; the model limits each of its connections to `rcvbuf` bytes."""

    def __init__(  # noqa: PLR0917
        self, name: str, port: int, rcvbuf: int, real: socket.socket, skb_memory: SkbMemory, prot: Proto
    ) -> None:
        self.name = name
        self.port = port
        self.rcvbuf = rcvbuf
        self.connections: list[TcpConnection] = []
        self.reading = True
        self._skb_memory = skb_memory
        self._prot = prot
        self._queues: dict[Peer, TcpReceiveQueue] = {}
        self._replaced: list[TcpReceiveQueue] = []
        self.real = real

    def connection_request(self, peer: Peer) -> TcpReceiveQueue:
        """`tcp_v4_conn_request`: a SYN from `peer` has come; the queue of the connection that it asks for."""
        if peer in self._queues:
            self._replaced.append(self._queues[peer])
        queue = TcpReceiveQueue(Sock(self.name, self.rcvbuf, prot=self._prot), self._skb_memory)
        self._queues[peer] = queue
        return queue

    @property
    def queues(self) -> list[TcpReceiveQueue]:
        """The receive queues of all connections there have been."""
        return [*self._queues.values(), *self._replaced]

    def accept_each(self, begin: Callable[[TcpConnection], None]) -> None:
        """Accept connections as they come, and call `begin` with each."""
        asyncio.get_running_loop().add_reader(self.real.fileno(), self._accept, begin)

    def _accept(self, begin: Callable[[TcpConnection], None]) -> None:
        try:
            real, (address, port) = self.real.accept()
        except OSError:
            return
        peer = int.from_bytes(socket.inet_aton(address), "big"), port
        connection = TcpConnection(self._queues[peer], real)
        connection.reading = self.reading
        self.connections.append(connection)
        begin(connection)

    def stop_reading(self) -> None:
        """As `Receiver.stop_reading`, on all connections, later ones too."""
        self.reading = False
        for connection in self.connections:
            connection.stop_reading()

    def read_again(self) -> None:
        """As `Receiver.read_again`."""
        self.reading = True
        for connection in self.connections:
            connection.read_again()

    @property
    def received(self) -> int:
        """Bytes that have been read from all connections."""
        return sum(connection.received for connection in self.connections)

    def drain(self, device: NetDevice) -> None:
        """At the end: count what the real sockets still hold, close them, and free the model's queues."""
        asyncio.get_running_loop().remove_reader(self.real.fileno())
        for connection in self.connections:
            connection.drain(device)
        self.real.close()
        for queue in self.queues:
            queue.purge()


def tcp_listener(address: str, port: int, rcvbuf: int) -> socket.socket:
    """A real listening socket in this namespace, that never blocks and offers no more than the model has room for."""
    real = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    real.setblocking(False)
    enlarge(real, socket.SO_RCVBUF, int(PAYLOAD_SHARE * rcvbuf))
    real.bind((address, port))
    real.listen()
    return real
