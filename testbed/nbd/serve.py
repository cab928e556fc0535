"""`testbed serve`: one export, on a TCP address or a unix socket, until SIGTERM or SIGINT."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from testbed.nbd.constants import NBD_DEFAULT_PORT, NBD_MAX_STRING
from testbed.nbd.export import Export, FileExport, MemoryExport
from testbed.nbd.server import NbdServer
from testbed.size import parse_size

BACKLOG = 128
STATUS_CANNOT_RUN = 2


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


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Returns the exit status: 0, or 2 with one line on stderr when it cannot serve."""
    try:
        with contextlib.ExitStack() as stack:
            export = open_export(arguments.size, arguments.file, read_only=arguments.read_only)
            stack.callback(export.close)
            if len(arguments.export.encode()) > NBD_MAX_STRING:
                raise CannotServe(f"the export's name is longer than {NBD_MAX_STRING} bytes")
            listener = stack.enter_context(
                listen_unix(arguments.unix) if arguments.unix is not None else listen_tcp(arguments.listen)
            )
            server = NbdServer(listener, {arguments.export: export}, log=_log)
            stack.callback(server.close)
            for number in (signal.SIGTERM, signal.SIGINT):
                previous = signal.signal(number, lambda _number, _frame: server.stop())
                stack.callback(signal.signal, number, previous)
            print(f"serving {url(listener, arguments.export)} ({export.description})", flush=True)
            server.serve()
    except CannotServe as error:
        _log(str(error))
        return STATUS_CANNOT_RUN
    return 0


def open_export(size: str, file: str | None, *, read_only: bool) -> Export:
    """The file, or without one that much memory. Raises CannotServe."""
    if file is None:
        try:
            return MemoryExport(parse_size(size), read_only=read_only)
        except ValueError as error:
            raise CannotServe(str(error)) from error
        except (OSError, OverflowError) as error:
            raise CannotServe(f"there is no room for {size} of memory") from error
    try:
        return FileExport(file, read_only=read_only)
    except OSError as error:
        raise CannotServe(f"cannot open {file}: {error.strerror}") from error


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


def url(listener: socket.socket, export_name: str) -> str:
    """The NBD URI of an export (spec: doc/uri.md)."""
    name = urllib.parse.quote(export_name, safe="")
    if listener.family == socket.AF_UNIX:
        path = urllib.parse.quote(os.fsdecode(listener.getsockname()), safe="/")
        return f"nbd+unix:///{name}?socket={path}"
    address, port = listener.getsockname()[:2]
    host = f"[{address}]" if listener.family == socket.AF_INET6 else address
    return f"nbd://{host}:{port}/{name}"


def _log(line: str) -> None:
    print(f"testbed serve: {line}", file=sys.stderr, flush=True)
