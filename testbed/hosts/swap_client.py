"""The emulated swap client: one process that binds the models of memory and network to real frames and sockets.

It starts in the namespace of its NIC, where both veths end, opens the packet rings there, and then moves to its own
namespace, where its sockets are. Everything runs in one event loop, so the models need no locks.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import socket
import struct
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from multiprocess.connection import Connection

from testbed.hosts.bystander import Bystander, Receiver, working_set
from testbed.hosts.classifier import Classifier
from testbed.hosts.ledger import Ledger
from testbed.hosts.messages import Event, Finished, Ready, Sample, Shutdown, StartWorkload
from testbed.hosts.nbd_device import NbdDevice
from testbed.hosts.nic import Nic
from testbed.hosts.plan import BystanderPlan, ClientPlan
from testbed.hosts.real_buffer import enlarge
from testbed.hosts.report import Ends, client_report
from testbed.hosts.tcp_bystander import TcpBystander
from testbed.hosts.workload import TOUCHES_PER_ROUND, LinearTouch, Progress, Surroundings
from testbed.lab.errors import LabError
from testbed.lab.link import interface_statistics
from testbed.lab.namespace import NetworkNamespace
from testbed.mm.memory import Vma
from testbed.mm.node import Node
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.client import NbdClient, open_connection
from testbed.nbd.errors import NbdError
from testbed.nbd.swap_header import swap_header
from testbed.net.backlog import KernelBug
from testbed.net.dev import NetDevice
from testbed.net.sk_mem import Mem, Proto, tcp_mem, udp_mem
from testbed.net.skbuff import SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tcp_output import TcpSendQueue
from testbed.patches import Switches

WIRE, INNER, HOST_INTERFACE = "wire0", "inner0", "eth0"
SAMPLE_INTERVAL = 0.1
GC_THRESHOLDS = (50_000, 20, 100)
"""Pages and slabs make no cycles: the collector would walk hundreds of thousands of them for nothing."""
CONNECT_TIMEOUT = 10.0
SETTLE_TIMEOUT = 5.0
REAL_SEND_BUFFER = 4 << 20
"""More than the model ever lets be queued, bytes."""
CANARY_RCVBUF = 212992
PAGE_CACHE_SHARE = 16
"""One page in so many is clean page cache at start: what a booted machine has read from its root file system."""
TCP_INFO_BYTES_RECEIVED = 128
TCP_MEM_SHARE = 7
TCP_BUFFER_CEILING = 4 << 20
LEAST_SEND_BUFFER = 128 << 10


@dataclass(frozen=True, slots=True)
class SwapClientSpec:
    """What the process needs: its part of the plan, the patches that are on, the seed, the host's own namespace."""

    plan: ClientPlan
    patches: frozenset[int]
    seed: int
    host: NetworkNamespace


def swap_client_main(channel: Connection, spec: SwapClientSpec) -> None:
    """The whole life of a swap client process; the caller has put it into the NIC's namespace."""
    nic = Nic(WIRE, INNER, gso=spec.plan.gso)
    spec.host.join()
    try:
        client = SwapClient(channel, spec, nic)
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        asyncio.run(client.run())
    finally:
        nic.close()


def tcp_receive_limit(managed_pages: int) -> int:
    """The most a TCP socket may buffer on a machine of this size, bytes (tcp_init: 1/128 of memory, at most 4 MiB)."""
    return min(TCP_BUFFER_CEILING, managed_pages * PAGE_SIZE >> TCP_MEM_SHARE)


def tcp_send_limit(managed_pages: int) -> int:
    """What SO_SNDBUF is tuned to for a short path, bytes: a quarter of what the machine would allow a long one, or a
    few segments of 64 KiB.

    From 64 MiB of memory on it fits, with the ring's buffers, into the half of the reserve that throttling keeps.
    """
    return max(LEAST_SEND_BUFFER, tcp_receive_limit(managed_pages) // 4)


def _udp_mem(plan: ClientPlan, buffer_pages: int) -> Mem:
    """The kernel's own udp_mem, raised to what the UDP bystanders' buffers hold: who raises those raises this too."""
    datagram_buffers = sum(bystander.buffer for bystander in plan.bystanders if bystander.protocol == "udp")
    held = (datagram_buffers + CANARY_RCVBUF) // PAGE_SIZE
    least, pressure, most = udp_mem(buffer_pages)
    return max(least, held), max(pressure, held), max(most, held)


class SwapClient:
    """Builds the models from the plan and runs them until it is told to shut down."""

    def __init__(self, channel: Connection, spec: SwapClientSpec, nic: Nic) -> None:
        plan = spec.plan
        self.channel = channel
        self.plan = plan
        self.patches = spec.patches
        self.seed = spec.seed
        self.nic = nic
        self.namespace = NetworkNamespace.current()
        self._inner_before = interface_statistics(self.namespace, HOST_INTERFACE)["rx_packets"]
        self.switches = Switches.of(spec.patches, plan.rules)
        self.ram = mmap.mmap(-1, plan.memory)
        self.device = NbdDevice(self.switches)
        self.node = Node(
            memoryview(self.ram),
            self.device,
            plan.swap.bytes // PAGE_SIZE,
            self.switches,
            min_free_kbytes=plan.min_free_kbytes,
            page_cache=plan.memory // PAGE_SIZE // PAGE_CACHE_SHARE,
        )
        self.netstat = NetStat()
        self.socket_memory = SocketMemory(self.switches, self.netstat)
        self.skb_memory = SkbMemory(self.node, self.netstat, plan.interface.mtu)
        managed = self.node.zone.managed
        rules, buffer_pages = self.switches.rules, managed - self.node.zone.watermarks.high
        self.tcp = Proto("TCP", plan.tcp_mem or tcp_mem(buffer_pages, rules), rules, has_memory_pressure=True)
        self.udp = Proto("UDP", plan.udp_mem or _udp_mem(plan, buffer_pages), rules, has_memory_pressure=False)
        self.swap_sk = Sock("swap", plan.receive_buffer or tcp_receive_limit(managed), swap=True, prot=self.tcp)
        self.receive_queue = TcpReceiveQueue(self.swap_sk, self.skb_memory)
        self.send_queue = TcpSendQueue(self.swap_sk, self.skb_memory, plan.send_buffer or tcp_send_limit(managed))
        self.ledger = Ledger(self.node.zone)
        self.netdev = NetDevice(self.skb_memory, self.socket_memory, self.netstat, plan.ring, self.ledger.tally)
        self.bystanders = [self._bystander(bystander) for bystander in plan.bystanders]
        self.canary = Bystander("canary", plan.interface.address, plan.canary_port, CANARY_RCVBUF, self.udp)
        self.progress = Progress()
        self.tasks: list[asyncio.Task[None]] = []
        self.kernel_threads: list[asyncio.Task[None]] = []
        self.stopping = asyncio.Event()
        self.workload_started: float | None = None
        self.workload_ended: float | None = None
        self.nr_tasks = 0
        self.panic: str | None = None
        """The BUG that stopped the machine."""

    def _bystander(self, plan: BystanderPlan) -> Bystander | TcpBystander:
        name, address = f"{plan.reader}:{plan.port}", self.plan.interface.address
        if plan.protocol == "tcp":
            return TcpBystander(name, address, plan.port, plan.buffer, self.skb_memory, self.tcp)
        return Bystander(name, address, plan.port, plan.buffer, self.udp)

    @property
    def sockets(self) -> list[Bystander]:
        """The unrelated UDP sockets, the canary's included."""
        return [self.canary, *(bystander for bystander in self.bystanders if isinstance(bystander, Bystander))]

    @property
    def listeners(self) -> list[TcpBystander]:
        """The unrelated TCP sockets."""
        return [bystander for bystander in self.bystanders if isinstance(bystander, TcpBystander)]

    @property
    def unrelated(self) -> list[Sock]:
        """The model's sockets of all unrelated traffic there has been."""
        queues = [queue for listener in self.listeners for queue in listener.queues]
        return [bystander.sk for bystander in self.sockets] + [queue.sk for queue in queues]

    async def run(self) -> None:
        """Connect, make the swap area, report, obey, account."""
        client = await self._start()
        asyncio.get_running_loop().add_reader(self.channel.fileno(), self._obey)
        self.channel.send(Ready(self.plan.name, {"swap_bytes": client.export_size}))
        sampler = asyncio.create_task(self._sample())
        await self.stopping.wait()
        sampler.cancel()
        await self._stop(client)

    async def _start(self) -> NbdClient:
        swap = self.plan.swap
        classifier = Classifier(
            self.plan.interface.mac,
            (swap.address, swap.port),
            self.receive_queue,
            {bystander.port: bystander.sk for bystander in self.sockets},
            gso=self.plan.gso,
            listeners={listener.port: listener.connection_request for listener in self.listeners},
        )
        self.netdev.alloc_rx_buffers()
        self.nic.attach(self.netdev, classifier, self.ledger, self.swap_sk, swap.port)
        try:
            client = await asyncio.to_thread(self._connect)
        except (OSError, NbdError) as error:
            raise LabError(f"no swap area at {swap.address} port {swap.port}: {error}") from error
        self._mkswap_check(client)
        await self._mkswap(client)
        self._swapon(client, classifier)
        return client

    def _connect(self) -> NbdClient:
        swap = self.plan.swap
        real = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        real.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, int(self.swap_sk.rcvbuf * 0.3))
        enlarge(real, socket.SO_SNDBUF, REAL_SEND_BUFFER)
        real.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        real.settimeout(CONNECT_TIMEOUT)
        try:
            real.connect((swap.address, swap.port))
            return open_connection(real, swap.export)
        except BaseException:
            real.close()
            raise

    def _mkswap_check(self, client: NbdClient) -> None:
        if client.export_size < self.plan.swap.bytes:
            raise LabError(
                f"the server's export has {client.export_size} bytes, the swap area needs {self.plan.swap.bytes}"
            )

    async def _mkswap(self, client: NbdClient) -> None:
        """Write the header of a swap area to the export's first page, as mkswap does."""
        header = swap_header(self.plan.swap.bytes // PAGE_SIZE, None)
        client.write(0, 0, [memoryview(header)])
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while client.in_flight:
            client.send_pending()
            if any(error for _, error in client.receive()):
                raise LabError("the server would not take the header of the swap area: is it read-only?")
            if time.monotonic() > deadline:
                raise LabError(f"the server did not store the swap header within {CONNECT_TIMEOUT:g} s")
            await asyncio.sleep(0.002)

    def _swapon(self, client: NbdClient, classifier: Classifier) -> None:
        info = client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        self.receive_queue.copied_seq = struct.unpack_from("=Q", info, TCP_INFO_BYTES_RECEIVED)[0]
        classifier.attached = True
        self.device.attach(client, self.node.swap_io, self.receive_queue, self.send_queue, self.socket_memory)
        self.nic.on_swap_frames = self.device.tcp_ack
        self.device.on_first_write = lambda: self._event("swapping", {})
        self.kernel_threads = [
            asyncio.create_task(self.node.kswapd.run()),
            asyncio.create_task(self.device.nbd_thread()),
        ]
        self.canary.read_promptly(self.netdev)
        for bystander, plan in zip(self.bystanders, self.plan.bystanders, strict=True):
            if isinstance(bystander, TcpBystander):
                bystander.accept_each(partial(self._read, plan))
            else:
                self._read(plan, bystander)

    def _read(self, plan: BystanderPlan, receiver: Receiver) -> None:
        """Have a socket read as its plan says. A faulting TCP reader always owns its socket (`tcp_recvmsg`)."""
        if plan.reader == "prompt":
            receiver.read_promptly(self.netdev)
        elif plan.reader != "never":
            owned = plan.protocol == "tcp" or plan.reader == "corked"
            vma = working_set(Task(f"reader{plan.port}"))
            self._spawn(self._read_after_faulting(receiver, vma, owned=owned))

    async def _read_after_faulting(self, receiver: Receiver, vma: Vma, *, owned: bool) -> None:
        try:
            await receiver.read_after_faulting(self.netdev, self.node.memory, vma, owned=owned)
        except KernelBug as bug:
            self._panic(bug)

    def _panic(self, bug: KernelBug) -> None:
        """A BUG in a softirq stops the machine: no task runs again, and no frame is taken."""
        if self.panic is not None:
            return
        self.panic = str(bug)
        self._event("panic", {"message": self.panic})
        self.nic.detach()
        for task in (*self.tasks, *self.kernel_threads):
            task.cancel()
        if self.workload_started is not None and self.workload_ended is None:
            self._end_workload()

    def _end_workload(self) -> None:
        self.workload_ended = time.monotonic()
        self._event("workload_ended", {"finished_tasks": self.progress.finished_tasks})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    def _obey(self) -> None:
        try:
            command = self.channel.recv()
        except EOFError:
            self.stopping.set()
            return
        if isinstance(command, StartWorkload):
            self._start_workload()
        elif isinstance(command, Shutdown):
            self.stopping.set()

    def _start_workload(self) -> None:
        workload = self.plan.workload
        self.nr_tasks = workload.processes
        self.workload_started = time.monotonic()
        surroundings = Surroundings(self.node.memory, self.ram, self.seed, self.progress, self._event)
        share = max(1, TOUCHES_PER_ROUND // workload.processes)
        for number in range(workload.processes):
            pages = workload.pages // workload.processes + (number < workload.pages % workload.processes)
            touch = LinearTouch(number, pages, workload.passes, share, surroundings)
            self.node.oom_killer.tasks.add(touch.task)
            self._spawn(self._run_task(touch))

    async def _run_task(self, touch: LinearTouch) -> None:
        await touch.run()
        self.node.oom_killer.tasks.discard(touch.task)
        if self.progress.finished_tasks + self.progress.killed_tasks == self.nr_tasks:
            self._end_workload()

    def _event(self, name: str, fields: dict[str, Any]) -> None:
        self.channel.send(Event(self.plan.name, time.monotonic(), name, fields))

    async def _sample(self) -> None:
        while True:
            self._send_sample()
            await asyncio.sleep(SAMPLE_INTERVAL)

    def _send_sample(self) -> None:
        now = time.monotonic()
        self.ledger.close_interval(now)
        self.channel.send(Sample(self.plan.name, now, self.counters()))

    def counters(self) -> dict[str, int]:
        """Every counter and gauge of this host."""
        progress = self.progress
        return {
            **self.node.counters(),
            **self.netstat.snapshot(),
            "swap_completions": self.node.swap_io.completions,
            "rx_refill_fail": self.netstat.alloc_rx_buff_failed,
            "rx_ring_filled": len(self.netdev.ring),
            "tasks_waiting": progress.waiting,
            "touches": progress.touches,
            "finished_tasks": progress.finished_tasks,
            "killed_tasks": progress.killed_tasks,
            "corrupt": progress.corrupt,
            "sk_wmem_queued": self.send_queue.sk.wmem_queued,
            "sk_rmem_alloc": self.swap_sk.rmem_alloc,
            "bystander_rmem_alloc": sum(sk.rmem_alloc for sk in self.unrelated) - self.canary.sk.rmem_alloc,
            "backlog_skbs": self.nr_backlog(),
            "udp_memory_allocated": self.udp.memory_allocated,
            "tcp_memory_allocated": self.tcp.memory_allocated,
            "TCPMemoryPressures": self.tcp.memory_pressures,
            "canary_received": self.canary.received,
            "swap_used": self.node.swap.inuse_pages,
            "swap_write_errors": self.node.swap_io.write_errors,
            "swap_read_errors": self.node.swap_io.read_errors,
            "tp_drops": self.nic.wire_ring.statistics()[1],
        }

    def nr_backlog(self) -> int:
        """Skbs that wait for a socket to be released."""
        return sum(len(sk.backlog) for sk in (self.swap_sk, *self.unrelated) if sk.backlog is not None)

    async def _stop(self, client: NbdClient) -> None:
        """End the tasks, then the kernel threads, and give every page back."""
        memory = self._gauges()
        for task in self.tasks:
            task.cancel()
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while not self.device.idle and self.workload_ended is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await self._drain_wire()
        counters = self.counters()
        interfaces = self._interfaces()
        self.device.disconnect()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for thread in self.kernel_threads:
            thread.cancel()
        await asyncio.gather(*self.kernel_threads, return_exceptions=True)
        self.nic.detach()
        pending = self.nr_backlog()
        for bystander in (self.canary, *self.bystanders):
            bystander.drain(self.netdev)
        self.receive_queue.purge()
        self.send_queue.purge()
        self.netdev.close()
        self.node.drop_caches()
        client.close()
        self.ledger.close_interval(time.monotonic())
        self.channel.send(Finished(self.plan.name, client_report(self, counters, memory, Ends(interfaces, pending))))

    async def _drain_wire(self) -> None:
        """Take the last frames, until the kernel's own count of them agrees or there is no hope that it will."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while time.monotonic() < deadline:
            self.nic.receive()
            taken = self.nic.wire_frames + self.nic.wire_ring.statistics()[1]
            if self.nic.wire_rx_packets() == taken:
                return
            await asyncio.sleep(0.01)

    def _interfaces(self) -> dict[str, int]:
        """Packets as the kernel counts them on both sides of the model, and as the model does."""
        return {
            "wire_rx_packets": self.nic.wire_rx_packets(),
            "wire_received": self.nic.wire_frames,
            "tp_drops": self.nic.wire_ring.statistics()[1],
            "inner_rx_packets": interface_statistics(self.namespace, HOST_INTERFACE)["rx_packets"] - self._inner_before,
            "inner_delivered": self.nic.host_frames,
        }

    def _gauges(self) -> dict[str, int]:
        marks = self.node.zone.watermarks
        return {
            "total": self.node.zone.managed,
            "min": marks.min,
            "low": marks.low,
            "high": marks.high,
            "reserve_min_free": self.node.zone.nr_free_min,
        }
