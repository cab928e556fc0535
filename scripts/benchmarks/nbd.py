"""Our NBD server and client against nbdkit and fio: 4 KiB requests at random, 16 in flight, over loopback TCP.

Absolute numbers depend on the machine and on what else it does, so every repetition measures ours, the peer twice, and
ours again, which cancels a drift, and yields one ratio; the value is the median of those. Where the client uses a whole
core, it and not the server is the limit: then the servers' CPU time per request is what tells them apart. Run it alone,
or import `rows`.
"""

import json
import os
import random
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from testbed.nbd.client import open_connection
from testbed.nbd.programs import server_command

SIZE = 256 << 20  # bytes
BLOCK = 4096  # bytes
DEPTH = 16  # requests in flight
SECONDS = 1.0  # of one run
SERVE = (
    "import argparse, sys; from testbed.nbd import serve; parser = argparse.ArgumentParser();"
    "serve.add_arguments(parser); sys.exit(serve.run(parser.parse_args()))"
)
TARGETS = {
    "nbd_server_read4k_ratio_to_nbdkit": 1.1,
    "nbd_server_write4k_ratio_to_nbdkit": 1.4,
    "nbd_client_read4k_ratio_to_fio": 1.2,
}


class Load(NamedTuple):
    """One run: requests a second, the cores its client kept busy, and CPU microseconds of the server for a request."""

    per_second: float
    client_cores: float
    server_us: float


@dataclass(frozen=True, slots=True)
class Server:
    """A server on loopback, which is one process."""

    port: int
    pid: int

    def cpu(self) -> float:
        """Seconds of all its threads until now (utime and stime of proc(5))."""
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(argv: tuple[str, ...], port: int) -> Iterator[Server]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[2])
    try:
        deadline = time.monotonic() + 10
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield Server(port, process.pid)
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fio(server: Server, kind: str) -> Load:
    """What fio measures, with its own word for the CPU time it used."""
    argv = [
        *("fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd://127.0.0.1:{server.port}/", f"--rw=rand{kind}"),
        *(f"--bs={BLOCK}", f"--iodepth={DEPTH}", f"--size={SIZE}"),
        *("--time_based", f"--runtime={SECONDS:g}", "--output-format=json"),
    ]
    before = server.cpu()
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    used = server.cpu() - before
    job = json.loads(told[told.index("{") :])["jobs"][0]
    return Load(job[kind]["iops"], (job["usr_cpu"] + job["sys_cpu"]) / 100, used * 1e6 / job[kind]["total_ios"])


def our_client(server: Server) -> Load:
    """READs of our client, which is this process."""
    chance = random.Random(1)
    offsets = [chance.randrange(SIZE // BLOCK) * BLOCK for _ in range(1 << 16)]
    memory = memoryview(bytearray(DEPTH * BLOCK))
    pages = [[memory[at : at + BLOCK]] for at in range(0, DEPTH * BLOCK, BLOCK)]
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        client = open_connection(sock)
        poll = select.poll()
        poll.register(client, select.POLLIN)
        for handle in range(DEPTH):
            client.read(handle, offsets[handle], pages[handle])
        done = 0
        before, busy, start = server.cpu(), time.process_time(), time.perf_counter()
        while (now := time.perf_counter()) < start + SECONDS:
            if client.send_pending():
                poll.poll()
            while replies := client.receive():  # what comes meanwhile joins the batch
                for handle, error in replies:
                    if error:
                        raise RuntimeError(f"READ failed with error {error}")
                    client.read(handle, offsets[done & 0xFFFF], pages[handle])
                    done += 1
        elapsed, busy, used = now - start, time.process_time() - busy, server.cpu() - before
        while client.in_flight:  # nbdkit 1.32 aborts when a client leaves it with requests in hand
            if client.send_pending():
                poll.poll()
            client.receive()
        client.disconnect()
        client.send_pending()
        return Load(done / elapsed, busy / elapsed, used * 1e6 / done)


def mean(*runs: Load) -> Load:
    return Load(*map(statistics.fmean, zip(*runs, strict=True)))


def compare(name: str, repetitions: int, ours: Callable[[], Load], peer: Callable[[], Load]) -> dict[str, Any]:
    pairs = []
    for _ in range(repetitions):
        first, theirs = ours(), mean(peer(), peer())
        pairs.append((mean(first, ours()), theirs))
    us, them = (Load(*map(statistics.median, zip(*side, strict=True))) for side in zip(*pairs, strict=True))
    ratios = [round(mine.per_second / theirs.per_second, 3) for mine, theirs in pairs]
    detail = {
        "ratios": ratios,
        "median": statistics.median(ratios),
        "target": TARGETS[name],
        "ours_per_second": [round(mine.per_second) for mine, _ in pairs],
        "peer_per_second": [round(theirs.per_second) for _, theirs in pairs],
        "client_cores": {"ours": round(us.client_cores, 2), "peer": round(them.client_cores, 2)},
        "server_cpu_us_per_request": {"ours": round(us.server_us, 2), "peer": round(them.server_us, 2)},
        "server_cpu_ratio": round(us.server_us / them.server_us, 2),
        "setup": f"{BLOCK} B random, {DEPTH} in flight, loopback TCP, 4 runs of {SECONDS:g} s a repetition",
    }
    return {"name": name, "value": statistics.median(ratios), "unit": "ratio", "detail": detail}


def rows(repetitions: int = 5) -> list[dict[str, Any]]:
    """Three ratios, each with its repetitions; about `repetitions` * 15 s. Raises ValueError without nbdkit or fio."""
    if shutil.which("fio") is None:
        raise ValueError("the NBD benchmark needs fio, which is not installed")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        nbdkit_argv = server_command("nbdkit", address="127.0.0.1", port=port, size=SIZE, directory=directory).argv
        nbdkit = stack.enter_context(running(nbdkit_argv, port))
        port = free_port()
        argv = (sys.executable, "-c", SERVE, "--listen", f"127.0.0.1:{port}", "--size", str(SIZE))
        our_server = stack.enter_context(running(argv, port))
        for kind in ("write", "read"):  # the first touch of memory is not what is compared
            fio(nbdkit, kind)
            fio(our_server, kind)
        measured: list[tuple[str, Callable[[], Load], Callable[[], Load]]] = [
            ("nbd_server_read4k_ratio_to_nbdkit", lambda: fio(our_server, "read"), lambda: fio(nbdkit, "read")),
            ("nbd_server_write4k_ratio_to_nbdkit", lambda: fio(our_server, "write"), lambda: fio(nbdkit, "write")),
            ("nbd_client_read4k_ratio_to_fio", lambda: our_client(nbdkit), lambda: fio(nbdkit, "read")),
        ]
        return [compare(name, repetitions, ours, peer) for name, ours, peer in measured]


if __name__ == "__main__":
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(f"{row['name']} {row['value']:.2f} {row['unit']}  {json.dumps(row['detail'])}", flush=True)
