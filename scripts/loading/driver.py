"""Many clients on one NBD server: `sudo scripts/load [--clients 64] [--seconds 300] [--depth 4] [--size 256M]`.

The server is `testbed serve` in a namespace of its own. The clients come over veths and a bridge from four other
namespaces, each a process with its share of the connections. What counts as served well is in judgement.py. With
`--file` the server keeps the data in a new temporary file instead of memory. Status 0: served well; 1: not, and why;
2: it could not be tried.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.loading.client import UNIT, LoadClient
from scripts.loading.judgement import Judgement, Served, judge, mebibytes
from testbed.experiment.arguments import Parser, count
from testbed.hosts.messages import Failed, Finished, Message, Ready, StartWorkload
from testbed.lab.errors import LabError
from testbed.lab.hosts import HostPort, add_hosts
from testbed.lab.link import add_bridge
from testbed.lab.namespace import NetworkNamespace, wait_gone
from testbed.lab.process import HostProcess
from testbed.lab.program import Program, run_program
from testbed.size import parse_size

HOSTS = 4
"""Namespaces with clients in them."""
ADDRESS = ("10.0.0.1", 10809)
SAMPLES = 200
"""Of the server's memory."""
PATIENCE_S = 60.0
"""How long the server may take to start, the clients to fill the export, and the last replies to come."""
SERVE = "import sys; from testbed.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"


@dataclass(frozen=True, slots=True)
class Load:
    """`clients` connections with `depth` requests in flight each, for `seconds`, on an export of `size` bytes."""

    clients: int = 64
    seconds: float = 300.0
    depth: int = 4
    size: int = 256 << 20
    file: bool = False
    seed: int = 0

    @property
    def part(self) -> int:
        """Bytes of the export for each client."""
        return self.size // self.clients


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the clients saw, the server's resident memory over the time (bytes), and what that means."""

    clients: list[Served]
    resident: list[int]
    judgement: Judgement

    def report(self) -> dict[str, Any]:
        """For `--json`: sizes in bytes, waits in seconds."""
        requests = sorted(client.requests for client in self.clients)
        return {
            "clients": len(requests),
            "requests_min": requests[0],
            "requests_median": statistics.median(requests),
            "requests_max": requests[-1],
            "longest_wait_s": round(max(client.longest_wait for client in self.clients), 3),
            **asdict(self.judgement),
            "complaints": self.judgement.complaints,
        }


def run(load: Load) -> Outcome:
    """Let the clients loose on the server. Raises LabError when it cannot be tried."""
    with ExitStack() as stack:
        namespaces = stack.enter_context(_hosts(min(HOSTS, load.clients)))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="load-")))
        server = stack.enter_context(_server(load, namespaces[0], scratch))
        crowds = []
        for first, namespace in enumerate(namespaces[1:]):
            numbers = range(first, load.clients, len(namespaces) - 1)
            crowds.append(HostProcess(f"clients {first}", _crowd_main, (load, numbers), [namespace]).start())
            stack.callback(crowds[-1].close)
        for crowd in crowds:
            crowd.wait_ready(PATIENCE_S)
        for crowd in crowds:
            crowd.send(StartWorkload())
        resident = list(_sampled(server, load.seconds))
        clients = [served for crowd in crowds for served in _last_word(crowd)]
        if not server.alive:
            raise LabError(f"the server ended: {server.last_line()}")
    return Outcome(clients, resident, judge(clients, resident, 0 if load.file else load.size))


@contextmanager
def _hosts(number: int) -> Iterator[list[NetworkNamespace]]:
    """The server's namespace and so many for clients, on one bridge."""
    with NetworkNamespace.create() as hub:
        ports = [HostPort(f"port{host}", f"10.0.0.{host + 1}/24") for host in range(number + 1)]
        namespaces = add_hosts(add_bridge(hub, "br0"), ports)
        try:
            yield namespaces
        finally:
            wait_gone([*namespaces, hub])


@contextmanager
def _server(load: Load, namespace: NetworkNamespace, scratch: Path) -> Iterator[Program]:
    """`testbed serve`, listening. Raises LabError."""
    what = ["--size", str(load.size)]
    if load.file:
        what = ["--file", str(scratch / "export")]
        with (scratch / "export").open("wb") as file:
            file.truncate(load.size)
    address, port = ADDRESS
    argv = [sys.executable, "-c", SERVE, "--listen", f"{address}:{port}", "--clients-max", str(load.clients + 1), *what]
    with run_program(argv, namespace, output=scratch / "log") as server, namespace.entered():
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(ADDRESS).close()
                break
            except OSError as error:
                if not server.alive or time.monotonic() > deadline:
                    raise LabError(f"the server does not start: {server.last_line() or error}") from error
                time.sleep(0.02)
        yield server


def _sampled(server: Program, seconds: float) -> Iterator[int]:
    """The server's resident memory in bytes, from now to the end of the time."""
    started = time.monotonic()
    for sample in range(SAMPLES + 1):
        time.sleep(max(0.0, started + seconds * sample / SAMPLES - time.monotonic()))
        try:
            rollup = Path(f"/proc/{server.pid}/smaps_rollup").read_text()
        except OSError as error:
            raise LabError(f"the server ended: {server.last_line()}") from error
        yield next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Rss:"))


def _crowd_main(channel: Any, spec: tuple[Load, Sequence[int]]) -> None:
    """One host's clients, in one process."""
    load, numbers = spec
    crowd: dict[int, LoadClient] = {}
    for number in numbers:
        client = LoadClient(
            socket.create_connection(ADDRESS), number * load.part, load.part, load.depth, load.seed + number
        )
        client.fill()
        crowd[client.connection.fileno()] = client
    channel.send(Ready("clients"))
    channel.recv()
    end = time.monotonic() + load.seconds
    poll = select.poll()
    for fd, client in crowd.items():
        client.begin()
        poll.register(fd, select.POLLIN | select.POLLOUT)
    while time.monotonic() < end:
        for fd, happened in poll.poll(100):
            client = crowd[fd]
            if happened != select.POLLOUT:
                client.received(client.connection.receive())
            sent = client.connection.send_pending()
            poll.modify(fd, select.POLLIN if sent else select.POLLIN | select.POLLOUT)
    served = [client.finish() for client in crowd.values()]
    channel.send(Finished("clients", {"served": served}))


def _last_word(crowd: HostProcess) -> list[Served]:
    deadline = time.monotonic() + PATIENCE_S
    said: list[Message] = []
    while not any(isinstance(message, Finished | Failed) for message in said):
        if time.monotonic() > deadline:
            raise LabError(f"{crowd.name} had no last reply within {PATIENCE_S:g} s")
        select.select([crowd], [], [], 1.0)
        said += crowd.messages()
    last = said[-1]
    if not isinstance(last, Finished):
        raise LabError(f"{crowd.name}: {last.message if isinstance(last, Failed) else last}")
    served: list[Served] = last.report["served"]
    return served


def load_from(argv: Sequence[str] | None) -> tuple[Load, bool]:
    """What the command line asks for, and whether the answer is to be JSON."""
    usual = Load()
    parser = Parser(prog="scripts/load", description="Many clients on one NBD server.")
    parser.add_argument("--clients", type=count(1), default=usual.clients, metavar="N", help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=usual.seconds, metavar="S", help="default %(default)g")
    parser.add_argument(
        "--depth", type=count(1), default=usual.depth, metavar="N", help="of each (default %(default)s)"
    )
    parser.add_argument("--size", type=parse_size, default=usual.size, help="of the export (default 256M)")
    parser.add_argument("--file", action="store_true", help="export a file, not memory")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of what the clients do (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one object on standard output")
    space = parser.parse_args(argv)
    load = Load(space.clients, space.seconds, space.depth, space.size, space.file, space.seed)
    if load.part < load.depth * UNIT:
        parser.error(f"--size must be at least {load.clients * load.depth * UNIT} bytes for that many requests")
    return load, space.json


def show(outcome: Outcome) -> None:
    """For people."""
    report, verdict = outcome.report(), outcome.judgement
    words = ("requests_min", "requests_median", "requests_max")
    print(f"{report['clients']} clients, requests min/median/max", "/".join(f"{report[word]:.0f}" for word in words))
    print(f"slowest client's part of a fair share: {verdict.share:.3f}; longest wait {report['longest_wait_s']:.2f} s")
    sizes = (mebibytes(size) for size in (verdict.settled, verdict.end, verdict.peak))
    print("server resident at 10 % / at the end / most:", " / ".join(sizes))
    print(f"errors {verdict.errors}, corrupt {verdict.corrupt}")
    for complaint in verdict.complaints:
        print(f"bad: {complaint}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of scripts/load; returns the exit status."""
    load, as_json = load_from(argv)
    try:
        outcome = run(load)
    except LabError as error:
        print(f"scripts/load: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps(outcome.report(), indent=2))
    else:
        show(outcome)
    return int(bool(outcome.judgement.complaints))


if __name__ == "__main__":
    sys.exit(main())
