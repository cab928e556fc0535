"""`testbed serve`: one export, on a TCP address or a unix socket, until SIGTERM or SIGINT."""

import argparse
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from testbed.nbd.block_size import DEFAULT_BLOCK_SIZE, BlockSize
from testbed.nbd.constants import NBD_DEFAULT_PORT, NBD_MAX_STRING
from testbed.nbd.export import Export, FileExport, MemoryExport
from testbed.nbd.faults import FAULTS, parse
from testbed.nbd.faults.active import ActiveFault
from testbed.nbd.payload_memory import DEFAULT_LIMIT, PayloadMemory
from testbed.nbd.server import CLIENTS_MAX, Access, NbdServer
from testbed.nbd.server_handshake import TlsMode
from testbed.nbd.tls import server_context
from testbed.size import format_size, parse_size

BACKLOG = 128
STATUS_CANNOT_RUN = 2
TLS_WARNING = (
    "warning: TLS is done in user space. A client that swaps through it needs a process to encrypt each page: it "
    "allocates memory without the reserves that SOCK_MEMALLOC opens, and may be swapped out itself, so swap over TLS "
    "can deadlock where swap over plain NBD does not"
)


class CannotServe(Exception):
    """Why, in one clear line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `testbed serve`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--listen",
        metavar="ADDR:PORT",
        default=f"127.0.0.1:{NBD_DEFAULT_PORT}",
        help="TCP address; port 0 takes a free one (default: %(default)s)",
    )
    where.add_argument("--unix", metavar="PATH", help="unix socket, made now and removed at the end")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--size", default="512M", help="serve this much memory, zero at first (default: %(default)s)")
    what.add_argument("--file", metavar="FILE", help="serve this file or block device")
    parser.add_argument("--export", metavar="NAME", default="", help="name of the export (default: the empty name)")
    parser.add_argument("--read-only", action="store_true", help="refuse to write")
    _add_limits(parser)
    _add_tls(parser)
    parser.add_argument(
        "--fault",
        metavar="KIND[:name=value,...]",
        action="append",
        default=[],
        help=f"fail in this way, from the start (may be given again): {', '.join(FAULTS)}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is random in the faults (default: %(default)s)")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    for name in ("minimum", "preferred", "maximum"):
        default = format_size(getattr(DEFAULT_BLOCK_SIZE, name))
        group.add_argument(
            f"--{name}", metavar="SIZE", default=default, help=f"{name} block size (default: %(default)s)"
        )
    group.add_argument(
        "--clients-max", metavar="N", type=int, default=CLIENTS_MAX, help="at a time (default: %(default)s)"
    )
    group.add_argument(
        "--memory-max",
        metavar="SIZE",
        default=format_size(DEFAULT_LIMIT),
        help="for long payloads on their way to and from a file (default: %(default)s)",
    )
    group.add_argument(
        "--allow",
        metavar="CIDR",
        action="append",
        default=[],
        help="only for clients from this network, such as 192.0.2.0/24 (may be given again; default: from everywhere)",
    )


def _add_tls(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TLS")
    group.add_argument(
        "--tls-certificates",
        metavar="DIR",
        help="offer TLS with DIR/server-cert.pem and DIR/server-key.pem, as nbdkit and QEMU name them",
    )
    group.add_argument(
        "--tls",
        choices=["required", "allowed"],
        help="what becomes of clients without it (default: required)",
    )
    group.add_argument(
        "--tls-verify-peer", action="store_true", help="only for clients with a certificate that DIR/ca-cert.pem signed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Returns the exit status: 0, or 2 with one line on stderr when it cannot serve."""
    try:
        with contextlib.ExitStack() as stack:
            export = open_export(arguments)
            stack.callback(export.close)
            if len(arguments.export.encode()) > NBD_MAX_STRING:
                raise CannotServe(f"the export's name is longer than {NBD_MAX_STRING} bytes")
            access = open_access(arguments)
            faults = open_faults(arguments)
            listener = stack.enter_context(
                listen_unix(arguments.unix) if arguments.unix is not None else listen_tcp(arguments.listen)
            )
            server = NbdServer(listener, {arguments.export: export}, access=access, log=_log)
            stack.callback(server.close)
            for number, fault in enumerate(faults):
                server.faults.set(number, fault)
            for number in (signal.SIGTERM, signal.SIGINT):
                previous = signal.signal(number, lambda _number, _frame: server.stop())
                stack.callback(signal.signal, number, previous)
            print(f"serving {url(listener, arguments.export, access.tls_mode)} ({export.description})", flush=True)
            if access.tls is not None:
                _log(TLS_WARNING)
            server.serve()
    except CannotServe as error:
        _log(str(error))
        return STATUS_CANNOT_RUN
    return 0


def open_export(arguments: argparse.Namespace) -> Export:
    """The file, or without one that much memory. Raises CannotServe."""
    size, file, read_only = arguments.size, arguments.file, arguments.read_only
    try:
        block_size = BlockSize(*(parse_size(getattr(arguments, name)) for name in ("minimum", "preferred", "maximum")))
        memory = PayloadMemory(parse_size(arguments.memory_max), block_size.maximum)
        export: Export
        if file is None:
            export = MemoryExport(parse_size(size), read_only=read_only, block_size=block_size)
        else:
            export = FileExport(file, read_only=read_only, block_size=block_size, memory=memory)
    except ValueError as error:
        raise CannotServe(str(error)) from error
    except (OSError, OverflowError) as error:
        if file is None:
            raise CannotServe(f"there is no room for {size} of memory") from error
        raise CannotServe(f"cannot open {file}: {error.strerror}") from error  # type: ignore[union-attr]
    if export.size % block_size.minimum:
        raise CannotServe(f"{format_size(export.size)} is not a multiple of the minimum block size")
    return export


def open_access(arguments: argparse.Namespace) -> Access:
    """Who may come in. Raises CannotServe."""
    if arguments.clients_max < 1:
        raise CannotServe(f"--clients-max is at least 1, not {arguments.clients_max}")
    try:
        networks = [ipaddress.ip_network(network) for network in arguments.allow]
    except ValueError as error:
        raise CannotServe(f"--allow: {error}") from error
    if arguments.tls_certificates is None:
        if arguments.tls_verify_peer:
            raise CannotServe("--tls-verify-peer needs --tls-certificates")
        if arguments.tls is not None:
            raise CannotServe("--tls needs --tls-certificates")
        return Access(arguments.clients_max, networks)
    try:
        context = server_context(Path(arguments.tls_certificates), verify_peer=arguments.tls_verify_peer)
    except OSError as error:
        raise CannotServe(f"no TLS with the files in {arguments.tls_certificates}: {error.strerror}") from error
    mode = TlsMode.SELECTIVETLS if arguments.tls == "allowed" else TlsMode.FORCEDTLS
    return Access(arguments.clients_max, networks, mode, context)


def open_faults(arguments: argparse.Namespace) -> list[ActiveFault]:
    """Those to act from the start. Raises CannotServe."""
    try:
        return [parse(text, arguments.seed + number) for number, text in enumerate(arguments.fault)]
    except ValueError as error:
        raise CannotServe(str(error)) from error


def listen_tcp(text: str) -> socket.socket:
    """A socket that listens on "ADDR:PORT" or "[IPV6]:PORT". Raises CannotServe."""
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not address or not port.isdecimal() or int(port) > 65535:
        raise CannotServe(f"{text!r} is not ADDR:PORT, such as 127.0.0.1:{NBD_DEFAULT_PORT}")
    try:
        family, kind, _, _, where = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise CannotServe(f"cannot listen on {text}: {error.strerror}") from error
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _listening(listener, where, text)


@contextlib.contextmanager
def listen_unix(path: str) -> Iterator[socket.socket]:
    """A socket that listens at `path`, which is removed at the end. Raises CannotServe."""
    if not path:
        raise CannotServe("--unix needs a path")
    with _listening(socket.socket(socket.AF_UNIX), path, path) as listener:
        try:
            yield listener
        finally:
            Path(path).unlink(missing_ok=True)


def _listening(listener: socket.socket, where: object, text: str) -> socket.socket:
    try:
        listener.bind(where)  # type: ignore[arg-type]
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotServe(f"cannot listen on {text}: {error.strerror or error}") from error
    return listener


def url(listener: socket.socket, export_name: str, tls_mode: TlsMode = TlsMode.NOTLS) -> str:
    """The NBD URI of an export (spec: doc/uri.md)."""
    scheme = "nbd" if tls_mode is not TlsMode.FORCEDTLS else "nbds"
    name = urllib.parse.quote(export_name, safe="")
    if listener.family == socket.AF_UNIX:
        path = urllib.parse.quote(os.fsdecode(listener.getsockname()), safe="/")
        return f"{scheme}+unix:///{name}?socket={path}"
    address, port = listener.getsockname()[:2]
    host = f"[{address}]" if listener.family == socket.AF_INET6 else address
    return f"{scheme}://{host}:{port}/{name}"


def _log(line: str) -> None:
    print(f"testbed serve: {line}", file=sys.stderr, flush=True)
