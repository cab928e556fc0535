"""TLS for the client's end (spec: "TLS support"): which files to use, and a socket that encrypts.

The records are made here, in memory, so that the socket below never blocks and what went over the wire can be counted.
"""

import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from testbed.nbd.errors import NbdDisconnected, NbdError

RECORD = 16384  # bytes of data in one record at most
TLS_WARNING = (
    "TLS is made in user space: its buffers and its process are outside the emulated memory, while on a real host they "
    "could be swapped out themselves, and no reserve is kept for them"
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the `authority` that signed the server's certificate, and our own `certificate` and `key` for a server
    that asks for them. `hostname` is what the server's certificate must name (None: any name will do).
    """

    authority: str
    certificate: str | None = None
    key: str | None = None
    hostname: str | None = None

    def context(self) -> ssl.SSLContext:
        """How to encrypt. Raises NbdError for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.hostname is not None
        try:
            context.load_verify_locations(self.authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise NbdError(f"the TLS files cannot be used: {_reason(error)}") from error
        return context


class TlsSocket:
    """A connected socket that encrypts; it has the methods of `socket.socket` that an NBD client uses.

    `wire_received` are the bytes taken from the socket below. Raises NbdError when the handshake fails and
    NbdDisconnected for a broken record.
    """

    def __init__(self, sock: socket.socket, files: TlsFiles) -> None:
        self.sock = sock
        self.getsockopt, self.getsockname = sock.getsockopt, sock.getsockname
        self.wire_received = 0
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = files.context().wrap_bio(self._incoming, self._outgoing, server_hostname=files.hostname)

    def do_handshake(self) -> None:
        """Agree with the server, blocking as the socket below does."""
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except ssl.SSLError as error:
                self._flush()
                raise NbdError(f"TLS with the NBD server failed: {_reason(error)}") from error
            finally:
                self._flush()

    @property
    def unsent(self) -> int:
        """Encrypted bytes that the socket below had no room for yet."""
        return self._outgoing.pending

    def _flush(self) -> None:
        while self._outgoing.pending:
            data = self._outgoing.read()
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                rest = data[sent:] + self._outgoing.read()
                self._outgoing.write(rest)
            if not sent:
                return

    def _fill(self) -> None:
        """Take from the socket below. Raises BlockingIOError when there is nothing."""
        data = self.sock.recv(1 << 18)
        self.wire_received += len(data)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def sendmsg(self, buffers: Iterable[bytes | memoryview]) -> int:
        """Encrypt one record's worth and send it. Raises BlockingIOError while earlier ones wait."""
        self._flush()
        if self._outgoing.pending:
            raise BlockingIOError
        data = bytearray()
        for buffer in buffers:
            data += buffer[: RECORD - len(data)]
            if len(data) >= RECORD:
                break
        sent = self._tls.write(data)
        self._flush()
        return sent

    def send(self, data: bytes | memoryview) -> int:
        """`sendmsg` of one buffer."""
        return self.sendmsg([data])

    def sendall(self, data: bytes) -> None:
        """Send all of a short message."""
        if data:
            self._tls.write(data)
            self._flush()

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end of the stream."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._fill()
            except ssl.SSLError as error:
                return _ended(error)

    def recvmsg_into(self, buffers: Sequence[memoryview]) -> tuple[int]:
        """Fill `buffers` with what there is; (bytes,). Raises BlockingIOError when there is nothing."""
        self._flush()
        count = 0
        for buffer in buffers:
            done = 0
            while done < len(buffer):
                try:
                    got = cast(int, self._tls.read(len(buffer) - done, buffer[done:]))
                except ssl.SSLWantReadError:
                    if not self._more(count + done):
                        return (count + done,)
                    continue
                except ssl.SSLError as error:
                    _ended(error)
                    return (count + done,)
                if not got:
                    return (count + done,)
                done += got
            count += done
        return (count,)

    def _more(self, count: int) -> bool:
        """Take more from the socket below; False if there is nothing, raising BlockingIOError with no byte read yet."""
        try:
            self._fill()
        except BlockingIOError:
            if not count:
                raise
            return False
        return True

    def pending(self) -> int:
        """Bytes that are decrypted, or wait to be, and of which the socket below tells nothing any more."""
        return self._tls.pending() + self._incoming.pending

    def settimeout(self, timeout: float | None) -> None:
        self.sock.settimeout(timeout)

    def setblocking(self, flag: bool) -> None:
        self.sock.setblocking(flag)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()


def _ended(error: ssl.SSLError) -> bytes:
    """The end of the stream, said or not, is an empty read; anything else is an error."""
    if isinstance(error, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
        return b""
    raise NbdDisconnected(f"TLS with the NBD server broke: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """What is wrong, in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    text = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return " ".join(str(text or error).replace("_", " ").lower().split())
