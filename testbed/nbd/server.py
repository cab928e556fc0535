"""A small, fast NBD server: a thread for each connection.

A thread sleeps in recvmsg, carries out every request that came in one go, and answers all of them with one gathered
sendmsg, data straight from the export. Batching is what makes Python fast enough. Backpressure is the kernel's: a
client that does not read its replies is not read from either.
"""

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from testbed.nbd.constants import SIMPLE_REPLY, NbdErrno
from testbed.nbd.export import Export
from testbed.nbd.server_protocol import (
    Disconnect,
    ExportChosen,
    Flush,
    Read,
    Refused,
    ServerProtocol,
    Trim,
    Violation,
    Write,
    simple_reply,
)

MAX_PIECES = 1000  # below IOV_MAX, with room for one more reply
MAX_BATCH = 1 << 20  # bytes of replies gathered before they are sent
MAX_CONNECTIONS = 256
HANDSHAKE_TIMEOUT = 30.0  # seconds that a client may be silent before it has chosen an export
STOP_TIMEOUT = 2.0  # seconds

NBD_ERRORS = {
    errno.EPERM: NbdErrno.NBD_EPERM,
    errno.EACCES: NbdErrno.NBD_EPERM,
    errno.EROFS: NbdErrno.NBD_EPERM,
    errno.ENOMEM: NbdErrno.NBD_ENOMEM,
    errno.EINVAL: NbdErrno.NBD_EINVAL,
    errno.ENOSPC: NbdErrno.NBD_ENOSPC,
    errno.EDQUOT: NbdErrno.NBD_ENOSPC,
    errno.EFBIG: NbdErrno.NBD_ENOSPC,
}  # every other errno is NBD_EIO


@dataclass(slots=True)
class ServerStatistics:
    """Counts since the server began: requests carried out, by kind, and `errors`, the requests answered with an error.
    """

    connections: int = 0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    trims: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0

    def add(self, other: "ServerStatistics") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class NbdServer:
    """Serve `exports`, by name, on a listening socket; the first is the default export.

    `log` is called, by the thread concerned, with one line for each client that had to be hung up on.
    """

    def __init__(
        self, listener: socket.socket, exports: Mapping[str, Export], *, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self._listener = listener
        self._exports = dict(exports)
        self._log = log
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, tuple[threading.Thread, ServerStatistics]] = {}
        self._finished = ServerStatistics()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = False

    def statistics(self) -> ServerStatistics:
        """A snapshot; any thread may ask, at any time."""
        total = ServerStatistics()
        with self._lock:
            total.add(self._finished)
            for _, statistics in self._connections.values():
                total.add(statistics)
        return total

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._connections)

    def stop(self) -> None:
        """Make `serve` return. Safe in a signal handler and in any thread."""
        self._stopped = True
        os.eventfd_write(self._wakeup, 1)

    def serve(self) -> None:
        """Accept clients until `stop`, then hang up on all of them. The listener and the exports stay the caller's to
        close.
        """
        self._listener.setblocking(False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        try:
            while not self._stopped:
                poll.poll()
                if not self._stopped:
                    self._accept()
        finally:
            self._hang_up()

    def close(self) -> None:
        """Release the file descriptor that `stop` needs; call it once `serve` has returned and nobody calls `stop`."""
        os.close(self._wakeup)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            self._log(f"cannot accept a client for now: {error.strerror}")
            time.sleep(0.1)
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._log(f"refused a client: {MAX_CONNECTIONS} are connected")
            sock.close()
            return
        statistics = ServerStatistics(connections=1)
        thread = threading.Thread(target=self._run, args=(sock, statistics), name="nbd connection", daemon=True)
        with self._lock:
            self._connections[sock] = thread, statistics
        try:
            thread.start()
        except RuntimeError as error:
            self._log(f"refused a client: {error}")
            with self._lock:
                del self._connections[sock]
            sock.close()

    def _run(self, sock: socket.socket, statistics: ServerStatistics) -> None:
        try:
            serve_connection(sock, self._exports, statistics, self._log)
        except OSError as error:
            self._log(f"lost a client: {error.strerror or error}")
        finally:
            with self._lock:
                del self._connections[sock]
                self._finished.add(statistics)
            sock.close()

    def _hang_up(self) -> None:
        with self._lock:
            connections = [(sock, thread) for sock, (thread, _) in self._connections.items()]
            for sock, _ in connections:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError as error:
                    if error.errno != errno.ENOTCONN:
                        raise
        deadline = time.monotonic() + STOP_TIMEOUT
        for _, thread in connections:
            thread.join(max(0.0, deadline - time.monotonic()))


def serve_connection(
    sock: socket.socket,
    exports: Mapping[str, Export],
    statistics: ServerStatistics,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve one connected client until it leaves, counting into `statistics`. Raises OSError when it vanishes."""
    protocol = ServerProtocol(exports)
    sock.settimeout(HANDSHAKE_TIMEOUT)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.sendall(protocol.data_to_send())
    export = next(iter(exports.values()))
    pieces: list[bytes | memoryview] = []
    gathered = 0  # bytes in pieces
    while count := sock.recvmsg_into(protocol.next_buffers())[0]:
        events = protocol.received(count)
        if protocol.answering:
            sock.sendall(protocol.data_to_send())
        for event in events:
            if isinstance(event, Read):
                handle, offset, length = event
                try:
                    data = export.read(offset, length)
                except OSError as failure:
                    pieces.append(_failed(handle, failure, statistics))
                else:
                    pieces += simple_reply(handle), data
                    gathered += length
                    statistics.reads += 1
                    statistics.bytes_read += length
            elif isinstance(event, Write):
                handle, offset, data, fua = event
                try:
                    export.commit(offset, data)
                    if fua:
                        export.flush()
                except OSError as failure:
                    pieces.append(_failed(handle, failure, statistics))
                else:
                    pieces.append(simple_reply(handle))
                    statistics.writes += 1
                    statistics.bytes_written += len(data)
            elif isinstance(event, ExportChosen):
                export = exports[event.name]
                sock.settimeout(None)
                continue
            elif isinstance(event, Disconnect | Violation):
                _send(sock, pieces, gathered)
                if isinstance(event, Violation):
                    log(f"hung up on a client: {event.reason}")
                return
            else:
                pieces.append(_carry_out(event, export, statistics))
            gathered += SIMPLE_REPLY.size
            if gathered >= MAX_BATCH or len(pieces) >= MAX_PIECES:
                _send(sock, pieces, gathered)
                pieces, gathered = [], 0
        if pieces:
            _send(sock, pieces, gathered)
            pieces, gathered = [], 0


def _carry_out(event: Flush | Trim | Refused, export: Export, statistics: ServerStatistics) -> bytes:
    """Do what `event` asks; returns the reply."""
    try:
        if isinstance(event, Flush):
            export.flush()
            statistics.flushes += 1
        elif isinstance(event, Trim):
            export.trim(event.offset, event.length)
            if event.fua:
                export.flush()
            statistics.trims += 1
        else:
            statistics.errors += 1
            return simple_reply(event.handle, event.error)
    except OSError as failure:
        return _failed(event.handle, failure, statistics)
    return simple_reply(event.handle)


def _failed(handle: int, failure: OSError, statistics: ServerStatistics) -> bytes:
    statistics.errors += 1
    return simple_reply(handle, NBD_ERRORS.get(failure.errno or 0, NbdErrno.NBD_EIO))


def _send(sock: socket.socket, pieces: list[bytes | memoryview], length: int) -> None:
    """All of `pieces`, `length` bytes together, however many calls it takes."""
    while length:
        sent = sock.sendmsg(pieces)
        length -= sent
        if not length:
            return
        whole = 0
        while sent >= len(pieces[whole]):
            sent -= len(pieces[whole])
            whole += 1
        pieces = pieces[whole:]
        pieces[0] = memoryview(pieces[0])[sent:]
