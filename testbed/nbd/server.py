"""A small, fast NBD server: a thread for each connection, and one that lets clients in, or not."""

import contextlib
import errno
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from testbed.nbd.connection import Connection
from testbed.nbd.export import Export
from testbed.nbd.faults.active import ActiveFaults
from testbed.nbd.server_handshake import TlsMode
from testbed.nbd.transmission import ServerStatistics

CLIENTS_MAX = 256
DRAIN_TIMEOUT = 0.5  # seconds in which a server that stops answers what it was asked already
STOP_TIMEOUT = 2.0  # seconds

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come in: `clients_max` at a time, from `networks` (from everywhere, if there are none; clients on a unix
    socket have no address), and with `tls` as `tls_mode` says.
    """

    clients_max: int = CLIENTS_MAX
    networks: Sequence[Network] = ()
    tls_mode: TlsMode = TlsMode.NOTLS
    tls: ssl.SSLContext | None = None

    def admits(self, address: object) -> bool:
        """Is a peer with this socket address one of them?"""
        if not self.networks or not isinstance(address, tuple):
            return True
        peer = ipaddress.ip_address(str(address[0]).partition("%")[0])
        peer = getattr(peer, "ipv4_mapped", None) or peer
        return any(peer in network for network in self.networks)


ANYBODY = Access()


@dataclass(slots=True)
class _Client:
    thread: threading.Thread
    connection: Connection
    statistics: ServerStatistics


class NbdServer:
    """Serve `exports`, by name, on a listening socket; the first is the default export.

    `faults` may be set and cleared at any time. `log` is called, by the thread concerned, with one line for each client
    that had to be hung up on.
    """

    def __init__(
        self,
        listener: socket.socket,
        exports: Mapping[str, Export],
        *,
        access: Access = Access(),
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.faults = ActiveFaults()
        self._listener = listener
        self._exports = dict(exports)
        self._access = access
        self._log = log
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, _Client] = {}
        self._finished = ServerStatistics()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = False

    def statistics(self) -> ServerStatistics:
        """A snapshot; any thread may ask, at any time."""
        total = ServerStatistics()
        with self._lock:
            total.add(self._finished)
            for client in self._clients.values():
                total.add(client.statistics)
        return total

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

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
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            self._log(f"cannot accept a client for now: {error.strerror}")
            time.sleep(0.1)
            return
        refusal = self._refusal(address)
        if refusal:
            self._log(f"refused a client: {refusal}")
            sock.close()
            return
        statistics = ServerStatistics(connections=1)
        access = self._access
        connection = Connection(
            sock, self._exports, statistics,
            log=self._log, tls=access.tls, tls_mode=access.tls_mode, faults=self.faults,
        )  # fmt: skip
        thread = threading.Thread(target=self._run, args=(sock, connection), name="nbd connection", daemon=True)
        with self._lock:
            self._clients[sock] = _Client(thread, connection, statistics)
        try:
            thread.start()
        except RuntimeError as error:
            self._log(f"refused a client: {error}")
            with self._lock:
                del self._clients[sock]
            sock.close()

    def _refusal(self, address: object) -> str:
        """Why a client from there may not come in now, or nothing."""
        if not self._access.admits(address):
            return f"{address[0]} is not an address allowed"  # type: ignore[index]
        if len(self._clients) >= self._access.clients_max:
            return f"{self._access.clients_max} are connected"
        return ""

    def _run(self, sock: socket.socket, connection: Connection) -> None:
        try:
            connection.serve()
        except OSError as error:
            self._log(f"lost a client: {error.strerror or error}")
        finally:
            with self._lock:
                self._finished.add(self._clients.pop(sock).statistics)
            sock.close()

    def _hang_up(self) -> None:
        """First nothing more is heard, and what was is refused; then nothing more is said."""
        self.faults.close()
        with self._lock:
            clients = dict(self._clients)
        for client in clients.values():
            client.connection.stopping = True
        for how, seconds in ((socket.SHUT_RD, DRAIN_TIMEOUT), (socket.SHUT_RDWR, STOP_TIMEOUT)):
            with self._lock:
                for sock in self._clients:
                    _shut_down(sock, how)
            deadline = time.monotonic() + seconds
            for client in clients.values():
                client.thread.join(max(0.0, deadline - time.monotonic()))


def _shut_down(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the client may have left by itself
        sock.shutdown(how)
