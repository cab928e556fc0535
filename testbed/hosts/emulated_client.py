"""An emulated swap client: the models of memory and network put together, its workload, and its account of it all.

What lies beyond the models is its `Edge`: real packet rings and sockets in a run, simulated ones in a simulation.
Everything runs in one event loop, so the models need no locks; the loop's clock is the only one there is.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from testbed.hosts.bystander import Bystander, Receiver, UdpSocket
from testbed.hosts.client_faults import ClientFaults
from testbed.hosts.cpu_times import CpuClock, CpuTimes
from testbed.hosts.ledger import Ledger
from testbed.hosts.messages import (
    ClearFault,
    Command,
    Event,
    Finished,
    Message,
    Ready,
    Sample,
    SetFault,
    Shutdown,
    StartWorkload,
)
from testbed.hosts.nbd_device import NbdConfig, NbdDevice
from testbed.hosts.nbd_sock import SwapSocket
from testbed.hosts.plan import BystanderPlan, ClientPlan
from testbed.hosts.proc_files import proc_files
from testbed.hosts.reconnect import Reconnect
from testbed.hosts.report import Ends, client_report
from testbed.hosts.same_host import SameHostServer
from testbed.hosts.swap_area import check_swap_area
from testbed.hosts.tcp_bystander import TcpBystander
from testbed.hosts.tcpdump import Tcpdump
from testbed.hosts.tracepoints import Tracepoints
from testbed.hosts.virtual_machine import VirtualMachine
from testbed.hosts.working_set import WorkingSet
from testbed.hosts.workload import TOUCHES_PER_ROUND, LinearTouch, Progress, Surroundings
from testbed.lab.errors import LabError
from testbed.mm.filemap import AddressSpace
from testbed.mm.mempolicy import mpol_parse_str
from testbed.mm.node import Node
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.client import NbdClient
from testbed.nbd.errors import NbdError
from testbed.nbd.swap_header import swap_header
from testbed.net.backlog import Backlog, KernelBug
from testbed.net.bridge import Bridge
from testbed.net.dev import NetDevice
from testbed.net.sk_mem import Mem, Proto, tcp_mem, udp_mem
from testbed.net.skbuff import SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.net.tcp_init import tcp_receive_limit, tcp_send_limit
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tcp_output import TcpSendQueue
from testbed.patches import Switches

SAMPLE_INTERVAL = 0.1
MKSWAP_TIMEOUT = 10.0
SWAP_FILE = "/dev/nbd0"
SETTLE_TIMEOUT = 5.0
CANARY_RCVBUF = 212992
TCP_IP_HEADERS = 52
RECEIVE_WINDOW_SHARE = 0.48
"""How much of the receive buffer full frames may take; short ones take more than their share (tcp_grow_window)."""


class Edge(Protocol):
    """Where an emulated client meets the world.

    `received` counts the frames that the NIC was given (a GSO frame as its segments), `lost` those that it lost before
    the model saw them, `tx_dropped` those that the host's own side had no room for.
    """

    @property
    def received(self) -> int: ...

    @property
    def lost(self) -> int: ...

    @property
    def tx_dropped(self) -> int: ...

    def udp_socket(self, address: str, port: int, rcvbuf: int) -> UdpSocket:
        """A socket that never blocks, with room for more than `rcvbuf` bytes."""
        ...

    def tcp_listener(self, address: str, port: int, rcvbuf: int) -> socket.socket:
        """A listening socket that never blocks; its connections hold less than `rcvbuf` bytes. Raises LabError."""
        ...

    def attach(self, client: EmulatedClient) -> None:
        """Let frames come in."""
        ...

    async def connect(self, swap_socket: SwapSocket) -> NbdClient:
        """A connection to the swap server that has chosen its export. Raises LabError."""
        ...

    def swapon(self, nbd: NbdClient, swap_socket: SwapSocket) -> None:
        """Tell the receive queue how far the connection has come, and from now on the client's device of each ACK."""
        ...

    def disconnect(self, nbd: NbdClient) -> None:
        """The connection is about to be closed."""
        ...

    async def drain(self) -> None:
        """Take the frames that are still on their way."""
        ...

    def interfaces(self) -> dict[str, int]:
        """Packets on both sides of the model: as the world counts them, and as the model does."""
        ...

    def detach(self) -> None:
        """Take no more frames."""
        ...


def default_udp_mem(plan: ClientPlan, buffer_pages: int) -> Mem:
    """The kernel's own udp_mem, raised to what the UDP bystanders' buffers hold: who raises those raises this too."""
    datagram_buffers = sum(bystander.buffer for bystander in plan.bystanders if bystander.protocol == "udp")
    held = (datagram_buffers + CANARY_RCVBUF) // PAGE_SIZE
    least, pressure, most = udp_mem(buffer_pages)
    return max(least, held), max(pressure, held), max(most, held)


class EmulatedClient:
    """Builds the models from the plan and runs them until it is told to shut down. `say` takes its messages.

    `page_bytes` is how many bytes of each page of user memory are kept: all of them, unless the edge's NBD connection
    can make up the rest. Samples come every `sample_interval` seconds. `cpu_clock` tells this process's CPU time, if
    that is worth telling.
    """

    def __init__(
        self,
        plan: ClientPlan,
        patches: frozenset[int],
        seed: int,
        edge: Edge,
        say: Callable[[Message], None],
        *,
        page_bytes: int = PAGE_SIZE,
        sample_interval: float = SAMPLE_INTERVAL,
        cpu_clock: CpuClock | None = None,
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.edge = edge
        self.say = say
        self.page_bytes = page_bytes
        self.sample_interval = sample_interval
        self.switches = Switches.of(patches, plan.rules)
        self.ram = mmap.mmap(-1, plan.memory)
        nbd_config = NbdConfig(plan.nbd_connections, plan.nbd_timeout, plan.nbd_dead_conn_timeout)
        self.device = NbdDevice(self.switches, nbd_config)
        self.netstat = NetStat()
        self.socket_memory = SocketMemory(self.switches, self.netstat)
        self.node = Node(
            memoryview(self.ram),
            self.device,
            plan.swap.bytes // PAGE_SIZE,
            self.switches,
            min_free_kbytes=plan.min_free_kbytes,
            page_cache=plan.page_cache // PAGE_SIZE,
            zones=plan.zones,
            nodes=plan.nodes,
            slab=plan.slab,
            slub_max_order=plan.slub_max_order,
            memalloc_socks=lambda: self.socket_memory.memalloc_socks,
        )
        self.node.fs_bio_set.init(Task("swapper"))
        if page_bytes != PAGE_SIZE:
            self.ram = self._keep_only(page_bytes)
        self.skb_memory = SkbMemory(self.node, self.netstat, plan.interface.mtu, plan.driver)
        managed = self.node.page_alloc.managed
        rules, buffer_pages = self.switches.rules, managed - plan.watermarks.high
        self.tcp = Proto("TCP", plan.tcp_mem or tcp_mem(buffer_pages, rules), rules, has_memory_pressure=True)
        self.udp = Proto("UDP", plan.udp_mem or default_udp_mem(plan, buffer_pages), rules, has_memory_pressure=False)
        self.receive_buffer = plan.receive_buffer or tcp_receive_limit(managed)
        self.send_buffer = plan.send_buffer or tcp_send_limit(managed)
        self.ledger = Ledger(self.node.page_alloc)
        self.netdev = NetDevice(
            self.skb_memory,
            self.socket_memory,
            self.netstat,
            plan.ring,
            self.ledger.tally,
            copybreak=plan.copybreak,
            gro=plan.gro,
        )
        self.tap = None if plan.tap is None else Tcpdump(self.netdev, plan.tap)
        self.virtual_machines = [VirtualMachine(each, self.skb_memory) for each in plan.virtual_machines]
        if self.virtual_machines:
            bridge = Bridge(self.skb_memory, [each.tun for each in self.virtual_machines], self.netdev.softirq)
            self.netdev.rx_handler = bridge.br_handle_frame
        self.bystanders = [self._bystander(bystander) for bystander in plan.bystanders]
        self.canary = self._udp_bystander("canary", plan.canary_port, CANARY_RCVBUF)
        same_host = plan.swap.same_host
        self.file = AddressSpace(self.node, same_host.disk) if same_host and same_host.disk else None
        """The page cache of the swap server's file, if both are on this machine."""
        self.server_tasks: list[Task] = []
        self.faults = ClientFaults(self.node, self.bystanders, self._event)
        self.progress = Progress()
        self.cpu_times = CpuTimes(cpu_clock)
        self.tasks: list[asyncio.Task[None]] = []
        self.kernel_threads: list[asyncio.Task[None]] = []
        self.reconnecting: asyncio.Task[None] | None = None
        self.stopping = asyncio.Event()
        self.workload_started: float | None = None
        self.workload_ended: float | None = None
        self.nr_tasks = 0
        self.tracepoints: Tracepoints | None = None
        self.swap_bytes = 0
        self.panic: str | None = None
        """The BUG that stopped the machine."""

    def _keep_only(self, page_bytes: int) -> mmap.mmap:
        """Give each page a buffer of so many bytes only; the RAM that they came from is never touched."""
        pages = [page for zone in self.node.zones for page in zone.pages]
        kept = mmap.mmap(-1, len(pages) * page_bytes)
        view = memoryview(kept)
        for page in pages:
            page.buffer = view[page.pfn * page_bytes : (page.pfn + 1) * page_bytes]
        return kept

    def _bystander(self, plan: BystanderPlan) -> Bystander | TcpBystander:
        name, port, rcvbuf = f"{plan.reader}:{plan.port}", plan.port, plan.buffer
        if plan.protocol == "udp":
            return self._udp_bystander(name, port, rcvbuf)
        real = self.edge.tcp_listener(self.plan.interface.address, port, rcvbuf)
        return TcpBystander(name, port, rcvbuf, real, self.skb_memory, self.tcp)

    def _udp_bystander(self, name: str, port: int, rcvbuf: int) -> Bystander:
        real = self.edge.udp_socket(self.plan.interface.address, port, rcvbuf)
        return Bystander(name, port, rcvbuf, real, self.udp)

    @property
    def receive_window(self) -> int:
        """Bytes of data that the server may send ahead, which must fit the model's receive buffer at its true size."""
        payload = self.plan.interface.mtu - TCP_IP_HEADERS
        return int(self.receive_buffer * RECEIVE_WINDOW_SHARE * payload / self.skb_memory.rx_truesize)

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
        """Connect, make the swap area, report, obey, account. Raises LabError when there is no swap area to be had."""
        if self.plan.trace is None:
            await self._run()
            return
        with Tracepoints.to_files(self.plan.trace, self.plan.name, _now, self.plan.rules) as self.tracepoints:
            self.tracepoints.attach(self.node, self.device, self.netdev)
            await self._run()

    async def _run(self) -> None:
        self.netdev.alloc_rx_buffers()
        self.edge.attach(self)
        self.device.swapon(self.node.swap_io, self.socket_memory)
        self.device.on_close = self.edge.disconnect
        for number in range(self.plan.nbd_connections):
            await self._connect(number)
        self._swapon()
        self.say(Ready(self.plan.name, {"swap_bytes": self.swap_bytes}))
        sampler = asyncio.create_task(self._sample())
        await self.stopping.wait()
        sampler.cancel()
        await self._stop()

    async def _connect(self, number: int) -> None:
        """Open connection `number` and give it to the device; the first of all makes the swap area. Raises LabError."""
        swap_socket = self._swap_socket()
        nbd = None
        try:
            nbd = await self.edge.connect(swap_socket)
            check_swap_area(nbd.export, self.plan)
            if not self.swap_bytes:
                await self._mkswap(nbd)
        except BaseException as error:
            if nbd is not None:
                self.edge.disconnect(nbd)
                nbd.close()
            swap_socket.close()
            if isinstance(error, NbdError):
                raise LabError(f"no swap area: {error}") from error
            raise
        self.edge.swapon(nbd, swap_socket)
        server = self._same_host_server()
        self.device.attach(number, nbd, swap_socket, server)
        if server is not None:
            self.kernel_threads.append(asyncio.create_task(server.run()))

    def _same_host_server(self) -> SameHostServer | None:
        """The swap server's task for one connection, if it runs on this machine."""
        same_host = self.plan.swap.same_host
        if same_host is None:
            return None
        server = SameHostServer(self.skb_memory, self.socket_memory, self.file, realtime=same_host.realtime)
        self.server_tasks.append(server.task)
        return server

    async def _mkswap(self, client: NbdClient) -> None:
        """Write the header of a swap area to the export's first page, as mkswap does."""
        header = swap_header(self.plan.swap.bytes // PAGE_SIZE, None)
        client.write(0, 0, [memoryview(header)])
        loop = asyncio.get_running_loop()
        deadline = loop.time() + MKSWAP_TIMEOUT
        while client.in_flight:
            client.send_pending()
            if any(error for _, error in client.receive()):
                raise LabError("the server would not take the header of the swap area")
            if loop.time() > deadline:
                raise LabError(f"the server did not store the swap header within {MKSWAP_TIMEOUT:g} s")
            await asyncio.sleep(0.002)
        self.swap_bytes = client.export_size
        self.device.limit_requests(client.export.maximum_block_size)

    def _swap_socket(self) -> SwapSocket:
        sk = Sock("swap", self.receive_buffer, swap=True, prot=self.tcp)
        send_queue = TcpSendQueue(sk, self.skb_memory, self.send_buffer)
        return SwapSocket(TcpReceiveQueue(sk, self.skb_memory), send_queue)

    def _swapon(self) -> None:
        self.device.on_first_write = lambda: self._event("swapping", {})
        reconnect = Reconnect(self.device, self._connect, self._event)
        threads = [self.node.kswapd.run(), *map(self.device.nbd_thread, range(self.plan.nbd_connections))]
        if self.file is not None:
            threads.append(self.file.flush())
        self.kernel_threads += map(asyncio.create_task, threads)
        if self.plan.nbd_dead_conn_timeout:
            self.reconnecting = asyncio.create_task(reconnect.run())
        if self.tap is not None:
            self._spawn(self.tap.run(self.node.memory))
        for each in self.virtual_machines:
            self._spawn(each.run(self.node.memory))
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
            working_set = WorkingSet(Task(f"reader{plan.port}"), self.node.memory)
            self._spawn(self._read_after_faulting(receiver, working_set, owned=owned))

    async def _read_after_faulting(self, receiver: Receiver, working_set: WorkingSet, *, owned: bool) -> None:
        try:
            await receiver.read_after_faulting(self.netdev, working_set, owned=owned)
        except KernelBug as bug:
            self._panic(bug)

    def _panic(self, bug: KernelBug) -> None:
        """A BUG in a softirq stops the machine: no task runs again, and no frame is taken."""
        if self.panic is not None:
            return
        self.panic = str(bug)
        self._event("panic", {"message": self.panic})
        self.edge.detach()
        for task in (*self.tasks, *self.kernel_threads):
            task.cancel()
        if self.workload_started is not None and self.workload_ended is None:
            self._end_workload()

    def _end_workload(self) -> None:
        self.workload_ended = _now()
        self.cpu_times.end()
        self._event("workload_ended", {"finished_tasks": self.progress.finished_tasks})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    def obey(self, command: Command) -> None:
        """Carry out a command of the runner's."""
        if isinstance(command, StartWorkload):
            self._start_workload()
        elif isinstance(command, SetFault):
            self.faults.set(command)
        elif isinstance(command, ClearFault):
            self.faults.clear(command.number)
        elif isinstance(command, Shutdown):
            self.stopping.set()

    def _start_workload(self) -> None:
        workload = self.plan.workload
        self.nr_tasks = workload.processes
        self.workload_started = _now()
        self.cpu_times.start()
        surroundings = Surroundings(
            self.node.memory, self.ram, self.page_bytes, self.seed, self.progress, self._event, self.cpu_times
        )
        share = max(1, TOUCHES_PER_ROUND // workload.processes)
        for number in range(workload.processes):
            pages = workload.pages // workload.processes + (number < workload.pages % workload.processes)
            touch = LinearTouch(number, pages, workload.passes, share, surroundings)
            if workload.mempolicy is not None:
                touch.task.mempolicy = mpol_parse_str(workload.mempolicy)
            self.node.oom_killer.tasks.add(touch.task)
            self._spawn(self._run_task(touch))

    async def _run_task(self, touch: LinearTouch) -> None:
        await touch.run()
        self.node.oom_killer.tasks.discard(touch.task)
        if self.progress.finished_tasks + self.progress.killed_tasks == self.nr_tasks:
            self._end_workload()

    def _event(self, name: str, fields: dict[str, Any]) -> None:
        self.say(Event(self.plan.name, _now(), name, fields))

    async def _sample(self) -> None:
        while True:
            self._send_sample()
            await asyncio.sleep(self.sample_interval)

    def _send_sample(self) -> None:
        now = _now()
        self.ledger.close_interval(now)
        counters = self.counters()
        if self.tracepoints is not None:
            self.tracepoints.sample(counters)
        self.say(Sample(self.plan.name, now, counters))

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
            "sk_wmem_queued": sum(socket.sk.wmem_queued for socket in self.device.sockets),
            "sk_rmem_alloc": sum(socket.sk.rmem_alloc for socket in self.device.sockets),
            "bystander_rmem_alloc": sum(sk.rmem_alloc for sk in self.unrelated) - self.canary.sk.rmem_alloc,
            "backlog_skbs": sum(len(backlog) for backlog in self._backlogs()),
            "udp_memory_allocated": self.udp.memory_allocated,
            "tcp_memory_allocated": self.tcp.memory_allocated,
            "TCPMemoryPressures": self.tcp.memory_pressures,
            "tap_rmem_alloc": 0 if self.tap is None else self.tap.sk.rmem_alloc,
            "tun_queued": sum(each.tun.queued for each in self.virtual_machines),
            "tun_tx_dropped": sum(each.tun.tx_dropped for each in self.virtual_machines),
            "canary_received": self.canary.received,
            "swap_used": self.node.swap.inuse_pages,
            "swap_write_errors": self.node.swap_io.write_errors,
            "swap_read_errors": self.node.swap_io.read_errors,
            "nbd_live_connections": self.device.live_connections,
            "nbd_reconnects": self.device.nbd_reconnects,
            "nbd_requeued": self.device.nbd_requeued,
            "nbd_timeouts": self.device.nbd_timeouts,
            "nbd_server_reclaiming": sum(task.pf_memalloc for task in self.server_tasks),
            "tp_drops": self.edge.lost,
        }

    def _backlogs(self) -> list[Backlog]:
        return [sk.backlog for sk in self.unrelated if sk.backlog is not None]

    async def _stop(self) -> None:
        """End the tasks, then the kernel threads, and give every page back."""
        memory = self._gauges()
        proc = proc_files(self.node, self.netstat, SWAP_FILE)
        self.faults.close()
        for task in self.tasks:
            task.cancel()
        deadline = _now() + SETTLE_TIMEOUT
        while not self.device.idle and self.workload_ended is not None and _now() < deadline:
            await asyncio.sleep(0.01)
        for thread in self.kernel_threads:
            thread.cancel()
        await asyncio.gather(*self.kernel_threads, return_exceptions=True)
        await self.edge.drain()
        counters = self.counters()
        interfaces = self.edge.interfaces()
        if self.reconnecting is not None:
            self.reconnecting.cancel()
            await asyncio.wait([self.reconnecting])
        self.device.disconnect()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.edge.detach()
        ends = Ends(interfaces, sum(backlog.frames for backlog in self._backlogs()), proc)
        for bystander in (self.canary, *self.bystanders):
            bystander.drain(self.netdev)
        for each in self.virtual_machines:
            each.tun.close()
        self.netdev.close()
        if self.file is not None:
            self.file.truncate()
        self.node.drop_caches()
        self.ledger.close_interval(_now())
        self.say(Finished(self.plan.name, client_report(self, counters, memory, ends)))

    def _gauges(self) -> dict[str, int]:
        marks = self.plan.watermarks
        return {
            "total": self.node.page_alloc.managed,
            "min": marks.min,
            "low": marks.low,
            "high": marks.high,
            "reserve_min_free": self.node.page_alloc.nr_free_min,
        }


def _now() -> float:
    return asyncio.get_running_loop().time()
