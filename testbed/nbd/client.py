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
from collections.abc import Iterable, Sequence
from itertools import islice

from testbed.nbd.client_handshake import ClientHandshake, Event, ExportInformation, ExportListed
from testbed.nbd.client_protocol import MAX_PIECES, Buffer, ClientProtocol, Reply
from testbed.nbd.constants import Option
from testbed.nbd.errors import NbdDisconnected, NbdError

HANDSHAKE_TIMEOUT = 10.0  # seconds


class NbdClient:
    """A connection in its transmission phase.

    `export_size` is in bytes, `transmission_flags` as the server sent them. `bytes_sent` were handed to the kernel,
    `bytes_received` taken from the socket, both since transmission began. The request methods only queue; they raise
    ValueError for a handle in flight.
    """

    def __init__(self, sock: socket.socket, export: ExportInformation) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.export = export
        self.export_size = export.size
        self.transmission_flags = export.transmission_flags
        self.bytes_sent = 0
        self.bytes_received = 0
        self._protocol = ClientProtocol()
        self.read = self._protocol.read
        self.write = self._protocol.write
        self.flush = self._protocol.flush
        self.trim = self._protocol.trim
        self.disconnect = self._protocol.disconnect

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


def open_connection(sock: socket.socket, export_name: str = "", timeout: float | None = HANDSHAKE_TIMEOUT) -> NbdClient:
    """Choose the export on a connected socket, waiting at most `timeout` seconds for each answer.

    Raises NbdError, with one clear line, when the server refuses, falls silent or is not an NBD server. The socket
    stays the caller's to close when this fails.
    """
    for event in _shake_hands(sock, ClientHandshake(export_name), timeout):
        if isinstance(event, ExportInformation):
            return NbdClient(sock, event)
    raise NbdError("the NBD server granted no export")


def list_exports(sock: socket.socket, timeout: float | None = HANDSHAKE_TIMEOUT) -> list[ExportListed]:
    """The server's exports, by NBD_OPT_LIST; the connection is used up. Raises NbdError as `open_connection` does."""
    events = _shake_hands(sock, ClientHandshake(goal=Option.NBD_OPT_LIST), timeout)
    return [event for event in events if isinstance(event, ExportListed)]


def export_information(
    sock: socket.socket, export_name: str = "", timeout: float | None = HANDSHAKE_TIMEOUT
) -> ExportInformation:
    """What the server tells of an export, by NBD_OPT_INFO; the connection is used up. Raises NbdError likewise."""
    events = _shake_hands(sock, ClientHandshake(export_name, Option.NBD_OPT_INFO), timeout)
    return next(event for event in events if isinstance(event, ExportInformation))


def _shake_hands(sock: socket.socket, handshake: ClientHandshake, timeout: float | None) -> Sequence[Event]:
    events: list[Event] = []
    sock.settimeout(timeout)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while not handshake.finished:
        try:
            data = sock.recv(65536)
        except TimeoutError as error:
            raise NbdError(f"the NBD server did not answer within {timeout:g} s") from error
        except OSError as error:
            raise _broken(error) from error
        if not data:
            raise NbdDisconnected("the NBD server closed the connection during the handshake")
        events += handshake.received(data)
        with contextlib.suppress(OSError):  # a peer that is gone is told of by the next recv, or no longer needed
            sock.sendall(handshake.data_to_send())
    return events


def _broken(error: OSError) -> NbdDisconnected:
    return NbdDisconnected(f"the connection to the NBD server broke: {error.strerror or error}")
