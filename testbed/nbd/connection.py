"""One client's connection to our server, in a thread of its own.

The thread sleeps in recvmsg, carries out every request that came in one go, and answers all of them with one gathered
sendmsg, data straight from the export. Batching is what makes Python fast enough. Backpressure is the kernel's: a
client that does not read its replies is not read from either.
"""

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping

from testbed.nbd.constants import SIMPLE_REPLY, NbdErrno
from testbed.nbd.export import Export
from testbed.nbd.faults.active import ActiveFaults, HangUp
from testbed.nbd.faults.faulty import FaultyTransmission
from testbed.nbd.payload_memory import GATHERED
from testbed.nbd.replies import simple_reply
from testbed.nbd.server_handshake import TlsMode
from testbed.nbd.server_protocol import (
    Disconnect,
    Event,
    ExportChosen,
    Read,
    Request,
    ServerProtocol,
    StartTls,
    Violation,
    Write,
    WritePart,
)
from testbed.nbd.tls import TlsStream
from testbed.nbd.transmission import Reply, ServerStatistics, Transmission

IOV_MAX = 1024
MAX_PIECES = 1000  # with room for one more simple reply
MAX_BATCH = GATHERED  # bytes of replies gathered before they are sent
HEADER = SIMPLE_REPLY.size
HANDSHAKE_TIMEOUT = 30.0  # seconds that a client may be silent before it has chosen an export

Log = Callable[[str], None]
Turn = ExportChosen | StartTls | Disconnect | Violation


class Connection:
    """A connected client of `exports`; what it does is counted into `statistics`.

    `stopping` may be set by another thread: from then on requests are answered with ESHUTDOWN.
    """

    def __init__(
        self,
        sock: socket.socket,
        exports: Mapping[str, Export],
        statistics: ServerStatistics,
        *,
        log: Log = lambda line: None,
        tls: ssl.SSLContext | None = None,
        tls_mode: TlsMode = TlsMode.NOTLS,
        faults: ActiveFaults | None = None,
    ) -> None:
        self.stopping = False
        self._sock: socket.socket | TlsStream = sock
        self._plain = sock
        self._exports = exports
        self._statistics = statistics
        self._log = log
        self._tls = tls
        self._faults = faults or ActiveFaults()
        self._failed: dict[int, OSError] = {}  # WRITEs of which a part could not be stored, by handle
        self._careful = False  # payloads land aside, where a fault can keep them from the export
        self._protocol = ServerProtocol(exports, tls_mode)
        self._serve_export(next(iter(exports.values())))

    def serve(self) -> None:
        """Until the client leaves. Raises OSError when it vanishes."""
        protocol = self._protocol
        self._plain.settimeout(HANDSHAKE_TIMEOUT)
        if self._plain.family in (socket.AF_INET, socket.AF_INET6):
            self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            self._faults.before_negotiation()
            self._sock.sendall(protocol.data_to_send())
            while count := self._sock.recvmsg_into(protocol.next_buffers())[0]:
                if self._faults.acting and not self._careful:
                    self._careful = True
                    protocol.landing = _aside
                if not self._carry_out(protocol.received(count)):
                    return
        except HangUp as fault:
            self._sock.sendall(fault.last_words)
        finally:
            if isinstance(self._sock, TlsStream):
                self._sock.close()

    def _carry_out(self, events: list[Event]) -> bool:
        """All that came in one go; False when that was the end."""
        if self._protocol.answering:
            self._sock.sendall(self._faults.option_reply(self._protocol.data_to_send()))
        if self._faults.acting or self._careful or self.stopping:
            return self._carry_out_with_care(events)
        following = iter(events)
        while (turn := self._transmit(following)) is not None:
            if not self._turn(turn):
                return False
        return True

    def _transmit(self, events: Iterator[Event]) -> Turn | None:
        """Carry out and answer requests until the connection is to enter another phase."""
        sock, transmission, statistics = self._sock, self._transmission, self._statistics
        export, undivided = transmission.export, transmission.undivided
        data_header, data_header_size = transmission.data_header, transmission.data_header_size
        pieces: Reply = []
        gathered = 0  # bytes in pieces
        turn = None
        for event in events:
            try:
                if isinstance(event, Read) and 0 < event.length < undivided:
                    handle, offset, length = event
                    data = export.read(offset, length)
                    pieces += data_header(handle, offset, length), data
                    gathered += data_header_size + length
                    statistics.reads += 1
                    statistics.bytes_read += length
                elif isinstance(event, Write):
                    handle, offset, data, fua = event
                    if self._failed and handle in self._failed:
                        raise self._failed.pop(handle)
                    export.commit(offset, data)
                    if fua:
                        export.flush()
                    pieces.append(simple_reply(handle))
                    gathered += HEADER
                    statistics.writes += 1
                    statistics.bytes_written += len(data)
                elif isinstance(event, WritePart):
                    self._store_part(event)
                elif isinstance(event, Turn):
                    turn = event
                    break
                else:
                    reply = transmission.answer(event)
                    pieces += reply
                    gathered += sum(map(len, reply))
            except OSError as failure:
                reply = transmission.fail(handle, failure)
                pieces += reply
                gathered += sum(map(len, reply))
            if gathered >= MAX_BATCH or len(pieces) >= MAX_PIECES:
                _send(sock, pieces, gathered)
                pieces, gathered = [], 0
        _send(sock, pieces, gathered)
        return turn

    def _carry_out_with_care(self, events: list[Event]) -> bool:
        """The same while faults act, or while the server stops: one after the other, each reply by itself."""
        for event in events:
            if isinstance(event, Turn):
                if not self._turn(event):
                    return False
            elif isinstance(event, WritePart):
                self._store_part(event)
            elif self.stopping:
                self._sock.sendall(b"".join(self._transmission.refuse(event.handle, NbdErrno.NBD_ESHUTDOWN)))
            else:
                for data in self._answers(event):
                    self._sock.sendall(data)
        for data in self._faulty.late():
            self._sock.sendall(data)
        acting = self._faults.acting
        self._protocol.landing = _aside if acting else self._transmission.export.landing
        self._careful = acting or (self._careful and self._protocol.writing)
        return True

    def _answers(self, request: Request) -> Iterable[bytes]:
        if failure := self._failed.pop(request.handle, None):
            return [b"".join(self._transmission.fail(request.handle, failure))]
        return self._faulty.answers(request)

    def _store_part(self, part: WritePart) -> None:
        """Part of a WRITE goes to the export at once; whether all went well is said at the end of it."""
        try:
            self._transmission.export.commit(part.offset, part.data)
            self._statistics.bytes_written += len(part.data)
        except OSError as failure:
            self._failed[part.handle] = failure

    def _turn(self, event: Turn) -> bool:
        """The connection enters another phase; False if that is its end."""
        if isinstance(event, ExportChosen):
            self._serve_export(self._exports[event.name])
            self._sock.settimeout(None)
            return True
        if isinstance(event, StartTls):
            assert self._tls is not None
            self._sock = TlsStream(self._plain, self._tls)
            return True
        if isinstance(event, Violation):
            self._log(f"hung up on a client: {event.reason}")
        return False

    def _serve_export(self, export: Export) -> None:
        self._transmission = Transmission(export, self._statistics, self._protocol.structured)
        self._faulty = FaultyTransmission(self._transmission, self._faults)


def serve_connection(
    sock: socket.socket, exports: Mapping[str, Export], statistics: ServerStatistics, log: Log = lambda line: None
) -> None:
    """Serve one connected client, without TLS and without faults, until it leaves. Raises OSError when it vanishes."""
    Connection(sock, exports, statistics, log=log).serve()


def _aside(offset: int, length: int) -> memoryview:
    """Memory that is not the export's."""
    return memoryview(bytearray(length))


def _send(sock: socket.socket | TlsStream, pieces: Reply, length: int) -> None:
    """All of `pieces`, `length` bytes together, however many calls it takes."""
    while length:
        sent = sock.sendmsg(pieces if len(pieces) <= IOV_MAX else pieces[:IOV_MAX])
        length -= sent
        if not length:
            return
        whole = 0
        while sent >= len(pieces[whole]):
            sent -= len(pieces[whole])
            whole += 1
        pieces = pieces[whole:]
        pieces[0] = memoryview(pieces[0])[sent:]
