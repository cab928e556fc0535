"""`testbed serve` as people run it: one line when ready, one line when it cannot, gone at once when told."""

import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from testbed.nbd.client import NbdClient, open_connection
from tests.nbd.test_client import PAGE, complete, connect, pages

StartServe = Callable[..., "subprocess.Popen[str]"]


def ready(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving nbd"), process.communicate()
    return line.split()[1]


def dial(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "nbd+unix":
        return connect(Path(parse_qs(parts.query)["socket"][0]))
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port))


def use(sock: socket.socket, name: str = "") -> NbdClient:
    client = open_connection(sock, name)
    client.write(1, 0, pages(b"hello"))
    assert complete(client, 1) == [(1, 0)]
    return client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_a_signal_ends_it_with_a_client_connected(
    start_serve: StartServe, tmp_path: Path, where: str, number: signal.Signals
) -> None:
    path = tmp_path / "nbd.sock"
    arguments = ["--unix", str(path)] if where == "unix" else ["--listen", "127.0.0.1:0"]
    process = start_serve(*arguments, "--size", "1M", "--export", "swap")
    with dial(ready(process)) as sock:
        assert use(sock, "swap").export_size == 1 << 20
        process.send_signal(number)
        assert process.wait(10) == 0
    assert not path.exists()
    assert process.communicate() == ("", "")


def test_a_file(start_serve: StartServe, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(3 * PAGE))
    process = start_serve("--listen", "127.0.0.1:0", "--file", str(disk))
    with dial(ready(process)) as sock:
        client = use(sock)
        assert client.export_size == 3 * PAGE
    assert disk.read_bytes().startswith(b"hello")


def test_read_only(start_serve: StartServe) -> None:
    process = start_serve("--listen", "127.0.0.1:0", "--read-only")
    with dial(ready(process)) as sock:
        client = open_connection(sock)
        assert client.export_size == 512 << 20
        assert client.transmission_flags & 2
        client.write(1, 0, pages(b"hello"))
        assert complete(client, 1) == [(1, 1)]


def test_ipv6_and_a_name_to_be_quoted(start_serve: StartServe) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    process = start_serve("--listen", "[::1]:0", "--export", "a b/ö")
    url = ready(process)
    assert url.endswith("/a%20b%2F%C3%B6")
    with dial(url) as sock:
        use(sock, "a b/ö")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "lots"], "'lots' is not a size"),
        (["--size", "0"], "at least 1 byte"),
        (["--size", "9999999P"], "no room for 9999999P of memory"),
        (["--file", "/nonexistent/disk"], "cannot open /nonexistent/disk: No such file or directory"),
        (["--file", "/"], "cannot open /: Is a directory"),
        (["--listen", "10809"], "'10809' is not ADDR:PORT"),
        (["--listen", "127.0.0.1:70000"], "is not ADDR:PORT"),
        (["--listen", "192.0.2.1:10809"], "cannot listen on 192.0.2.1:10809: Cannot assign requested address"),
        (["--unix", "/nonexistent/nbd.sock"], "cannot listen on /nonexistent/nbd.sock: No such file or directory"),
        (["--unix", "/tmp/" + "x" * 200], "AF_UNIX path too long"),
        (["--unix", ""], "--unix needs a path"),
        (["--file", "/dev/zero"], "cannot open /dev/zero: Block device required"),
        (["--tls", "required"], "--tls needs --tls-certificates"),
        (["--export", "x" * 4097], "longer than 4096 bytes"),
    ],
)
def test_what_cannot_be_served(start_serve: StartServe, arguments: list[str], told: str) -> None:
    process = start_serve(*arguments)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert output == ""
    assert errors.startswith("testbed serve: ")
    assert errors.count("\n") == 1
    assert told in errors


def test_a_port_in_use(start_serve: StartServe) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start_serve("--listen", where)
        told = process.communicate(timeout=20)[1]
        assert told == f"testbed serve: cannot listen on {where}: Address already in use\n"
        assert process.returncode == 2


def test_a_path_in_use_is_left_alone(start_serve: StartServe, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    process = start_serve("--unix", str(path))
    assert "Address already in use" in process.communicate(timeout=20)[1]
    assert process.returncode == 2
    assert path.read_text() == "data"
