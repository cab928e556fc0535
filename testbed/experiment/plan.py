"""A topology with every number settled: what is handed to the processes that become its hosts.

`resolve` applies the command line's overrides, scales what was left open with the memory (buffers RAM/16, workload
4 x RAM, swap area as the workload needs), gives out addresses in the order hosts were connected, and refuses what
cannot work. The same topology and overrides always give the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from testbed.experiment.faults.step import BadSchedule, Schedule, numbered
from testbed.experiment.topology import (
    ETHERNET_HEADER,
    LARGEST_RCVBUF,
    SMALLEST_FRAME,
    EtherTypeFlood,
    Flood,
    Host,
    LinearTouch,
    NbdServer,
    Neighbour,
    Segment,
    Start,
    SwapClient,
    TcpStream,
    TcpSynFlood,
    Topology,
    TopologyError,
    UdpFlood,
    VlanUdpFlood,
    check_mtu,
    size_in_bytes,
)
from testbed.hosts.plan import (
    BystanderPlan,
    CapturePlan,
    ClientHost,
    ClientPlan,
    Interface,
    SameHost,
    ServerPlan,
    SlabAllocator,
    SwapArea,
    VirtualMachinePlan,
    WorkloadPlan,
)
from testbed.mm.mempolicy import mpol_parse_str
from testbed.mm.slub import SLUB_MAX_ORDER
from testbed.mm.watermarks import PAGE_SIZE, compute
from testbed.nbd.client_tls import TLS_WARNING
from testbed.net.skbuff import Driver, rx_buffer_size
from testbed.patches import DEFAULT_PRESET, PRESETS
from testbed.rules import Rules
from testbed.size import format_size

NBD_PORT = 10809
CANARY_PORT = 9007
FIRST_BYSTANDER_PORT = 20000
CLOSED_PORTS = 40000
VIRTUAL_MACHINE_PORT = 20000
"""What is flooded of a virtual machine; what it makes of that is nobody's business here."""
DISK_BANDWIDTH = 64 << 20
"""Bytes a second of the disk of a server on its client's machine, unless the topology says."""
VLAN_TAG = 4
SWAP_SLACK = 1 << 20
"""Bytes of swap area beyond the workload's pages: the header page, and one cluster of slots."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Numbers from the command line that replace the topology's; None leaves one alone. Sizes are in bytes.

    `flood` is frames a second for every flood; 0 runs without them. `preset` names the kernel whose rules all clients
    follow; its patches are not the plan's business. `driver` is that of clients whose topology has a linear one.
    """

    memory: int | None = None
    flood: int | None = None
    flood_size: int | None = None
    bystander_buffer: int | None = None
    min_free_kbytes: int | None = None
    workload_total: int | None = None
    tasks: int | None = None
    preset: str = DEFAULT_PRESET
    slab: SlabAllocator | None = None
    driver: Driver | None = None
    host: ClientHost | None = None
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class FloodPlan:
    """Frames of `size` bytes (Ethernet header included, checksum not) from one interface to another at `pps`.

    `ports` are UDP or TCP destination ports to use in turn, `ethertype` and `vlan` are set where the kind has them.
    """

    kind: str
    source: Interface
    target: Interface
    pps: int
    size: int
    start: Start
    ports: tuple[int, ...] = ()
    ethertype: int | None = None
    vlan: int | None = None


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """TCP data from one interface to `ports` of another, `bytes_per_second` on all of them together."""

    source: Interface
    target: Interface
    bytes_per_second: int
    start: Start
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NeighbourPlan:
    """A plain host, the clients it sends canaries to, its floods and its streams."""

    name: str
    interface: Interface
    floods: tuple[FloodPlan, ...]
    streams: tuple[StreamPlan, ...] = ()

    def by_start(self) -> list[NeighbourPlan]:
        """The neighbour once for each moment at which something starts, with what starts then."""
        starts = sorted({each.start for each in self.traffic})
        return [self._starting(start) for start in starts]

    def _starting(self, start: Start) -> NeighbourPlan:
        floods = tuple(flood for flood in self.floods if flood.start == start)
        return replace(self, floods=floods, streams=tuple(each for each in self.streams if each.start == start))

    @property
    def traffic(self) -> tuple[FloodPlan | StreamPlan, ...]:
        """All that it sends, canaries aside."""
        return (*self.floods, *self.streams)

    @property
    def start(self) -> Start:
        """When the first of its traffic starts."""
        return self.traffic[0].start

    @property
    def targets(self) -> set[str]:
        """The clients that its traffic goes to."""
        return {each.target.host for each in self.traffic}


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """A bridge with its hosts' interfaces, or a veth pair with its two."""

    kind: Literal["bridge", "link"]
    interfaces: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole experiment in numbers. `warnings` are lines for people: it runs, but read the result with care.

    `fault_links` names the hosts whose link can have faults, which something in the middle of it has to bring about;
    `schedule` is what will go wrong, and when, counted from `faults_start`.
    """

    name: str
    segments: tuple[SegmentPlan, ...]
    servers: tuple[ServerPlan, ...]
    clients: tuple[ClientPlan, ...]
    neighbours: tuple[NeighbourPlan, ...]
    warnings: tuple[str, ...]
    captures: tuple[CapturePlan, ...] = ()
    fault_links: frozenset[str] = frozenset()
    schedule: Schedule = ()
    faults_start: Start = "workload"

    @property
    def floods(self) -> tuple[FloodPlan, ...]:
        """All floods, in the order of the neighbours."""
        return tuple(flood for neighbour in self.neighbours for flood in neighbour.floods)

    @property
    def streams(self) -> tuple[StreamPlan, ...]:
        """All TCP streams, in the order of the neighbours."""
        return tuple(stream for neighbour in self.neighbours for stream in neighbour.streams)

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """Every host's one interface."""
        return tuple(interface for segment in self.segments for interface in segment.interfaces)

    def with_whole_frames(self) -> Plan:
        """The plan with `gso` off for all clients if a link can have faults: these act on frames, and on checksums."""
        if not self.fault_links:
            return self
        return replace(self, clients=tuple(replace(client, gso=False) for client in self.clients))

    def canary_source(self, client: ClientPlan) -> NeighbourPlan:
        """The neighbour that sends canaries to `client`: the first one on its segment."""
        return next(n for n in self.neighbours if n.interface.segment == client.interface.segment)


def resolve(topology: Topology, overrides: Overrides | None = None) -> Plan:
    """Settle every number of `topology`. Raises TopologyError, in one line, for one that cannot be run."""
    change = overrides or Overrides()
    if not topology.clients:
        raise TopologyError(f"{topology.name}: there is no SwapClient to test")
    flooded = any(isinstance(traffic, Flood) for _, _, traffic in topology.floods)
    if not flooded and (change.flood or change.flood_size is not None):
        raise TopologyError(f"{topology.name}: it has no flood whose rate or frame size could be changed")
    interfaces = _interfaces(topology, change)
    servers = tuple(
        _server(topology, host, interfaces, change) for host in topology.hosts if isinstance(host, NbdServer)
    )
    areas = {area.client: area for server in servers for area in server.areas}
    clients = tuple(_client(topology, host, interfaces, areas[host.name], change) for host in topology.clients)
    by_name = {client.name: client for client in clients}
    neighbours = tuple(
        _neighbour(topology, host, interfaces, by_name, change)
        for host in topology.hosts
        if isinstance(host, Neighbour)
    )
    for client in clients:
        if all(n.interface.segment != client.interface.segment for n in neighbours):
            raise TopologyError(
                f"{client.name}: it needs a Neighbour on its segment, which shows that its network works"
            )
    segments = tuple(
        SegmentPlan(segment.kind, tuple(interfaces[host.name] for host in segment.hosts))
        for segment in topology.segments
    )
    warnings = tuple(line for client in clients for line in _warnings(client)) + tuple(
        f"{host.name}: only our own server can be given a bandwidth: {host.program} runs as fast as it can"
        for host in topology.hosts
        if isinstance(host, NbdServer) and host.bandwidth is not None and host.program != "builtin"
    )
    schedule, start = _schedule(topology), topology.faults_start
    return Plan(
        topology.name, segments, servers, clients, neighbours, warnings, schedule=schedule, faults_start=start
    )


def _schedule(topology: Topology) -> Schedule:
    try:
        return numbered(topology.steps)
    except BadSchedule as error:
        raise TopologyError(f"{topology.name}: {error}") from None


def _interfaces(topology: Topology, change: Overrides) -> dict[str, Interface]:
    interfaces: dict[str, Interface] = {}
    for number, segment in enumerate(topology.segments):
        if number > 255 or len(segment.hosts) > 65000:
            raise TopologyError(f"{topology.name}: at most 256 segments of 65000 hosts can have addresses")
        mtus = {_mtu(host, change) for host in segment.hosts if isinstance(host, SwapClient)} or {1500}
        if len(mtus) > 1:
            raise TopologyError(f"{topology.name}: the clients of one segment must have the same mtu")
        for count, (host, name) in enumerate(_addressed(segment), start=1):
            high, low = divmod(count, 256)
            interfaces[name] = Interface(
                host=host.name,
                segment=number,
                mac=f"02:00:0a:{number:02x}:{high:02x}:{low:02x}",
                ipv4=f"10.{number}.{high}.{low}/16",
                ipv6=f"fd00:0:0:{number:x}::{count:x}/64",
                mtu=min(mtus),
            )
    for host in topology.hosts:
        if host.name not in interfaces and not (isinstance(host, NbdServer) and host.same_host):
            raise TopologyError(f"{host.name}: it is not connected to anything: use connect() or link()")
    return interfaces


def _addressed(segment: Segment) -> Iterator[tuple[Host, str]]:
    """Whoever has an address on a segment: first its hosts, then the virtual machines on them, with that host."""
    yield from ((host, host.name) for host in segment.hosts)
    for client in segment.hosts:
        if isinstance(client, SwapClient):
            yield from ((client, machine.name) for machine in client.virtual_machines)


def _mtu(client: SwapClient, change: Overrides) -> int:
    mtu = client.mtu if change.mtu is None else change.mtu
    check_mtu(client.name, mtu, _driver(client, change))
    return mtu


def _slub_max_order(client: SwapClient, host: ClientHost, rules: Rules) -> int:
    if client.slub_max_order is not None:
        return client.slub_max_order
    return SLUB_MAX_ORDER if host == "kernel" or rules.slub_high_order_nomemalloc else 0


def _driver(client: SwapClient, change: Overrides) -> Driver:
    return change.driver if change.driver and client.driver == "linear" else client.driver


def _memory(client: SwapClient, change: Overrides) -> int:
    if change.memory is not None:
        return size_in_bytes(change.memory, f"{client.name}: memory") // PAGE_SIZE * PAGE_SIZE
    return size_in_bytes(client.memory, f"{client.name}: memory") // PAGE_SIZE * PAGE_SIZE


def _workload(topology: Topology, client: SwapClient, change: Overrides) -> WorkloadPlan:
    workload: LinearTouch | None = topology.workloads.get(client.name)
    if workload is None:
        raise TopologyError(f"{client.name}: it has no workload: give it one with topology.workload()")
    total = change.workload_total
    if total is None:
        total = 4 * _memory(client, change) if workload.total is None else size_in_bytes(workload.total, "workload")
    processes = workload.processes if change.tasks is None else change.tasks
    if processes < 1:
        raise TopologyError(f"{client.name}: the workload needs at least 1 task, not {processes}")
    pages = total // PAGE_SIZE
    if pages < processes:
        raise TopologyError(
            f"{client.name}: a workload of {format_size(total)} has less than a page for each of {processes} tasks"
        )
    if workload.mempolicy is not None and max(mpol_parse_str(workload.mempolicy).nodes) >= client.nodes:
        raise TopologyError(
            f"{client.name}: its tasks' memory policy {workload.mempolicy} names a node that it has not: it has "
            f"nodes={client.nodes}, counted from 0"
        )
    return WorkloadPlan(processes, pages, workload.passes, workload.mempolicy)


def _server(topology: Topology, server: NbdServer, interfaces: dict[str, Interface], change: Overrides) -> ServerPlan:
    clients = [client for client in topology.clients if client.swap is server]
    if not clients:
        raise TopologyError(f"{server.name}: no client swaps to it")
    if server.file is not None and len(clients) > 1:
        raise TopologyError(f"{server.name}: {len(clients)} clients cannot share the file {server.file}: leave it out")
    if server.same_host and len(clients) > 1:
        raise TopologyError(f"{server.name}: {len(clients)} clients swap to it, and it is on the machine of one only")
    interface = interfaces[clients[0].name if server.same_host else server.name]
    areas = []
    for number, client in enumerate(clients):
        if interfaces[client.name].segment != interface.segment:
            raise TopologyError(f"{client.name}: it is not connected to its swap server {server.name}")
        needed = _workload(topology, client, change).pages * PAGE_SIZE + SWAP_SLACK
        size = needed if server.size is None else size_in_bytes(server.size, f"{server.name}: size")
        if size < needed:
            raise TopologyError(
                f"{server.name}: a swap area of {format_size(size)} is too small for the workload of {client.name}, "
                f"which needs {format_size(needed)}: raise the server's size or leave it out"
            )
        port, disk = NBD_PORT + number, _disk(server)
        areas.append(SwapArea(client.name, interface.address, port, server.export, size, server.file, *disk))
    return ServerPlan(server.name, interface, server.program, tuple(areas))


def _disk(server: NbdServer) -> tuple[int | None, SameHost | None]:
    """How fast the server itself is to be (None: as it can), and what it takes of its client's machine.

    Behind a page cache it is the flusher that is as slow as the disk.
    """
    bandwidth = None
    if server.bandwidth is not None and (server.program == "builtin" or server.same_host):
        bandwidth = size_in_bytes(server.bandwidth, f"{server.name}: bandwidth")
    if not server.same_host:
        return bandwidth, None
    bandwidth = bandwidth or DISK_BANDWIDTH
    if server.cache == "none":
        return bandwidth, SameHost(None, server.realtime)
    return None, SameHost(bandwidth, server.realtime)


def _client(
    topology: Topology, client: SwapClient, interfaces: dict[str, Interface], area: SwapArea, change: Overrides
) -> ClientPlan:
    memory = _memory(client, change)
    wanted = client.min_free_kbytes if change.min_free_kbytes is None else change.min_free_kbytes
    rules = PRESETS[change.preset].rules
    driver, host = _driver(client, change), change.host or client.host
    ring_bytes = client.ring * rx_buffer_size(driver, _mtu(client, change), rules)
    try:
        marks = compute(memory // PAGE_SIZE, wanted, PRESETS[change.preset].rules, client.zones, client.nodes)
    except ValueError as error:
        raise TopologyError(f"{client.name}: {error}") from None
    if 4 * (ring_bytes + marks.high * PAGE_SIZE) > memory:
        raise TopologyError(
            f"{client.name}: {format_size(memory)} of memory is too small for a receive ring of {client.ring} buffers "
            f"({ring_bytes // 1024}K) and a reserve of {marks.high * 4}K, which may take a quarter of it: "
            "give it more memory, or a smaller ring or min_free_kbytes"
        )
    return ClientPlan(
        name=client.name,
        interface=interfaces[client.name],
        memory=memory,
        min_free_kbytes=marks.min_free_kbytes,
        watermarks=marks,
        ring=client.ring,
        gso=client.gso,
        swap=area,
        bystanders=tuple(_bystanders(client, memory, change)),
        canary_port=CANARY_PORT,
        receive_buffer=None
        if client.receive_buffer is None
        else size_in_bytes(client.receive_buffer, "receive_buffer"),
        send_buffer=None if client.send_buffer is None else size_in_bytes(client.send_buffer, "send_buffer"),
        workload=_workload(topology, client, change),
        rules=rules,
        slab=change.slab or client.slab,
        slub_max_order=_slub_max_order(client, host, rules),
        driver=driver,
        zones=client.zones,
        nodes=client.nodes,
        copybreak=client.copybreak,
        gro=client.gro,
        tap=None if client.tap is None else size_in_bytes(client.tap, "tap"),
        virtual_machines=tuple(
            VirtualMachinePlan(each.name, interfaces[each.name], each.reader, each.tx_queue_len)
            for each in client.virtual_machines
        ),
        udp_mem=client.udp_mem,
        tcp_mem=client.tcp_mem,
        neighbour_timeout=client.neighbour_timeout,
        host=host,
        nbd_timeout=client.nbd_timeout,
        nbd_dead_conn_timeout=client.nbd_dead_conn_timeout,
        nbd_connections=client.nbd_connections,
        tls=client.tls,
    )


def _bystanders(client: SwapClient, memory: int, change: Overrides) -> Iterator[BystanderPlan]:
    used = {CANARY_PORT}
    free_port = FIRST_BYSTANDER_PORT
    for bystander in client.bystanders:
        buffer = change.bystander_buffer
        if buffer is None:
            default = min(memory // 16, LARGEST_RCVBUF)
            buffer = default if bystander.buffer is None else size_in_bytes(bystander.buffer, "bystander buffer")
        if buffer > LARGEST_RCVBUF:
            raise TopologyError(f"{client.name}: a bystander's buffer of {format_size(buffer)} is more than 2G")
        for number in range(bystander.count):
            if bystander.port is None:
                port, free_port = free_port, free_port + 1
            else:
                port = bystander.port + number
            if port in used or port > 65535:
                raise TopologyError(f"{client.name}: bystander port {port} is taken or does not exist")
            used.add(port)
            yield BystanderPlan(port, buffer, bystander.reader, bystander.protocol)


def _neighbour(
    topology: Topology,
    neighbour: Neighbour,
    interfaces: dict[str, Interface],
    clients: dict[str, ClientPlan],
    change: Overrides,
) -> NeighbourPlan:
    interface = interfaces[neighbour.name]
    floods, streams = [], []
    for source, target, flood in topology.floods:
        if source is not neighbour or change.flood == 0:
            continue
        if interfaces[target.name].segment != interface.segment:
            raise TopologyError(f"{neighbour.name}: it is not connected to {target.name}, which it floods")
        client = clients[topology.owner(target).name]
        if isinstance(flood, TcpStream):
            streams.append(_stream(flood, interface, client))
        else:
            ports = [each.port for each in client.bystanders if each.protocol == "udp"]
            listening = ports if target.name == client.name else [VIRTUAL_MACHINE_PORT]
            floods.append(_flood(flood, interface, interfaces[target.name], listening, change))
    return NeighbourPlan(neighbour.name, interface, tuple(floods), tuple(streams))


def _stream(stream: TcpStream, source: Interface, target: ClientPlan) -> StreamPlan:
    ports = tuple(bystander.port for bystander in target.bystanders if bystander.protocol == "tcp")
    if not ports:
        raise TopologyError(f'{target.name}: a TcpStream needs bystanders with protocol="tcp", which it has not')
    rate = size_in_bytes(stream.bytes_per_second, f"{stream.kind}: bytes_per_second")
    return StreamPlan(source, target.interface, rate, stream.start, ports)


def _flood(
    flood: Flood, source: Interface, target: Interface, listening: Sequence[int], change: Overrides
) -> FloodPlan:
    """`listening` are the UDP ports that somebody on the target listens on."""
    size = flood.size if change.flood_size is None else change.flood_size
    largest = target.mtu + ETHERNET_HEADER + (VLAN_TAG if isinstance(flood, VlanUdpFlood) else 0)
    if not SMALLEST_FRAME <= size <= largest:
        raise TopologyError(f"{source.host}: flood frames must have {SMALLEST_FRAME} to {largest} bytes, not {size}")
    ports: tuple[int, ...] = ()
    if isinstance(flood, UdpFlood):
        ports = _flood_ports(flood, target.host, listening)
    elif isinstance(flood, TcpSynFlood):
        ports = (flood.port,)
    return FloodPlan(
        kind=flood.kind,
        source=source,
        target=target,
        pps=flood.pps if change.flood is None else change.flood,
        size=size,
        start=flood.start,
        ports=ports,
        ethertype=flood.ethertype if isinstance(flood, EtherTypeFlood) else None,
        vlan=flood.vlan if isinstance(flood, VlanUdpFlood) else None,
    )


def _flood_ports(flood: UdpFlood, host: str, listening: Sequence[int]) -> tuple[int, ...]:
    count = len(listening) if flood.sockets is None else flood.sockets
    if count == 0:
        raise TopologyError(f"{host}: it has no UDP bystanders, so a flood of it must say how many sockets")
    used = {*listening, CANARY_PORT}
    closed = (port for port in range(CLOSED_PORTS, 65536) if port not in used)
    return tuple(port for _, port in zip(range(count), chain(listening, closed), strict=False))


def _warnings(client: ClientPlan) -> Iterator[str]:
    ring_pages = -(-client.ring * rx_buffer_size(client.driver, client.interface.mtu, client.rules) // PAGE_SIZE)
    if ring_pages > client.watermarks.throttle:
        yield (
            f"{client.name}: refilling all {client.ring} ring buffers takes {ring_pages} pages, more than the "
            f"{client.watermarks.throttle} below the throttle point: even the patched host may run out of reserve; "
            "raise min_free_kbytes or use a smaller ring"
        )
    if client.workload.pages * PAGE_SIZE <= client.memory // 2:
        yield f"{client.name}: its workload fits in half of its memory, so that it may never swap"
    if client.tls is not None:
        yield f"{client.name}: {TLS_WARNING}"
    if client.host == "kernel" and client.nbd_dead_conn_timeout is not None and client.nbd_timeout is None:
        yield (
            f"{client.name}: when a connection dies, its kernel sends what was under way once more only after "
            "nbd_timeout, which is not set: those requests would never end"
        )
