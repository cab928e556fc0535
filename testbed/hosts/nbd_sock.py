"""One connection of the NBD device (`struct nbd_sock`): the model's socket, the real one, and the requests on them.

A connection dies once and for all; what takes its place is another `NbdSock`. When it dies its memory is freed at once,
and whoever still waits inside `tcp_sendmsg` finds a broken pipe when it gets memory at last.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.hosts.hardware_queue import Request
from testbed.hosts.same_host import SameHostServer
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.client import NbdClient
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tcp_output import TcpSendQueue

NBD_REQUEST_SIZE = 28


@dataclass(frozen=True, slots=True)
class SwapSocket:
    """The model's socket of one connection, with what it receives and what it sends."""

    receive_queue: TcpReceiveQueue
    send_queue: TcpSendQueue

    @property
    def sk(self) -> Sock:
        return self.receive_queue.sk

    def close(self) -> None:
        """Free all that it holds, and leave its protocol. What waits for its owner to let go is received first."""
        if self.sk.owner is not None and self.sk.backlog is not None:
            self.sk.backlog.release(self.sk.owner)
        self.receive_queue.purge()
        self.send_queue.shutdown_and_purge()
        self.sk.sk_free()


class NbdSock:
    """A `client` in its transmission phase and the model's `socket` for it.

    `server` is given if it runs on this machine too: then it has to find memory for a request before that goes out.
    """

    def __init__(self, client: NbdClient, socket: SwapSocket, server: SameHostServer | None = None) -> None:
        self.client = client
        self.socket = socket
        self._server = server
        self.in_flight: dict[int, Request] = {}
        self.dead = False
        self._receive_queue = socket.receive_queue
        self._send_queue = socket.send_queue
        self._send_queue.write_seq = client.bytes_sent
        self._read_before = client.bytes_received
        if server is not None:
            server.attach(self._send_queue, self._push_some)

    @property
    def oldest(self) -> float | None:
        """When the oldest request under way was sent, seconds."""
        return next(iter(self.in_flight.values())).sent_at if self.in_flight else None

    async def send(self, handle: int, request: Request, current: Task, sk_allocation: int) -> None:
        """Find memory for the request's bytes and give the real socket what it takes of them.

        Raises BrokenPipeError when the connection dies meanwhile, and NbdError when it is found dead.
        """
        size = NBD_REQUEST_SIZE + (len(request.pages) * PAGE_SIZE if request.write else 0)
        self.in_flight[handle] = request
        start = self.client.write if request.write else self.client.read
        start(handle, request.entry * PAGE_SIZE, [page.buffer for page in request.pages])
        self._send_queue.sk.sk_allocation = sk_allocation
        if self._server is not None:
            self._server.expect(self._send_queue.write_seq + size, handle, request)
        await self._send_queue.tcp_sendmsg(size, current, self._push_some)
        if self._server is not None:
            self._server.data_ready()

    def _push_some(self) -> None:
        if not self.dead:
            self.push()

    def push(self) -> bool:
        """Send what has its memory; True when all of it is out. Raises NbdError."""
        paid = self._send_queue.write_seq
        if self._server is not None:
            self._server.data_ready()
            paid = self._server.carried_out
        return self.client.send_pending(paid - self.client.bytes_sent) or self.client.bytes_sent == paid

    def receive(self) -> list[tuple[Request, int]]:
        """The requests whose replies have arrived, each with its error. Raises NbdError."""
        replies = self.client.receive()
        received = self.client.bytes_received
        self._receive_queue.copied(received - self._read_before)
        self._read_before = received
        if self._server is not None:
            self._server.replies_read(handle for handle, _ in replies)
        return [(self.in_flight.pop(handle), error) for handle, error in replies]

    def close(self) -> None:
        """Free all that the connection holds; the server finds it gone."""
        self.client.close()
        self.socket.close()
        if self._server is not None:
            self._server.data_ready()

    def tcp_ack(self) -> bool:
        """TCP may have taken in acknowledgements: free the send memory they cover, and send what the socket had no room
        for before. True while some is unacknowledged. Raises NbdError.
        """
        client, send_queue = self.client, self._send_queue
        if client.bytes_sent < send_queue.write_seq:
            self.push()
        if self._send_queue.sk.wmem_queued:
            send_queue.tcp_clean_rtx_queue(client.bytes_sent - client.unacknowledged())
        return send_queue.sk.wmem_queued > 0
