"""Our client against other people's servers, in their bad moods too: programs, options and what must come."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from testbed.nbd.client import NbdClient, open_connection
from testbed.nbd.client_protocol import Reply
from testbed.nbd.client_tls import TlsFiles
from testbed.nbd.constants import TransmissionFlag
from testbed.nbd.errors import NbdDisconnected, NbdError
from tests.nbd.support import eventually
from tests.nbd.test_client import PAGE, complete, pages

SIZE = 1 << 20
Start = Callable[..., Path]
Expected = Callable[[NbdClient], None]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run nbdkit or qemu-nbd with these options on a unix socket; ended by its process id."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(program: str, *options: str) -> Path:
        path = tmp_path / f"{program}{len(started)}.sock"
        if program == "nbdkit":
            argv = ["nbdkit", "--foreground", f"--unix={path}", *options]
        else:
            disk = tmp_path / "disk"
            disk.write_bytes(bytes(SIZE))
            argv = ["qemu-nbd", "--persistent", "--shared=0", "--format=raw", f"--socket={path}", *options, str(disk)]
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        started.append(process)
        eventually(lambda: process.poll() is not None or path.exists())
        assert process.poll() is None, f"{argv} exited with status {process.returncode}"
        return path

    yield begin
    for process in started:
        process.kill()
        process.wait()


def connect(path: Path, *, structured: bool = True, tls: TlsFiles | None = None, name: str = "") -> NbdClient:
    sock = socket.socket(socket.AF_UNIX)
    try:
        eventually(lambda: sock.connect_ex(str(path)) == 0)
        return open_connection(sock, name, tls=tls, structured_replies=structured)
    except BaseException:
        sock.close()
        raise


def everything(client: NbdClient) -> None:
    """Write, read back, zero, trim, cache and flush, as far as the server offers each."""
    flags = client.transmission_flags
    fua = bool(flags & TransmissionFlag.NBD_FLAG_SEND_FUA)
    content = [bytes([number]) * PAGE for number in range(1, 65)]
    client.write(1, 16 * PAGE, pages(*content), fua=fua)
    assert complete(client, 1) == [(1, 0)]
    if flags & TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES:
        client.write_zeroes(2, 20 * PAGE, 4 * PAGE, fua=fua)
        assert complete(client, 1) == [(2, 0)]
        content[4:8] = [bytes(PAGE)] * 4
        client.write_zeroes(2, 26 * PAGE, PAGE, no_hole=True)
        assert complete(client, 1) == [(2, 0)]
        content[10] = bytes(PAGE)
    if flags & TransmissionFlag.NBD_FLAG_SEND_CACHE:
        client.cache(3, 16 * PAGE, 64 * PAGE)
        assert complete(client, 1) == [(3, 0)]
    landings = {}
    for handle, count in enumerate((1, 3, 8, 64, 17), start=10):
        landings[handle] = pages(*[b""] * count)
        client.read(handle, 16 * PAGE, landings[handle])
    assert sorted(complete(client, 5)) == [(handle, 0) for handle in landings]
    for landing in landings.values():
        assert [bytes(page) for page in landing] == content[: len(landing)]
    if flags & TransmissionFlag.NBD_FLAG_SEND_TRIM:
        client.trim(4, 16 * PAGE, PAGE, fua=fua)
        assert complete(client, 1) == [(4, 0)]
    if flags & TransmissionFlag.NBD_FLAG_SEND_FLUSH:
        client.flush(5)
        assert complete(client, 1) == [(5, 0)]


def holes(client: NbdClient) -> None:
    """A sparse export is read in one piece, whatever chunks it comes in."""
    client.write(1, 8 * PAGE, pages(b"island"))
    assert complete(client, 1) == [(1, 0)]
    landing = pages(*[b""] * 32)
    client.read(2, 0, landing)
    assert complete(client, 1) == [(2, 0)]
    assert [bytes(page[:6]) for page in landing] == [b"island" if at == 8 else bytes(6) for at in range(32)]


def reads_fail(client: NbdClient) -> None:
    client.write(1, 0, pages(b"x"))
    client.read(2, 0, pages(b""))
    client.flush(3)
    assert sorted(complete(client, 3)) == [(1, 0), (2, 5), (3, 0)]


def writes_fail(number: int) -> Expected:
    def check(client: NbdClient) -> None:
        client.write(1, 0, pages(b"x"))
        client.read(2, 0, pages(b""))
        assert sorted(complete(client, 2)) == [(1, number), (2, 0)]

    return check


def small_blocks_are_refused(client: NbdClient) -> None:
    assert (client.export.minimum_block_size, client.export.maximum_block_size) == (PAGE, 4 * PAGE)
    with pytest.raises(ValueError, match="multiples of 4096"):
        client.read(1, 512, pages(b""))
    with pytest.raises(ValueError, match="at most 16384"):
        client.read(1, 0, pages(*[b""] * 5))
    client.read(1, PAGE, pages(*[b""] * 4))
    assert complete(client, 1) == [(1, 0)]


def read_only(client: NbdClient) -> None:
    assert client.transmission_flags & TransmissionFlag.NBD_FLAG_READ_ONLY
    client.write(1, 0, pages(b"x"))
    client.read(2, 0, pages(b""))
    refused, read = sorted(complete(client, 2))
    assert refused in [(1, 1), (1, 22)]  # NBD_EPERM; qemu-nbd says NBD_EINVAL
    assert read == (2, 0)


def several_connections(client: NbdClient) -> None:
    assert client.transmission_flags & TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN
    everything(client)


FILTER = "--filter="
TABLE: dict[str, tuple[str, Sequence[str], Expected]] = {
    "plain": ("nbdkit", ["memory", "1M"], everything),
    "sparse": ("nbdkit", ["memory", "1M"], holes),
    "multi-conn": ("nbdkit", ["memory", "1M"], several_connections),
    "delay": ("nbdkit", [FILTER + "delay", "memory", "1M", "rdelay=20ms", "wdelay=20ms"], everything),
    "delay reads only": ("nbdkit", [FILTER + "delay", "memory", "1M", "rdelay=50ms"], everything),
    "error on reads": ("nbdkit", [FILTER + "error", "memory", "1M", "error-pread-rate=100%"], reads_fail),
    "error ENOSPC": (
        "nbdkit",
        [FILTER + "error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"],
        writes_fail(28),
    ),
    "error of a number NBD has not": (
        "nbdkit",
        [FILTER + "error", "memory", "1M", "error-pwrite=EPERM", "error-pwrite-rate=100%"],
        writes_fail(1),
    ),
    "rate": ("nbdkit", [FILTER + "rate", "memory", "1M", "rate=64M"], everything),
    "blocksize": ("nbdkit", [FILTER + "blocksize", "memory", "1M", "maxdata=8k"], everything),
    "blocksize-policy": (
        "nbdkit",
        [
            *(FILTER + "blocksize-policy", "memory", "1M"),
            *("blocksize-minimum=4k", "blocksize-preferred=4k", "blocksize-maximum=16k"),
            "blocksize-error-policy=error",
        ],
        small_blocks_are_refused,
    ),
    "exitlast": ("nbdkit", [FILTER + "exitlast", "memory", "1M"], everything),
    "noparallel": ("nbdkit", [FILTER + "noparallel", "memory", "1M", "serialize=requests"], everything),
    "no zeroes": ("nbdkit", [FILTER + "nozero", "memory", "1M"], everything),
    "no extents": ("nbdkit", [FILTER + "noextents", "memory", "1M"], holes),
    "fua emulated": ("nbdkit", [FILTER + "fua", "memory", "1M", "fuamode=emulate"], everything),
    "cache emulated": ("nbdkit", [FILTER + "nocache", "memory", "1M", "cachemode=emulate"], everything),
    "read-only": ("nbdkit", ["--readonly", "memory", "1M"], read_only),
    "no structured replies": ("nbdkit", ["--no-sr", "memory", "1M"], everything),
    "qemu": ("qemu-nbd", ["--discard=unmap"], everything),
    "qemu, sparse": ("qemu-nbd", ["--discard=unmap", "--detect-zeroes=unmap"], holes),
    "qemu, read-only": ("qemu-nbd", ["--read-only"], read_only),
}


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
@pytest.mark.parametrize(
    ("program", "options", "expected"),
    [pytest.param(*row, id=name, marks=pytest.mark.program(row[0])) for name, row in TABLE.items()],
)
def test_server(start: Start, program: str, options: Sequence[str], expected: Expected, structured: bool) -> None:
    client = connect(start(program, *options), structured=structured)
    try:
        expected(client)
    finally:
        client.close()


@pytest.mark.program("nbdkit")
def test_pause(start: Start, tmp_path: Path) -> None:
    """While nbdkit pauses nothing comes, and afterwards everything."""
    control = tmp_path / "control"
    path = start("nbdkit", FILTER + "pause", "memory", "1M", f"pause-control={control}")
    client = connect(path)

    def tell(letter: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(control))
            sock.sendall(letter)
            return sock.recv(1)

    assert tell(b"p") == b"P"
    client.write(1, 0, pages(b"x"))
    assert client.send_pending()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        assert client.receive() == []
    assert tell(b"r") == b"R"
    assert complete(client, 1) == [(1, 0)]
    client.close()


@pytest.mark.program("nbdkit")
def test_exitwhen(start: Start, tmp_path: Path) -> None:
    """A server that ends by itself once it has nothing to do."""
    flag = tmp_path / "end"
    path = start("nbdkit", FILTER + "exitwhen", "memory", "1M", f"exit-when-file-created={flag}", "exit-when-poll=1")
    client = connect(path)
    everything(client)
    flag.touch()
    client.close()

    def gone() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(path)) != 0

    eventually(gone)


def told_of_the_end(client: NbdClient) -> Reply | None:
    try:
        replies = client.receive()
    except NbdDisconnected:
        return (0, 0)
    return replies[0] if replies else None


@pytest.mark.program("nbdkit")
def test_a_killed_server_is_a_lost_connection(start: Start) -> None:
    path = start("nbdkit", "--exit-with-parent", FILTER + "delay", "memory", "1M", "rdelay=60")
    client = connect(path)
    client.read(1, 0, pages(b""))
    assert client.send_pending()
    for line in Path("/proc/self/task").glob("*/children"):
        for pid in line.read_text().split():
            if path.name in Path(f"/proc/{pid}/cmdline").read_text():
                subprocess.run(["kill", "-9", pid], check=True)
    eventually(lambda: told_of_the_end(client) is not None)
    client.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server called "swap-server", a client, and an authority that signed none of them."""
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    for name in ("ca", "stranger"):
        openssl(*new, "-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem", "-subj", f"/CN={name}")
    for name in ("server", "client"):
        signed = ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-addext", f"subjectAltName=DNS:swap-{name}")
        files = ("-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem")
        openssl(*new, *files, "-subj", f"/CN=swap-{name}", *signed, "-addext", "basicConstraints=critical,CA:FALSE")
    return directory


def files(
    directory: Path, authority: str = "ca", hostname: str | None = "swap-server", *, own: bool = True
) -> TlsFiles:
    certificate, key = (str(directory / f"client-{what}.pem") for what in ("cert", "key"))
    return TlsFiles(
        str(directory / f"{authority}-cert.pem"), certificate if own else None, key if own else None, hostname
    )


TLS_SERVERS = [pytest.param(name, marks=pytest.mark.program(name)) for name in ("nbdkit", "qemu-nbd")]


def start_tls(start: Start, program: str, directory: Path) -> Path:
    if program == "nbdkit":
        return start("nbdkit", "--tls=require", f"--tls-certificates={directory}", "--tls-verify-peer", "memory", "1M")
    credentials = f"tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir={directory}"
    return start("qemu-nbd", f"--object={credentials}", "--tls-creds=tls0")


@pytest.mark.program("openssl")
@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("program", TLS_SERVERS)
def test_tls(start: Start, program: str, certificates: Path, structured: bool) -> None:
    client = connect(start_tls(start, program, certificates), tls=files(certificates), structured=structured)
    everything(client)
    assert client.bytes_received > 70 * PAGE
    assert client.unacknowledged() == 0
    client.disconnect()
    assert client.send_pending()
    client.close()


@pytest.mark.program("openssl")
@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (lambda directory: files(directory, "stranger"), "certificate is not accepted"),
        (lambda directory: files(directory, hostname="another"), "certificate is not accepted"),
        (lambda directory: TlsFiles(str(directory / "missing.pem")), "files cannot be used: no such file"),
        (lambda _directory: None, "requires TLS|closed the connection"),
    ],
)
@pytest.mark.parametrize("program", TLS_SERVERS)
def test_tls_refused(
    start: Start, program: str, certificates: Path, wanted: Callable[[Path], TlsFiles | None], told: str
) -> None:
    path = start_tls(start, program, certificates)
    with pytest.raises(NbdError, match=told) as caught:
        connect(path, tls=wanted(certificates))
    assert "\n" not in str(caught.value)


@pytest.mark.program("nbdkit")
def test_a_server_without_tls_is_not_talked_to(start: Start, certificates_any: TlsFiles) -> None:
    with pytest.raises(NbdError, match="refused NBD_OPT_STARTTLS"):
        connect(start("nbdkit", "memory", "1M"), tls=certificates_any)


@pytest.fixture
def certificates_any(certificates: Path) -> TlsFiles:
    return files(certificates)
