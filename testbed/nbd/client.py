"""One NBD connection for an emulated kernel: whoever queues requests also decides when to send and when to receive.

The socket never blocks. `send_pending` gathers headers and pages straight from their memoryviews, as many as one
sendmsg takes; `receive` takes what one recvmsg brings, which is usually many replies, straight into the pages of the
read under way.
"""

import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import cast

from testbed.nbd.client_handshake import ClientHandshake, Event, ExportInformation, ExportListed, TlsBegins
from testbed.nbd.client_protocol import MAX_PIECES, Buffer, ClientProtocol, Reply
from testbed.nbd.client_structured import StructuredClientProtocol
from testbed.nbd.client_tls import TlsFiles, TlsSocket
from testbed.nbd.constants import MAX_REQUEST_LENGTH, Option
from testbed.nbd.errors import NbdDisconnected, NbdError

HANDSHAKE_TIMEOUT = 10.0  # seconds
Transfer = Callable[..., None]


class NbdClient:
    """A connection in its transmission phase.

    `export_size` is in bytes, `transmission_flags` as the server sent them. `bytes_sent` were handed to the kernel,
    `bytes_received` taken from the socket, both since transmission began. The request methods only queue; they raise
    ValueError for a handle in flight, and for a READ or WRITE that the export's block sizes do not allow.
    """

    def __init__(self, sock: socket.socket, export: ExportInformation, *, structured_replies: bool = False) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.export = export
        self.export_size = export.size
        self.transmission_flags = export.transmission_flags
        self.bytes_sent = 0
        self.bytes_received = 0
        self._protocol = StructuredClientProtocol() if structured_replies else ClientProtocol()
        self.read = self._checked(self._protocol.read)
        self.write = self._checked(self._protocol.write)
        self.flush = self._protocol.flush
        self.trim = self._protocol.trim
        self.write_zeroes = self._protocol.write_zeroes
        self.cache = self._protocol.cache
        self.disconnect = self._protocol.disconnect

    def _checked(self, request: Transfer) -> Transfer:
        """Only if the server has told of block sizes that matter is anything looked at for each request."""
        export = self.export
        minimum, maximum = max(export.minimum_block_size, 1), export.maximum_block_size or MAX_REQUEST_LENGTH
        if minimum == 1 and maximum >= MAX_REQUEST_LENGTH:
            return request

        def checked(handle: int, offset: int, buffers: Sequence[memoryview], **flags: bool) -> None:
            length = sum(map(len, buffers))
            if offset % minimum or length % minimum:
                raise ValueError(f"the export takes requests at multiples of {minimum} bytes, not {length} at {offset}")
            if length > maximum:
                raise ValueError(f"the export takes requests of at most {maximum} bytes, not {length}")
            request(handle, offset, buffers, **flags)

        return checked

    @property
    def in_flight(self) -> int:
        """Requests without a reply."""
        return self._protocol.in_flight

    @property
    def pending_bytes(self) -> int:
        """Bytes queued and not yet handed to the kernel."""
        return self._protocol.outgoing_bytes

    def fileno(self) -> int:
        return self.sock.fileno()

    def send_pending(self, most: int | None = None) -> bool:
        """Send until nothing is left (True), or the socket takes no more for now or `most` bytes are out (False).

        Raises NbdDisconnected.
        """
        protocol = self._protocol
        outgoing = protocol.outgoing
        left = protocol.outgoing_bytes if most is None else min(most, protocol.outgoing_bytes)
        while left > 0:
            everything = left == protocol.outgoing_bytes and len(outgoing) <= MAX_PIECES
            try:
                sent = self.sock.sendmsg(outgoing if everything else _first(outgoing, left))
            except BlockingIOError:
                return False
            except OSError as error:
                raise _broken(error) from error
            left -= sent
            self.bytes_sent += sent
            protocol.sent(sent)
        return not protocol.outgoing_bytes

    def receive(self) -> list[Reply]:
        """The (handle, error) of each request that one non-blocking receive completes; none if nothing has come.

        `error` is 0 or an NBD_E... number. Raises NbdDisconnected at the end of the stream and NbdError when the server
        breaks the protocol.
        """
        try:
            count = self.sock.recvmsg_into(self._protocol.next_buffers())[0]
        except BlockingIOError:
            return []
        except OSError as error:
            raise _broken(error) from error
        if not count:
            raise NbdDisconnected("the NBD server closed the connection")
        self.bytes_received += count
        return self._protocol.received(count)

    def unacknowledged(self) -> int:
        """Bytes handed to the kernel that the peer's TCP has not acknowledged yet (SIOCOUTQ)."""
        return int(struct.unpack("i", fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])

    def close(self) -> None:
        self.sock.close()


def _first(outgoing: Iterable[Buffer], most: int) -> list[Buffer]:
    """The first `most` bytes, in no more pieces than one call takes."""
    pieces: list[Buffer] = []
    for piece in islice(outgoing, MAX_PIECES):
        pieces.append(piece if len(piece) <= most else memoryview(piece)[:most])
        most -= len(piece)
        if most <= 0:
            break
    return pieces


class TlsNbdClient(NbdClient):
    """A connection whose socket encrypts. `bytes_received` are those of the wire, records and all."""

    def __init__(self, sock: socket.socket, export: ExportInformation, *, structured_replies: bool = False) -> None:
        super().__init__(sock, export, structured_replies=structured_replies)
        self.bytes_received = cast(TlsSocket, sock).wire_received

    def receive(self) -> list[Reply]:
        """As `NbdClient.receive`, until nothing decrypted is left, of which no selector would tell."""
        tls = cast(TlsSocket, self.sock)
        replies = super().receive()
        while tls.pending() and (more := super().receive()):
            replies += more
        self.bytes_received = tls.wire_received
        return replies

    def unacknowledged(self) -> int:
        """Bytes that are not acknowledged or not even sent, records and all."""
        return super().unacknowledged() + cast(TlsSocket, self.sock).unsent


def open_connection(
    sock: socket.socket,
    export_name: str = "",
    timeout: float | None = HANDSHAKE_TIMEOUT,
    tls: TlsFiles | None = None,
    *,
    structured_replies: bool = False,
) -> NbdClient:
    """Choose the export on a connected socket, waiting at most `timeout` seconds for each answer.

    With `structured_replies` the server is asked for them. `tls` encrypts, or fails.
    Raises NbdError, with one clear line, when the server refuses, falls silent or is not an NBD server. The socket
    stays the caller's to close when this fails.
    """
    handshake = ClientHandshake(export_name, tls=tls is not None, ask_structured_replies=structured_replies)
    connection = _Connection(sock, timeout, tls)
    for event in connection.shake_hands(handshake):
        if isinstance(event, ExportInformation):
            kind = NbdClient if tls is None else TlsNbdClient
            return kind(connection.sock, event, structured_replies=handshake.structured_replies)
    raise NbdError("the NBD server granted no export")


def list_exports(sock: socket.socket, timeout: float | None = HANDSHAKE_TIMEOUT) -> list[ExportListed]:
    """The server's exports, by NBD_OPT_LIST; the connection is used up. Raises NbdError as `open_connection` does."""
    events = _Connection(sock, timeout).shake_hands(ClientHandshake(goal=Option.NBD_OPT_LIST))
    return [event for event in events if isinstance(event, ExportListed)]


def export_information(
    sock: socket.socket, export_name: str = "", timeout: float | None = HANDSHAKE_TIMEOUT
) -> ExportInformation:
    """What the server tells of an export, by NBD_OPT_INFO; the connection is used up. Raises NbdError likewise."""
    events = _Connection(sock, timeout).shake_hands(ClientHandshake(export_name, Option.NBD_OPT_INFO))
    return next(event for event in events if isinstance(event, ExportInformation))


class _Connection:
    """A socket during the handshake, in which TLS may take its place."""

    def __init__(self, sock: socket.socket, timeout: float | None, tls: TlsFiles | None = None) -> None:
        self.sock = sock
        self._timeout = timeout
        self._tls = tls
        sock.settimeout(timeout)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def shake_hands(self, handshake: ClientHandshake) -> list[Event]:
        events: list[Event] = []
        while not handshake.finished:
            data = self._receive()
            if not data:
                raise NbdDisconnected("the NBD server closed the connection during the handshake")
            for event in handshake.received(data):
                events.append(event)
                if isinstance(event, TlsBegins):
                    self._start_tls()
                    handshake.tls_started()
            with contextlib.suppress(OSError):  # a peer that is gone is told of by the next recv, or no longer needed
                self.sock.sendall(handshake.data_to_send())
        return events

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(65536)
        except TimeoutError as error:
            raise NbdError(f"the NBD server did not answer within {self._timeout:g} s") from error
        except OSError as error:
            raise _broken(error) from error

    def _start_tls(self) -> None:
        assert self._tls is not None
        encrypted = TlsSocket(self.sock, self._tls)
        try:
            encrypted.do_handshake()
        except TimeoutError as error:
            raise NbdError(f"the NBD server did not answer within {self._timeout:g} s") from error
        except OSError as error:
            raise _broken(error) from error
        self.sock = cast(socket.socket, encrypted)


def _broken(error: OSError) -> NbdDisconnected:
    return NbdDisconnected(f"the connection to the NBD server broke: {error.strerror or error}")
