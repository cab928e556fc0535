"""What a topology script declares: hosts, how they are connected, what the clients do and who floods whom.

Pure data, checked as it is declared; every mistake is a `TopologyError` of one line. Nothing here has an address or
a final size yet: `testbed.experiment.plan` works those out, since the command line may still change the numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn, TypeVar

from testbed.experiment.faults.step import Step
from testbed.hosts.plan import BystanderProtocol, ClientHost, EmulatorReader, Reader, SlabAllocator, ZoneLayout
from testbed.mm.mempolicy import mpol_parse_str
from testbed.mm.slub import SLUB_MAX_ORDER
from testbed.mm.zone_layout import LAYOUTS, MAX_NUMNODES
from testbed.nbd.client_tls import TlsFiles
from testbed.net.sk_mem import Mem
from testbed.net.skbuff import Driver
from testbed.net.tun import TUN_READQ_SIZE
from testbed.size import parse_size

if TYPE_CHECKING:
    from testbed.experiment.faults.handles import Fault, Link, Memory, Process, Storage

Size = int | str
Start = Literal["swapping", "workload", "steady"]
Cache = Literal["writeback", "none"]

READERS = ("prompt", "faulting", "corked", "never")
EMULATOR_READERS = ("prompt", "faulting", "never")
PROTOCOLS = ("udp", "tcp")
SLAB_ALLOCATORS = ("slub", "slab")
CLIENT_HOSTS = ("emulated", "kernel")
DRIVERS = ("linear", "vector", "frag", "page")
ZONE_LAYOUTS = tuple(LAYOUTS)
STARTS = ("swapping", "workload", "steady")
CACHES = ("writeback", "none")
SERVER_PROGRAMS = ("builtin", "nbdkit", "nbd-server", "qemu-nbd")
ETHERNET_HEADER = 14
SMALLEST_FRAME = 64
MOST_PPS = 10_000_000
MOST_TASKS = 1024
MOST_QUEUED = 1 << 20
LARGEST_RCVBUF = (1 << 31) - 1
"""Bytes: sk_rcvbuf is an int."""
LARGEST_MTU: dict[Driver, int] = {"linear": 9000, "vector": 9000, "frag": 3600, "page": 3600}
"""A linear buffer may be of several pages, a fragment or a page that a driver receives into is one at most."""
LARGEST_COPYBREAK = 1024
"""Copying longer frames saves no memory."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")


class TopologyError(ValueError):
    """A topology that cannot be run; the message is one line for people."""


def size_in_bytes(value: Size, what: str) -> int:
    """Bytes of a size given as a number or as text such as "64M". Raises TopologyError, naming `what`."""
    try:
        size = parse_size(value) if isinstance(value, str) else int(value)
    except (TypeError, ValueError) as error:
        raise TopologyError(f"{what}: {error}") from None
    if size <= 0:
        raise TopologyError(f"{what}: a size must be more than 0, not {value}")
    return size


def check_mtu(client: str, mtu: int, driver: Driver) -> None:
    """Raises TopologyError if a client cannot have this MTU."""
    _check_number(mtu, f"{client}: mtu", 576, LARGEST_MTU[driver])


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TopologyError(f"{kind} name {name!r}: use a letter, then at most 30 letters, digits, '-' or '_'")


def _check_number(value: object, what: str, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise TopologyError(f"{what} must be a whole number from {least} to {most}, not {value!r}")


def _check_seconds(value: float | None, what: str, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise TopologyError(f"{what} must be from {least:g} to {most:g} s")


def _moment(seconds: object, what: str) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise TopologyError(f"{what}: a fault needs a time in seconds from the start of the workload, not {seconds!r}")
    return float(seconds)


def _check_choice(value: object, what: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise TopologyError(f"{what} must be one of {', '.join(choices)}, not {value!r}")


def _check_size(value: Size | None, what: str) -> None:
    if value is not None:
        size_in_bytes(value, what)


def _check_mem(value: Mem | None, what: str) -> None:
    if value is None:
        return
    if len(value) != 3 or any(not isinstance(pages, int) or pages < 0 for pages in value) or sorted(value) != [*value]:
        raise TopologyError(f"{what} must be three rising numbers of pages, not {value!r}")


@dataclass(frozen=True)
class NbdServer:
    """A host that serves a swap area over NBD to each client that swaps to it.

    `size` is the area of one client, None being what that client's workload needs. The area is in memory unless
    `file` names a file. `program` is our own server, or an installed one. `bandwidth` makes our own as slow as a disk
    that reads and writes so many bytes a second, for each area.

    With `same_host` it runs on its one client's machine and takes its memory from there; it is not connected to
    anything. Its area is a file on a disk of that machine, which moves `bandwidth` (None: 64M) bytes a second, through
    the page cache or (`cache` "none", O_DIRECT) past it. A `realtime` task (SCHED_FIFO) may go a quarter of the way
    below the min watermark, where other tasks may not.
    """

    name: str
    size: Size | None = None
    program: str = "builtin"
    file: str | None = None
    export: str = ""
    bandwidth: Size | None = None
    same_host: bool = False
    cache: Cache = "writeback"
    realtime: bool = False

    def __post_init__(self) -> None:
        _check_name("server", self.name)
        _check_choice(self.cache, f"{self.name}: cache", CACHES)
        if (self.cache != "writeback" or self.realtime) and not self.same_host:
            raise TopologyError(f"{self.name}: cache and realtime are for a server with same_host=True")
        _check_size(self.size, f"{self.name}: size")
        _check_choice(self.program, f"{self.name}: program", SERVER_PROGRAMS)
        _check_size(self.bandwidth, f"{self.name}: bandwidth")


@dataclass(frozen=True)
class Bystander:
    """`count` unrelated sockets on a client, each with a receive buffer of `buffer` bytes (None: RAM/16).

    `reader` is who empties them: "prompt" reads at once, "faulting" has to fault in its own pages first, "never"
    leaves them full. "corked" is a faulting reader that gathers an answer with UDP_CORK and so owns its socket while
    it faults, as a faulting TCP reader always does. Ports count up from `port`, or from one the testbed picks.
    `protocol` "tcp" makes listening sockets, for a `TcpStream`.
    """

    port: int | None = None
    buffer: Size | None = None
    reader: Reader = "never"
    count: int = 3
    protocol: BystanderProtocol = "udp"

    def __post_init__(self) -> None:
        if self.port is not None:
            _check_number(self.port, "bystander: port", 1, 65535)
        _check_size(self.buffer, "bystander: buffer")
        _check_choice(self.reader, "bystander: reader", READERS)
        _check_choice(self.protocol, "bystander: protocol", PROTOCOLS)
        if (self.protocol, self.reader) == ("tcp", "corked"):
            raise TopologyError("bystander: only UDP has UDP_CORK: give a TCP bystander another reader")
        _check_number(self.count, "bystander: count", 1, 1024)


@dataclass(frozen=True)
class VirtualMachine:
    """A virtual machine on a client, behind a bridge of the client's NIC and the machine's tap interface.

    Its emulator, a task of the client's, takes frames from the interface: at once ("prompt"), only after it has faulted
    in its own pages ("faulting"), or, while the machine is stopped, not at all ("never"). Up to `tx_queue_len` frames
    wait there (500: TUN_READQ_SIZE; before 3.8 the interface's qdisc kept as many again).
    """

    name: str
    reader: EmulatorReader = "faulting"
    tx_queue_len: int = TUN_READQ_SIZE

    def __post_init__(self) -> None:
        _check_name("virtual machine", self.name)
        _check_choice(self.reader, f"{self.name}: reader", EMULATOR_READERS)
        _check_number(self.tx_queue_len, f"{self.name}: tx_queue_len", 1, MOST_QUEUED)


@dataclass(frozen=True)
class SwapClient:
    """A diskless machine with `memory` bytes of RAM that swaps to `swap`.

    `min_free_kbytes` is in KiB, None being the kernel's own choice for that much memory; `ring` is the number of
    receive descriptors of its NIC; `gso` lets the NIC take segments of up to 64 KiB whole. `receive_buffer` and
    `send_buffer` limit the swap connection, in bytes (None: RAM/128, and a quarter of that). The default bystanders are
    three sockets that nobody reads. `slab` is the kernel's slab allocator, `slub_max_order` the
    boot parameter that says how large a slab SLUB asks for first (0: a page; None: 3 for a real kernel and with the
    rules of 6.1, before those a page), `driver` what the NIC receives into: one
    "linear" buffer (of `alloc_skb`, as User Mode Linux's "vector" driver has it), a page fragment ("frag") or a whole
    "page". Frames of up to `copybreak` bytes are copied into a
    small buffer of their own. `tap` is the receive buffer of a tcpdump that runs on the client (None: none does);
    `virtual_machines` are behind a bridge on it.
    With `gro` the segments of a GSO frame, which the NIC receives into a buffer each, go up the stack as one.
    `zones` is how memory is divided into zones, and `nodes` into how many NUMA nodes.

    `udp_mem` and `tcp_mem` are the sysctls of that name: three numbers of pages (None: the kernel's own choice, which
    for `udp_mem` is raised to what the UDP bystanders' buffers hold).
    `neighbour_timeout` is after how many seconds unconfirmed an ARP entry is asked for again (None: never needed).
    `host` is what stands in its place: the model, or a real kernel (User Mode Linux).

    `nbd_timeout` is how many seconds a request to the server may take before its connection is given up (None: any
    number), `nbd_dead_conn_timeout` how long requests wait for a new connection when none is alive (None: they fail at
    once, and nobody reconnects), `nbd_connections` how many there are; whatever the kernel's version, these are today's
    driver's. A real kernel has one connection, and whole seconds. `tls` names the files to encrypt with.
    """

    name: str
    swap: NbdServer
    memory: Size = "64M"
    min_free_kbytes: int | None = None
    ring: int = 128
    mtu: int = 1500
    gso: bool = True
    bystanders: Sequence[Bystander] = field(default=(Bystander(),))
    receive_buffer: Size | None = None
    send_buffer: Size | None = None
    slab: SlabAllocator = "slub"
    slub_max_order: int | None = None
    driver: Driver = "linear"
    zones: ZoneLayout = "normal"
    nodes: int = 1
    copybreak: int = 0
    tap: Size | None = None
    virtual_machines: Sequence[VirtualMachine] = ()
    gro: bool = False
    udp_mem: Mem | None = None
    tcp_mem: Mem | None = None
    neighbour_timeout: float | None = None
    host: ClientHost = "emulated"
    nbd_timeout: float | None = None
    nbd_dead_conn_timeout: float | None = None
    nbd_connections: int = 1
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        _check_name("client", self.name)
        _check_seconds(self.nbd_timeout, f"{self.name}: nbd_timeout", 0.01, 3600)
        _check_seconds(self.nbd_dead_conn_timeout, f"{self.name}: nbd_dead_conn_timeout", 0.01, 86400)
        _check_number(self.nbd_connections, f"{self.name}: nbd_connections", 1, 16)
        _check_mem(self.udp_mem, f"{self.name}: udp_mem")
        _check_mem(self.tcp_mem, f"{self.name}: tcp_mem")
        _check_seconds(self.neighbour_timeout, f"{self.name}: neighbour_timeout", 0.01, 3600)
        _check_choice(self.slab, f"{self.name}: slab", SLAB_ALLOCATORS)
        if self.slub_max_order is not None:
            _check_number(self.slub_max_order, f"{self.name}: slub_max_order", 0, SLUB_MAX_ORDER)
        _check_choice(self.host, f"{self.name}: host", CLIENT_HOSTS)
        _check_choice(self.driver, f"{self.name}: driver", DRIVERS)
        _check_choice(self.zones, f"{self.name}: zones", ZONE_LAYOUTS)
        _check_number(self.nodes, f"{self.name}: nodes", 1, MAX_NUMNODES)
        if not isinstance(self.swap, NbdServer):
            raise TopologyError(f"{self.name}: swap must be an NbdServer, not {self.swap!r}")
        size_in_bytes(self.memory, f"{self.name}: memory")
        if self.min_free_kbytes is not None:
            _check_number(self.min_free_kbytes, f"{self.name}: min_free_kbytes", 1, 1 << 30)
        _check_number(self.ring, f"{self.name}: ring", 8, 4096)
        check_mtu(self.name, self.mtu, self.driver)
        _check_size(self.receive_buffer, f"{self.name}: receive_buffer")
        _check_size(self.send_buffer, f"{self.name}: send_buffer")
        _check_size(self.tap, f"{self.name}: tap")
        _check_number(self.copybreak, f"{self.name}: copybreak", 0, LARGEST_COPYBREAK)
        for bystander in self.bystanders:
            if not isinstance(bystander, Bystander):
                raise TopologyError(f"{self.name}: bystanders must be Bystander objects, not {bystander!r}")
        for machine in self.virtual_machines:
            if not isinstance(machine, VirtualMachine):
                raise TopologyError(f"{self.name}: virtual_machines must be VirtualMachine objects, not {machine!r}")


@dataclass(frozen=True)
class Neighbour:
    """A plain host: it sends canary datagrams and floods."""

    name: str

    def __post_init__(self) -> None:
        _check_name("neighbour", self.name)


Host = NbdServer | SwapClient | Neighbour
FloodTarget = SwapClient | VirtualMachine
ANY_HOST = (NbdServer, SwapClient, Neighbour)
AnyHost = TypeVar("AnyHost", NbdServer, SwapClient, Neighbour)


@dataclass(frozen=True)
class Flood:
    """Unrelated traffic at `pps` frames a second; `size` is the whole Ethernet frame, in bytes, without its checksum.

    `start` is "swapping" (once the target has begun to swap out), "workload" (as soon as its tasks start) or "steady"
    (a second after it has begun to swap: hosts of every kind have noticed that by then).
    """

    kind: ClassVar[str] = ""
    pps: int = 10_000
    size: int = 1000
    start: Start = "swapping"

    def __post_init__(self) -> None:
        if not self.kind:
            raise TopologyError("a flood needs a kind: use UdpFlood, TcpSynFlood, IcmpFlood, ...")
        _check_number(self.pps, f"{self.kind} flood: pps", 1, MOST_PPS)
        _check_number(self.size, f"{self.kind} flood: size", SMALLEST_FRAME, 9000 + ETHERNET_HEADER)
        _check_choice(self.start, f"{self.kind} flood: start", STARTS)


@dataclass(frozen=True)
class UdpFlood(Flood):
    """UDP over IPv4 to `sockets` ports of the target in turn: first its bystanders', then ports nobody listens on.

    None means exactly the bystanders' ports.
    """

    kind: ClassVar[str] = "udp"
    sockets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sockets is not None:
            _check_number(self.sockets, f"{self.kind} flood: sockets", 1, 4096)


@dataclass(frozen=True)
class Ipv6UdpFlood(UdpFlood):
    """As `UdpFlood`, over IPv6."""

    kind: ClassVar[str] = "ipv6_udp"


@dataclass(frozen=True)
class VlanUdpFlood(UdpFlood):
    """As `UdpFlood`, with an 802.1Q tag, for a VLAN the target is not in."""

    kind: ClassVar[str] = "vlan_udp"
    vlan: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self.vlan, "vlan_udp flood: vlan", 1, 4094)


@dataclass(frozen=True)
class TcpSynFlood(Flood):
    """TCP connection requests to a closed port of the target."""

    kind: ClassVar[str] = "tcp_syn"
    port: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self.port, "tcp_syn flood: port", 1, 65535)


@dataclass(frozen=True)
class IcmpFlood(Flood):
    """ICMP echo requests, which the target's kernel answers."""

    kind: ClassVar[str] = "icmp"


@dataclass(frozen=True)
class ArpFlood(Flood):
    """ARP requests for the target's address."""

    kind: ClassVar[str] = "arp"


@dataclass(frozen=True)
class EtherTypeFlood(Flood):
    """Frames of an EtherType that is not on the series' list of protocols (default: IPX)."""

    kind: ClassVar[str] = "ethertype"
    ethertype: int = 0x8137

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self.ethertype, "ethertype flood: ethertype", 0x0600, 0xFFFF)


@dataclass(frozen=True)
class TcpStream:
    """Data to each of the target's TCP bystanders, `bytes_per_second` together, as fast as they take it at most.

    `start` is as for a `Flood`.
    """

    kind: ClassVar[str] = "tcp_stream"
    bytes_per_second: Size = "8M"
    start: Start = "swapping"

    def __post_init__(self) -> None:
        _check_size(self.bytes_per_second, f"{self.kind}: bytes_per_second")
        _check_choice(self.start, f"{self.kind}: start", STARTS)


Traffic = Flood | TcpStream


@dataclass(frozen=True)
class LinearTouch:
    """The series' own workload: `processes` tasks map `total` bytes together (None: 4 x RAM), write every page once,
    then read it all in order `passes` times, checking every page. `mempolicy` is the memory policy of each task, in
    the words of `mpol=`: "bind:1", "prefer:0", "interleave:0,1"; None is none."""

    processes: int = 16
    total: Size | None = None
    passes: int = 1
    mempolicy: str | None = None

    def __post_init__(self) -> None:
        _check_number(self.processes, "workload: processes", 1, MOST_TASKS)
        _check_size(self.total, "workload: total")
        _check_number(self.passes, "workload: passes", 1, 1000)
        if self.mempolicy is not None:
            try:
                mpol_parse_str(self.mempolicy)
            except ValueError as error:
                raise TopologyError(f"workload: mempolicy: {error}") from None


@dataclass(frozen=True)
class Segment:
    """Hosts that hear each other: on one bridge, or (exactly two) at the ends of one veth pair."""

    kind: Literal["bridge", "link"]
    hosts: tuple[Host, ...]


class Topology:
    """Everything one experiment is made of. Methods raise TopologyError.

    The times of its faults count from the start of the workload, or with `faults_start` from when the first client
    begins to swap ("swapping") or a second later ("steady").
    """

    def __init__(self, name: str, faults_start: Start = "workload") -> None:
        _check_name("topology", name)
        _check_choice(faults_start, f"{name}: faults_start", STARTS)
        self.name = name
        self.faults_start = faults_start
        self.hosts: list[Host] = []
        self.segments: list[Segment] = []
        self.workloads: dict[str, LinearTouch] = {}
        self.floods: list[tuple[Neighbour, FloodTarget, Traffic]] = []
        self.steps: list[Step] = []

    def add(self, host: AnyHost) -> AnyHost:
        """Add a host and return it."""
        if not isinstance(host, ANY_HOST):
            raise TopologyError(f"{self.name}: {host!r} is not a host")
        added = [host.name] + ([each.name for each in host.virtual_machines] if isinstance(host, SwapClient) else [])
        names = Counter([known.name for known in (*self.hosts, *self.virtual_machines)] + added)
        for name in added:
            if names[name] > 1:
                raise TopologyError(f"{self.name}: two hosts are named {name!r}")
        if isinstance(host, SwapClient) and not self._has(host.swap):
            raise TopologyError(f"{host.name}: its swap server {host.swap.name!r} is not in the topology: add it first")
        self.hosts.append(host)
        return host

    def connect(self, *hosts: Host) -> None:
        """Put hosts on a bridge of their own."""
        if len(hosts) < 2:
            raise TopologyError(f"{self.name}: connect needs at least two hosts")
        self._attach("bridge", hosts)

    def link(self, one: Host, other: Host) -> None:
        """Join two hosts with a veth pair of their own."""
        self._attach("link", (one, other))

    def workload(self, client: SwapClient, workload: LinearTouch) -> None:
        """Give a client its workload."""
        self._expect(client, SwapClient, "a workload runs on")
        if not isinstance(workload, LinearTouch):
            raise TopologyError(f"{client.name}: {workload!r} is not a workload")
        if client.name in self.workloads:
            raise TopologyError(f"{client.name}: it has a workload already")
        self.workloads[client.name] = workload

    def flood(self, source: Neighbour, target: FloodTarget, flood: Traffic) -> None:
        """Have `source` flood `target`, or send it a stream."""
        self._expect(source, Neighbour, "a flood comes from")
        if not any(known is target for known in self.virtual_machines):
            self._expect(target, SwapClient, "a flood goes to")
        if not isinstance(flood, Traffic):
            raise TopologyError(f"{source.name}: {flood!r} is not a flood")
        if isinstance(target, VirtualMachine) and isinstance(flood, (ArpFlood, TcpStream)):
            raise TopologyError(
                f"{target.name}: no {flood.kind} goes to a virtual machine alone: aim it at the client it runs on"
            )
        self.floods.append((source, target, flood))

    def at(self, seconds: float, fault: Fault, until: float | None = None) -> Topology:
        """Schedule a fault, or the end of one, so many seconds after `faults_start`; returns the topology.

        `until` is when a fault that is set ends again.
        """
        if not hasattr(fault, "step"):
            raise TopologyError(f"{self.name}: {fault!r} is not a fault: take one from link_of, process_of, ...")
        self.steps.append(fault.step(_moment(seconds, self.name)))
        if until is not None:
            if not seconds < _moment(until, self.name):
                raise TopologyError(f"{self.name}: {fault.kind} at {seconds:g} s cannot end at {until:g} s")
            self.steps.append(fault.end(until))
        return self

    def link_of(self, host: Host) -> Link:
        """What can go wrong with the link between a host and the others."""
        from testbed.experiment.faults.handles import Link

        self._expect(host, ANY_HOST, "a link is that of")
        return Link(host.name)

    def storage_of(self, server: NbdServer) -> Storage:
        """What can go wrong with the storage and the protocol of a server."""
        from testbed.experiment.faults.handles import Storage

        self._expect(server, NbdServer, "storage is that of")
        return Storage(server.name)

    def process_of(self, host: Host) -> Process:
        """What can happen to the process that a host is."""
        from testbed.experiment.faults.handles import Process

        self._expect(host, ANY_HOST, "a process is that of")
        return Process(host.name)

    def memory_of(self, client: SwapClient) -> Memory:
        """What can happen to the memory of a client."""
        from testbed.experiment.faults.handles import Memory

        self._expect(client, SwapClient, "memory is that of")
        return Memory(client.name)

    @property
    def clients(self) -> list[SwapClient]:
        """The swap clients, in the order they were added."""
        return [host for host in self.hosts if isinstance(host, SwapClient)]

    @property
    def virtual_machines(self) -> list[VirtualMachine]:
        """The virtual machines of all clients."""
        return [machine for client in self.clients for machine in client.virtual_machines]

    def owner(self, target: FloodTarget) -> SwapClient:
        """The client that a virtual machine runs on; a client is its own."""
        if isinstance(target, SwapClient):
            return target
        return next(client for client in self.clients if any(each is target for each in client.virtual_machines))

    def main(self, argv: Sequence[str] | None = None) -> NoReturn:
        """Run this topology with the options of `testbed run` and exit with its status; for a script's last line."""
        from testbed.experiment.command import run_topology

        raise SystemExit(run_topology(self, argv))

    def _has(self, host: Host) -> bool:
        return any(known is host for known in self.hosts)

    def _attach(self, kind: Literal["bridge", "link"], hosts: tuple[Host, ...]) -> None:
        for host in hosts:
            self._expect(host, ANY_HOST, f"a {kind} joins")
            if isinstance(host, NbdServer) and host.same_host:
                raise TopologyError(f"{host.name}: it is on its client's machine, and has no interface of its own")
            if any(known is host for segment in self.segments for known in segment.hosts):
                raise TopologyError(f"{host.name}: it is connected already, and a host has one interface")
        if len({host.name for host in hosts}) < len(hosts):
            raise TopologyError(f"{self.name}: a host cannot be connected to itself")
        self.segments.append(Segment(kind, hosts))

    def _expect(self, host: object, kind: type | tuple[type, ...], what: str) -> None:
        if not isinstance(host, kind):
            names = [each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,))]
            raise TopologyError(f"{self.name}: {what} a {' or '.join(names)}, not {getattr(host, 'name', host)!r}")
        if not any(known is host for known in self.hosts):
            raise TopologyError(f"{self.name}: {getattr(host, 'name', host)!r} is not in the topology: add it first")
