"""TLS for a server: certificates from a directory, and a stream that looks like the socket it replaces.

The files have the names that nbdkit, libnbd and QEMU use: ca-cert.pem, server-cert.pem, server-key.pem.
"""

import contextlib
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

CLOSE_TIMEOUT = 1.0  # seconds for the client's close_notify


def server_context(directory: Path, *, verify_peer: bool) -> ssl.SSLContext:
    """TLS 1.2 or later; with `verify_peer` only for clients with a certificate that ca-cert.pem has signed.

    Raises OSError (ssl.SSLError is one) when a file is missing or is not what its name says.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
    if verify_peer:
        context.load_verify_locations(directory / "ca-cert.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class TlsStream:
    """What a connection needs of a socket, with TLS inside. Methods raise OSError."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Shake hands. `sock` stays open, for whoever has to hang up on a client that does not listen."""
        self._tls = context.wrap_socket(sock.dup(), server_side=True)

    def settimeout(self, seconds: float | None) -> None:
        """As the socket's."""
        self._tls.settimeout(seconds)

    def recvmsg_into(self, buffers: Sequence[memoryview]) -> tuple[int]:
        """Into the first of the buffers: one record fills no more."""
        return (self._tls.recv_into(buffers[0]),)

    def sendall(self, data: bytes) -> None:
        """As the socket's."""
        self._tls.sendall(data)

    def sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        """All of them, in as few records as they fit in."""
        data = b"".join(pieces)
        self._tls.sendall(data)
        return len(data)

    def close(self) -> None:
        """Say goodbye, and let the client do so, if it is there."""
        self._tls.settimeout(CLOSE_TIMEOUT)
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()
        self._tls.close()
