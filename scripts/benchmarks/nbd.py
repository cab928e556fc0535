"""Our NBD server and client against nbdkit and fio: 4 KiB requests at random, 16 in flight, over loopback TCP.

Absolute numbers depend on the machine and on what else it does, so every repetition measures ours, the peer twice, and
ours again, which cancels a drift, and yields one ratio; the value is the median of those. Run it alone, or import
`rows`.
"""

import json
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
from pathlib import Path
from typing import Any

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


@contextmanager
def running(argv: tuple[str, ...], port: int) -> Iterator[int]:
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
        yield port
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fio(port: int, kind: str) -> float:
    """Requests a second."""
    argv = [
        *("fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd://127.0.0.1:{port}/", f"--rw=rand{kind}"),
        *(f"--bs={BLOCK}", f"--iodepth={DEPTH}", f"--size={SIZE}"),
        *("--time_based", f"--runtime={SECONDS:g}", "--output-format=json"),
    ]
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return float(json.loads(told[told.index("{") :])["jobs"][0][kind]["iops"])


def our_client(port: int) -> float:
    """READs a second."""
    chance = random.Random(1)
    offsets = [chance.randrange(SIZE // BLOCK) * BLOCK for _ in range(1 << 16)]
    memory = memoryview(bytearray(DEPTH * BLOCK))
    pages = [[memory[at : at + BLOCK]] for at in range(0, DEPTH * BLOCK, BLOCK)]
    with socket.create_connection(("127.0.0.1", port)) as sock:
        client = open_connection(sock)
        poll = select.poll()
        poll.register(client, select.POLLIN)
        for handle in range(DEPTH):
            client.read(handle, offsets[handle], pages[handle])
        done = 0
        start = time.perf_counter()
        while (now := time.perf_counter()) < start + SECONDS:
            if client.send_pending():
                poll.poll()
            while replies := client.receive():  # what comes meanwhile joins the batch
                for handle, error in replies:
                    if error:
                        raise RuntimeError(f"READ failed with error {error}")
                    client.read(handle, offsets[done & 0xFFFF], pages[handle])
                    done += 1
        while client.in_flight:  # nbdkit 1.32 aborts when a client leaves it with requests in hand
            if client.send_pending():
                poll.poll()
            client.receive()
        client.disconnect()
        client.send_pending()
        return done / (now - start)


def compare(name: str, repetitions: int, ours: Callable[[], float], peer: Callable[[], float]) -> dict[str, Any]:
    pairs = []
    for _ in range(repetitions):
        first, theirs = ours(), peer()
        theirs += peer()
        pairs.append(((first + ours()) / 2, theirs / 2))
    ratios = [round(mine / theirs, 3) for mine, theirs in pairs]
    detail = {
        "ratios": ratios,
        "median": statistics.median(ratios),
        "target": TARGETS[name],
        "ours_per_second": [round(mine) for mine, _ in pairs],
        "peer_per_second": [round(theirs) for _, theirs in pairs],
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
        measured: list[tuple[str, Callable[[], float], Callable[[], float]]] = [
            ("nbd_server_read4k_ratio_to_nbdkit", lambda: fio(our_server, "read"), lambda: fio(nbdkit, "read")),
            ("nbd_server_write4k_ratio_to_nbdkit", lambda: fio(our_server, "write"), lambda: fio(nbdkit, "write")),
            ("nbd_client_read4k_ratio_to_fio", lambda: our_client(nbdkit), lambda: fio(nbdkit, "read")),
        ]
        return [compare(name, repetitions, ours, peer) for name, ours, peer in measured]


if __name__ == "__main__":
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(f"{row['name']} {row['value']:.2f} {row['unit']}  {json.dumps(row['detail'])}", flush=True)
