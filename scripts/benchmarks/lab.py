"""The lab against its yardsticks: floods and host set-up, beside C, scapy and iproute2. Other modules measure in it.

The two sides of a ratio run in turn, repetition by repetition, and the medians are compared, so that a machine that
is slow for a while is slow for both. Everything happens in namespaces made here. Run it by itself as root, with
PYTHONPATH at the top of the project: `python -m scripts.benchmarks.lab [repetitions]`.
"""

from __future__ import annotations

import json
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.hosts.messages import Finished, Ready
from testbed.lab.errors import LabError
from testbed.lab.flood import Flood
from testbed.lab.hosts import HostPort, add_hosts
from testbed.lab.link import add_bridge, add_veth, set_address, set_up, wait_up
from testbed.lab.namespace import NetworkNamespace, wait_gone
from testbed.lab.packet_ring import PacketRing
from testbed.lab.packet_sender import PacketSender
from testbed.lab.process import HostProcess
from testbed.lab.templates import Endpoints, build

PEERS = Path(__file__).parent / "peers"
MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
ENDS = Endpoints(MAC_A, MAC_B, "10.0.0.1", "10.0.0.2")
SECONDS = 0.5
HOSTS = 100
RELAY_SLOTS = 256

Row = dict[str, Any]


def rows(repetitions: int = 5) -> list[Row]:
    """The lab's own rows: floods (kpps of one core, 64-byte frames) and set-up of 100 hosts (ms per host)."""
    return [*flood_rows(repetitions), *setup_rows(repetitions)]


def row(name: str, value: float, unit: str, detail: str) -> Row:
    return {"name": name, "value": round(value, 3), "unit": unit, "detail": detail}


def interleaved(repetitions: int, sides: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each side over that many rounds, in each of which every side runs once."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            measured[name].append(side())
    return {name: statistics.median(values) for name, values in measured.items()}


@contextmanager
def compiled_peer(name: str) -> Iterator[Path]:
    """The C peer peers/NAME.c as a program, compiled by gcc -O2. Raises LabError without gcc."""
    if shutil.which("gcc") is None:
        raise LabError("there is no program 'gcc' on PATH: install it")
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / name
        subprocess.run(["gcc", "-O2", "-o", program, PEERS / f"{name}.c"], check=True)
        yield program


def run_inside(namespace: NetworkNamespace, argv: Sequence[str | Path]) -> list[float]:
    """The numbers in the last line a program prints, run in a namespace to its end."""
    with namespace.entered():
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def run_reporting(namespace: NetworkNamespace, work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `work()` returns in a process of its own in a namespace. Raises LabError when it fails."""
    host = HostProcess("side", lambda channel, _: channel.send(Finished("side", dict(work()))), None, [namespace])
    with host.start().channel as channel:
        message = channel.recv()
        host.stop()
    if not isinstance(message, Finished):
        raise LabError(message.message)
    return message.report


def run_child(namespace: NetworkNamespace, work: Callable[[], float]) -> float:
    """`run_reporting` for one number."""
    return run_reporting(namespace, lambda: {"value": work()})["value"]


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Hosts a and b (eth0, 10.0.0.1 and .2) with a middle namespace between them, whose ports are left and right."""

    a: NetworkNamespace
    middle: NetworkNamespace
    b: NetworkNamespace


@contextmanager
def forwarding_path(*, bridge: bool) -> Iterator[Forwarding]:
    """Two hosts and the middle; with `bridge` a kernel bridge joins left and right, else nothing does (yet)."""
    path = Forwarding(*(NetworkNamespace.create() for _ in range(3)))
    try:
        master = add_bridge(path.middle, "br0") if bridge else None
        add_veth((path.middle, "left"), (path.a, "eth0"), mac_b=MAC_A, master_a=master)
        add_veth((path.middle, "right"), (path.b, "eth0"), mac_b=MAC_B, master_a=master)
        for host, address in ((path.a, "10.0.0.1/24"), (path.b, "10.0.0.2/24")):
            set_address(host, "eth0", address)
            set_up(host, "eth0")
        for port in ("left", "right"):
            set_up(path.middle, port)
        for host, port in ((path.a, "left"), (path.b, "right")):
            wait_up(host, "eth0")
            wait_up(path.middle, port)
        yield path
    finally:
        wait_gone([path.a, path.middle, path.b])


def flood_rows(repetitions: int) -> list[Row]:
    """Frames per second offered by one process, against C sendmmsg and scapy sendp with the same frame."""
    template = build("ethertype", ENDS, [9], 64)

    def ours() -> float:
        with Flood("eth0", template, None) as flood:
            flood.run_until(lambda: False, SECONDS)
            return flood.pps / 1000

    def scapy() -> float:
        from scapy.config import conf
        from scapy.layers.l2 import Ether
        from scapy.sendrecv import sendp

        conf.ifaces.reload()
        frames, started, sent = [Ether(template[0].frame)] * 100, time.monotonic(), 0
        while time.monotonic() < started + SECONDS:
            sendp(frames, iface="eth0", verbose=False)
            sent += len(frames)
        return sent / (time.monotonic() - started) / 1000

    with forwarding_path(bridge=False) as path, compiled_peer("sendmmsg") as peer:
        argv = [str(peer), "eth0", template[0].frame.hex(), str(SECONDS)]

        def c() -> float:
            sent, elapsed = run_inside(path.a, argv)
            return sent / elapsed / 1000

        kpps = interleaved(
            repetitions,
            {"ours": lambda: run_child(path.a, ours), "c": c, "scapy": lambda: run_child(path.a, scapy)},
        )
    return [
        row("flood_kpps", kpps["ours"], "kpps", "64-byte frames with sequence numbers into a veth, one process"),
        row("flood_ratio_to_sendmmsg_c", kpps["ours"] / kpps["c"], "ratio", f"C sendmmsg: {kpps['c']:.0f} kpps"),
        row("flood_ratio_to_scapy_sendp", kpps["ours"] / kpps["scapy"], "ratio", f"sendp: {kpps['scapy']:.2f} kpps"),
    ]


def setup_rows(repetitions: int) -> list[Row]:
    """Milliseconds to make a host (namespace, veth, bridge port, address, up), 100 at a time, against ip -batch."""
    ms = interleaved(repetitions, {"ours": _our_setup, "ip": _ip_batch_setup})
    detail = f"{HOSTS} hosts; ip -batch: {ms['ip']:.2f} ms per host"
    return [
        row("host_setup_ms", ms["ours"], "ms", f"per host, {HOSTS} at once"),
        row("host_setup_ratio_to_ip_batch", ms["ours"] / ms["ip"], "ratio", detail),
    ]


def _our_setup() -> float:
    with NetworkNamespace.create() as hub:
        bridge = add_bridge(hub, "br0")
        started = time.perf_counter()
        hosts = add_hosts(bridge, [HostPort(f"port{n}", f"10.0.{n // 200}.{n % 200 + 1}/16") for n in range(HOSTS)])
        elapsed = time.perf_counter() - started
        wait_gone(hosts)
    return elapsed / HOSTS * 1000


def _ip_batch_setup() -> float:
    """One `ip -batch` for namespaces and links, one in each namespace for its inside, in a private /run."""
    wired = "".join(
        f"netns add h{n}\nlink add port{n} master br0 up type veth peer name eth0 netns h{n}\n" for n in range(HOSTS)
    )
    script = [
        *("set -e", "mount -t tmpfs none /run", "ip link add br0 up type bridge", "cd $1"),
        *("begin=$(date +%s%N)", "ip -batch wired", "i=0"),
        f"while [ $i -lt {HOSTS} ]; do ip -n h$i -batch inside$i; i=$((i+1)); done",
        "end=$(date +%s%N)",
        "echo $((end - begin))",
    ]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "wired").write_text(wired)
        for n in range(HOSTS):
            inside = f"link set lo up\naddr add 10.0.{n // 200}.{n % 200 + 1}/16 dev eth0\nlink set eth0 up\n"
            (Path(directory) / f"inside{n}").write_text(inside)
        argv = ["unshare", "-mn", "sh", "-c", "\n".join(script), "sh", directory]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
    _kernel_removes_namespaces()
    return int(done.stdout) / 1e6 / HOSTS


def _kernel_removes_namespaces() -> None:
    """Wait for those that a program left when it ended: it takes as long as making them, from whoever measures next.

    One that is made now and goes at once is removed after them.
    """
    wait_gone([NetworkNamespace.create()])


@contextmanager
def relaying(path: Forwarding) -> Iterator[None]:
    """A process in the middle passes frames between left and right through two packet rings, segments whole."""
    host = HostProcess("relay", _relay_main, None, [path.middle]).start()
    try:
        host.wait_ready()
        yield
    finally:
        host.close()


def _relay_main(channel: Any, _: None) -> None:
    with ExitStack() as stack:
        rings = [stack.enter_context(PacketRing(port, slots=RELAY_SLOTS, gso=True)) for port in ("left", "right")]
        senders = [stack.enter_context(PacketSender(port, gso=True)) for port in ("right", "left")]
        poller = stack.enter_context(select.epoll())
        ways = {ring.fileno(): (ring, sender) for ring, sender in zip(rings, senders, strict=True)}
        for fd in (*ways, channel.fileno()):
            poller.register(fd, select.EPOLLIN)
        channel.send(Ready("relay"))
        while True:
            for fd, _events in poller.poll():
                if fd not in ways:
                    return
                ring, sender = ways[fd]
                if (block := ring.ready(RELAY_SLOTS)) is not None:
                    sender.send(block)
                    ring.release(block)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for line in rows(count):
        print(json.dumps(line))
