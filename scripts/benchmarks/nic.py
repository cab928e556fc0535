"""The emulated NIC with its model against C and a kernel bridge: frames dropped, frames delivered, one TCP stream.

Every frame goes the way it goes in a run: packet ring, classifier, descriptor ring, NAPI poll, receive path, ledger,
refill from the emulated allocator, and on to the host's veth if the model lets it. The rows differ only in how much
memory the host has and who its frames are for. Both sides of a ratio get the same frames from the same sender, in
turn, and the medians are compared. Run by itself as root, with PYTHONPATH at the top of the project:
`python -m scripts.benchmarks.nic [repetitions]`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import mmap
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.lab import (
    ENDS,
    MAC_B,
    SECONDS,
    Forwarding,
    Row,
    compiled_peer,
    forwarding_path,
    relaying,
    row,
    run_inside,
    run_reporting,
)
from testbed.hosts.classifier import Classifier
from testbed.hosts.ledger import Ledger
from testbed.hosts.messages import Failed, Finished, Ready
from testbed.hosts.nic import Nic
from testbed.hosts.swap_client import GC_THRESHOLDS
from testbed.lab.errors import LabError
from testbed.lab.link import interface_statistics
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.process import HostProcess
from testbed.lab.templates import build
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.net.dev import NetDevice
from testbed.net.drop_reason import DropReason
from testbed.net.skbuff import SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.patches import PATCHES, Switches

UDP_PORT, TCP_PORT, CLIENT_PORT = 9, 10809, 40000
MTU = 1500
RING = 1024
SCARCE, PLENTY = 64 << 20, 256 << 20
SCARCE_MIN_FREE_KBYTES = 8192
UNLIMITED = 1 << 30
MOSTLY = 0.95
COUNTER = struct.Struct("=Q")


class NoDisk:
    """A swap device that nobody uses: no task of these hosts touches memory."""

    async def submit_write(self, pages: Any, nice: int) -> None:
        raise NotImplementedError

    async def submit_read(self, pages: Any, nice: int) -> None:
        raise NotImplementedError


class Host:
    """A NIC between left and right of a forwarding path, and the model it asks; make it in the middle namespace. Its
    slabs are of one page, as a run's with the rules of V9 are.

    With `scarce` memory free pages stay at half of min or below, so that receive buffers come from the reserve. The
    few that patch 03's unchecked fast path takes from a CPU slab of the reserve, unmarked, end at a full socket.
    """

    def __init__(self, *, scarce: bool, gso: bool) -> None:
        switches = Switches.of(frozenset(PATCHES))
        self.ram = mmap.mmap(-1, SCARCE if scarce else PLENTY)
        min_free_kbytes = SCARCE_MIN_FREE_KBYTES if scarce else None
        memory = memoryview(self.ram)
        self.node = Node(memory, NoDisk(), 1024, switches, min_free_kbytes=min_free_kbytes, slub_max_order=0)
        if scarce:
            self._held = self._take_pages()
        self.netstat = NetStat()
        self.socket_memory = SocketMemory(switches, self.netstat)
        skb_memory = SkbMemory(self.node, self.netstat, MTU)
        self.swap_sk = Sock("swap", UNLIMITED, swap=True)
        self.socket_memory.sk_set_memalloc(self.swap_sk)
        self.queue = TcpReceiveQueue(self.swap_sk, skb_memory)
        self.plain_sk = Sock("plain", 0 if scarce else UNLIMITED)
        self.ledger = Ledger(self.node.page_alloc)
        self.device = NetDevice(skb_memory, self.socket_memory, self.netstat, RING, self.ledger.tally)
        self.device.alloc_rx_buffers()
        self.nic = Nic("left", "right", gso=gso)
        server = (ENDS.source_ip, TCP_PORT)
        self.classifier = Classifier(MAC_B, server, {UDP_PORT: self.plain_sk}, gso=gso)

    def _take_pages(self) -> list[Page]:
        zone = self.node.zone
        return zone.free.take(zone.nr_free_pages - zone.watermarks.min // 2)

    def attach(self) -> None:
        """Connect the NIC to the running event loop, garbage collected as in a run; CPU time counts from here."""
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self.nic.attach(self.device, self.classifier, self.ledger, TCP_PORT)
        self.classifier.connect(CLIENT_PORT, self.queue)
        self.nic.swapon(CLIENT_PORT, self.swap_sk)
        self._cpu = time.process_time()

    def accounts(self) -> dict[str, float]:
        """What became of the frames; raises LabError if one is missing."""
        reasons = {reason.name: float(self.ledger.count(reason=reason)) for reason in DropReason}
        if sum(reasons.values()) != self.nic.wire_segments:
            raise LabError(f"{self.nic.wire_segments} frames received, but {reasons} accounted for")
        tp_drops = self.nic.wire_ring.statistics()[1]
        cpu = time.process_time() - self._cpu
        return {"frames": float(self.nic.wire_frames), "tp_drops": float(tp_drops), "cpu": cpu, **reasons}


def rows(repetitions: int = 5) -> list[Row]:
    """All rows of the NIC."""
    return [drop_row(repetitions), deliver_row(repetitions), *tcp_rows(repetitions)]


def medians(repetitions: int, sides: dict[str, Callable[[], dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The median of each number of each side, the sides run in turn."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            measured[name].append(side())
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in measured.items()
    }


def udp_frame() -> str:
    """The flood's one 64-byte frame, in hex."""
    return build("udp", ENDS, [UDP_PORT], 64)[0].frame.hex()


# --- frames dropped ---


def drop_row(repetitions: int) -> Row:
    """Frames per second of which each is received into reserve memory, filtered, freed and its buffer replaced."""
    with forwarding_path(bridge=False) as path, ExitStack() as stack:
        send = stack.enter_context(compiled_peer("sendmmsg"))
        receive = stack.enter_context(compiled_peer("recv_loop"))

        def c() -> dict[str, float]:
            with flooded(path.a, send):
                count, elapsed, cpu = run_inside(path.middle, [receive, "left", str(SECONDS)])
            return {"kpps": count / elapsed / 1000, "cpu_kpps": count / cpu / 1000}

        def ours() -> dict[str, float]:
            with flooded(path.a, send):
                return run_reporting(path.middle, _drop)

        seen = medians(repetitions, {"ours": ours, "c": c})
    us, them = seen["ours"], seen["c"]
    return row(
        "rx_drop_ratio_to_c",
        us["kpps"] / them["kpps"],
        "ratio",
        f"live C flood of 64-byte UDP frames, all into reserve memory and dropped by sk_filter: {us['kpps']:.0f} kpps, "
        f"C recvfrom loop {them['kpps']:.0f}; per CPU-second {us['cpu_kpps']:.0f} against {them['cpu_kpps']:.0f}",
    )


@contextmanager
def flooded(source: NetworkNamespace, send: Path) -> Iterator[None]:
    """C floods out of a namespace's eth0 meanwhile."""
    with source.entered():
        flood = subprocess.Popen([send, "eth0", udp_frame(), "1000"], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        flood.kill()
        flood.wait()


def _drop() -> dict[str, float]:
    host = Host(scarce=True, gso=False)
    elapsed = asyncio.run(_run_for(host, SECONDS))
    seen = host.accounts()
    if seen["PFMEMALLOC"] < MOSTLY * seen["frames"] or seen["RX_MISSED"]:
        raise LabError(f"not every frame was dropped for its memory: {seen}")
    return {"kpps": seen["frames"] / elapsed / 1000, "cpu_kpps": seen["frames"] / seen["cpu"] / 1000}


async def _run_for(host: Host, seconds: float) -> float:
    """Wall seconds of the event loop with the NIC attached to it."""
    host.attach()
    started = time.monotonic()
    await asyncio.sleep(seconds)
    return time.monotonic() - started


# --- frames delivered ---


def deliver_row(repetitions: int) -> Row:
    """Frames per second that reach the host behind the NIC, each queued on a socket of the model and read from it."""
    with compiled_peer("sendmmsg") as send, ExitStack() as stack:
        ours_path = stack.enter_context(forwarding_path(bridge=False))
        bridged = stack.enter_context(forwarding_path(bridge=True))
        for path in (ours_path, bridged):
            with path.b.entered():
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("", UDP_PORT))

        def arriving(path: Forwarding) -> dict[str, float]:
            before, started = interface_statistics(path.b, "eth0")["rx_packets"], time.monotonic()
            run_inside(path.a, [send, "eth0", udp_frame(), str(SECONDS)])
            elapsed = time.monotonic() - started
            return {"kpps": (interface_statistics(path.b, "eth0")["rx_packets"] - before) / elapsed / 1000}

        def ours() -> dict[str, float]:
            with serving(ours_path, _deliver_main) as report:
                kpps = arriving(ours_path)
            return kpps | {"cpu_kpps": report["DELIVERED"] / report["cpu"] / 1000}

        seen = medians(repetitions, {"ours": ours, "bridge": lambda: arriving(bridged)})
    us, them = seen["ours"], seen["bridge"]
    return row(
        "rx_deliver_ratio_to_bridge",
        us["kpps"] / them["kpps"],
        "ratio",
        f"live C flood of 64-byte UDP frames to a real socket nobody reads, the model's socket read at once: "
        f"{us['kpps']:.0f} kpps arrive, through a kernel bridge {them['kpps']:.0f}; "
        f"{us['cpu_kpps']:.0f} kpps per CPU-second",
    )


@contextmanager
def serving(path: Forwarding, main: Callable[..., None], spec: Any = None) -> Iterator[dict[str, float]]:
    """Run a NIC in the middle meanwhile; its accounts are in what this yields, afterwards."""
    report: dict[str, float] = {}
    host = HostProcess("nic", main, spec, [path.middle]).start()
    try:
        host.wait_ready()
        yield report
        host.stop()
        for message in host.messages():
            if isinstance(message, Failed):
                raise LabError(message.message)
            if isinstance(message, Finished):
                report |= message.report
    finally:
        host.close()


def _deliver_main(channel: Any, _: None) -> None:
    host = Host(scarce=False, gso=False)

    async def run() -> None:
        host.attach()
        loop = asyncio.get_running_loop()

        def receive_and_read() -> None:
            host.nic.receive()
            host.device.read_datagrams(host.plain_sk, len(host.plain_sk.receive_queue))

        loop.add_reader(host.nic.wire_ring.fileno(), receive_and_read)
        await _until_told(channel)

    asyncio.run(run())
    channel.send(Finished("nic", host.accounts()))


async def _until_told(channel: Any) -> None:
    """Say that all is ready, and wait for the word to stop."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_reader(channel.fileno(), told.set)
    channel.send(Ready("nic"))
    await told.wait()


# --- a TCP stream ---


@dataclass(frozen=True, slots=True)
class Stream:
    """Where a stream's bytes are counted by its reader, and whether they come in through the NIC or go out."""

    read: mmap.mmap
    inwards: bool


def tcp_rows(repetitions: int) -> list[Row]:
    """Gbit/s of one TCP stream, 64 KiB segments passed whole: through two packet rings as the NIC has them, and through
    the NIC, whose model has each segment of 1,500 bytes allocated, queued, read and freed. The bridge copies nothing.
    """
    counter = mmap.mmap(-1, mmap.PAGESIZE)
    with forwarding_path(bridge=False) as ours_path, forwarding_path(bridge=True) as bridged:

        def ours(inwards: bool) -> dict[str, float]:
            stream = Stream(counter, inwards)
            COUNTER.pack_into(counter, 0, 0)
            with serving(ours_path, _tcp_main, stream) as report:
                gbit = stream_gbit(ours_path, stream)
            lost = sum(report[reason.name] for reason in DropReason if reason != DropReason.DELIVERED)
            return {"gbit": gbit, "lost": lost + report["tp_drops"], "gbit_per_cpu": gbit * SECONDS / report["cpu"]}

        def rings(inwards: bool) -> dict[str, float]:
            with relaying(ours_path):
                return {"gbit": stream_gbit(ours_path, Stream(counter, inwards))}

        def bridge(inwards: bool) -> dict[str, float]:
            return {"gbit": stream_gbit(bridged, Stream(counter, inwards))}

        sides = {
            "in": lambda: ours(True),
            "rings in": lambda: rings(True),
            "bridge in": lambda: bridge(True),
            "out": lambda: ours(False),
            "rings out": lambda: rings(False),
            "bridge out": lambda: bridge(False),
        }
        seen = medians(repetitions, sides)
    gbit = {name: side["gbit"] for name, side in seen.items()}
    bridged_gbit = f"kernel bridge {gbit['bridge in']:.1f} in, {gbit['bridge out']:.1f} out"
    return [
        row(
            "tcp_gso_ratio_to_bridge",
            gbit["rings in"] / gbit["bridge in"],
            "ratio",
            f"two packet rings without a model: {gbit['rings in']:.1f} Gbit/s in, {gbit['rings out']:.1f} out; "
            f"{bridged_gbit}",
        ),
        row(
            "tcp_gso_model_ratio_to_bridge",
            gbit["in"] / gbit["bridge in"],
            "ratio",
            f"the same with every segment in the model: {gbit['in']:.1f} Gbit/s in ({seen['in']['lost']:.0f} frames "
            f"lost), {gbit['out']:.1f} out; {bridged_gbit}",
        ),
    ]


def _tcp_main(channel: Any, stream: Stream) -> None:
    host = Host(scarce=False, gso=True)

    def read() -> None:
        host.queue.copied(COUNTER.unpack_from(stream.read)[0] - host.queue.copied_seq)

    async def run() -> None:
        host.attach()
        if stream.inwards:
            host.nic.on_swap_frames = read
        await _until_told(channel)

    asyncio.run(run())
    channel.send(Finished("nic", host.accounts()))


def stream_gbit(path: Forwarding, stream: Stream) -> float:
    """Gbit/s from host a to b (inwards) or back over SECONDS, as read. The server is always a, as in a run."""
    reader_is_server = not stream.inwards
    server = HostProcess("server", _server_main, (stream, reader_is_server), [path.a]).start()
    try:
        server.wait_ready()
        seen = run_reporting(path.b, lambda: _client(stream, not reader_is_server))
        server.stop()
        messages = [message for message in server.messages() if isinstance(message, Finished)]
    finally:
        server.close()
    seen = messages[0].report if reader_is_server else seen
    return seen["bytes"] * 8e-9 / seen["seconds"]


def _server_main(channel: Any, spec: tuple[Stream, bool]) -> None:
    stream, reads = spec
    with socket.create_server((ENDS.source_ip, TCP_PORT)) as server:
        channel.send(Ready("server"))
        with server.accept()[0] as connection:
            channel.send(Finished("server", _transfer(connection, stream, reads)))


def _client(stream: Stream, reads: bool) -> dict[str, float]:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.bind((ENDS.destination_ip, CLIENT_PORT))
        connection.connect((ENDS.source_ip, TCP_PORT))
        return _transfer(connection, stream, reads)


def _transfer(connection: socket.socket, stream: Stream, reads: bool) -> dict[str, float]:
    """Read for SECONDS, telling the stream's counter, or send until the reader hangs up."""
    buffer, received, started = bytearray(1 << 20), 0, time.monotonic()
    if not reads:
        with suppress(OSError):
            while True:
                connection.sendall(buffer)
    while reads and time.monotonic() < started + SECONDS and (got := connection.recv_into(buffer)):
        received += got
        COUNTER.pack_into(stream.read, 0, received)
    return {"bytes": float(received), "seconds": time.monotonic() - started}


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for line in rows(count):
        print(json.dumps(line))
