"""Fixtures that start servers, ours or other people's, and end exactly those again."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from testbed.nbd.export import Export, MemoryExport
from testbed.nbd.programs import ServerCommand
from testbed.nbd.server import NbdServer
from tests.nbd.certificates import make_certificates
from tests.nbd.support import eventually

settings.register_profile("nbd", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
settings.load_profile("nbd")

StartServer = Callable[[Mapping[str, Export]], tuple[NbdServer, Path]]
StartProgram = Callable[[ServerCommand, int], "subprocess.Popen[bytes]"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("program"):
        if shutil.which(marker.args[0]) is None:
            pytest.skip(f"{marker.args[0]} is not installed")


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Serve exports from a thread, on a unix socket."""
    started: list[tuple[NbdServer, threading.Thread, socket.socket]] = []

    def start(exports: Mapping[str, Export]) -> tuple[NbdServer, Path]:
        path = tmp_path / f"nbd{len(started)}.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(16)
        server = NbdServer(listener, exports)
        thread = threading.Thread(target=server.serve)
        thread.start()
        started.append((server, thread, listener))
        return server, path

    yield start
    for server, thread, listener in started:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()
        server.close()
        listener.close()


@pytest.fixture
def memory_server(start_server: StartServer) -> tuple[MemoryExport, Path]:
    """8 MiB of memory under the name "swap"."""
    export = MemoryExport(8 << 20)
    _, path = start_server({"swap": export})
    return export, path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate authority, a server's certificate and a client's."""
    directory = tmp_path_factory.mktemp("tls") / "pki"
    make_certificates(directory)
    return directory


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture
def start_program() -> Iterator[StartProgram]:
    """Run a third-party server until the end of the test; returns once it accepts."""
    started: list[tuple[subprocess.Popen[bytes], float]] = []

    def start(command: ServerCommand, port: int) -> "subprocess.Popen[bytes]":
        for file in command.files:
            file.write()
        process = subprocess.Popen(command.argv, stderr=subprocess.DEVNULL)
        started.append((process, command.grace))
        eventually(lambda: process.poll() is not None or _accepts(port))
        assert process.poll() is None, f"{command.argv[0]} exited with status {process.returncode}"
        return process

    yield start
    for process, grace in started:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def start_serve(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Run `testbed serve` as a process of its own; the first line of its output has not been read."""
    started: list[subprocess.Popen[str]] = []
    code = (
        "import argparse, sys; from testbed.nbd import serve; parser = argparse.ArgumentParser();"
        "serve.add_arguments(parser); sys.exit(serve.run(parser.parse_args()))"
    )

    def start(*arguments: str) -> "subprocess.Popen[str]":
        argv = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
