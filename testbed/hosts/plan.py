"""What a host process is told about itself: its addresses, its sizes, its part of the experiment. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from testbed.mm.slub import SLUB_MAX_ORDER
from testbed.mm.watermarks import PAGE_SHIFT, Watermarks
from testbed.mm.zone_layout import lowmem_reserve, zone_spans
from testbed.nbd.client_tls import TlsFiles
from testbed.net.sk_mem import Mem
from testbed.net.skbuff import Driver
from testbed.rules import V9, Rules

Reader = Literal["prompt", "faulting", "corked", "never"]
EmulatorReader = Literal["prompt", "faulting", "never"]
BystanderProtocol = Literal["udp", "tcp"]
SlabAllocator = Literal["slub", "slab"]
ZoneLayout = Literal["normal", "x86_64", "i386"]
ClientHost = Literal["emulated", "kernel"]


@dataclass(frozen=True, slots=True)
class Interface:
    """A host's one interface, or that of a virtual machine on it: where it hangs, its addresses with prefix lengths."""

    host: str
    segment: int
    mac: str
    ipv4: str
    ipv6: str
    mtu: int

    @property
    def address(self) -> str:
        """The IPv4 address without its prefix length."""
        return self.ipv4.partition("/")[0]

    @property
    def address6(self) -> str:
        """The IPv6 address without its prefix length."""
        return self.ipv6.partition("/")[0]


@dataclass(frozen=True, slots=True)
class SameHost:
    """A server on its client's machine. `disk` is how many bytes a second the disk under its page cache moves; None for
    one that goes past the page cache. `realtime` is its scheduling class.
    """

    disk: int | None
    realtime: bool


@dataclass(frozen=True, slots=True)
class SwapArea:
    """One client's swap area: where a server offers it, how many bytes it has, and how many it moves a second.

    `same_host` is given for a server on the client's own machine.
    """

    client: str
    address: str
    port: int
    export: str
    bytes: int
    file: str | None
    bandwidth: int | None = None
    same_host: SameHost | None = None


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """A host that serves swap areas, each on a port of its own; on its client's machine it has that one's interface."""

    name: str
    interface: Interface
    program: str
    areas: tuple[SwapArea, ...]


@dataclass(frozen=True, slots=True)
class BystanderPlan:
    """One unrelated socket and its receive-buffer limit in bytes."""

    port: int
    buffer: int
    reader: Reader
    protocol: BystanderProtocol = "udp"


@dataclass(frozen=True, slots=True)
class VirtualMachinePlan:
    """A virtual machine on a client, behind its bridge: its address there, how its emulator reads, frames that wait."""

    name: str
    interface: Interface
    reader: EmulatorReader
    tx_queue_len: int


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """`processes` tasks write `pages` pages in all once, then read them `passes` times. `mempolicy` is where each wants
    its memory (see `mpol_parse_str`)."""

    processes: int
    pages: int
    passes: int
    mempolicy: str | None = None


@dataclass(frozen=True, slots=True)
class TracePlan:
    """Where a client writes its trace: what its files' names begin with, and its number among the clients."""

    prefix: str
    number: int


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """Where the capture of a host's link goes, and how many bytes of each frame are kept."""

    host: str
    path: str
    snaplen: int


PAGE_CACHE_SHARE = 16


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """A swap client. Sizes in bytes, `min_free_kbytes` in KiB, socket buffers None for the defaults.

    From `rules` on it is said which kernel it runs, with which slab allocator and NIC driver, how its memory is laid
    out, up to what length the driver copies frames, the receive buffer of a tap, if one is running, its virtual
    machines, and whether the segments of a GSO frame are merged again. `udp_mem` and `tcp_mem` are in pages, None for
    the kernel's own; `neighbour_timeout` is in seconds, None for neighbour entries that last. `host` is the model, or a
    real kernel, whose console goes to the file `console`.
    The `nbd_` fields are those of `NbdConfig`, seconds; `tls` is how the connection is encrypted (None: it is not).
    """

    name: str
    interface: Interface
    memory: int
    min_free_kbytes: int
    watermarks: Watermarks
    ring: int
    gso: bool
    swap: SwapArea
    bystanders: tuple[BystanderPlan, ...]
    canary_port: int
    receive_buffer: int | None
    send_buffer: int | None
    workload: WorkloadPlan
    rules: Rules = V9
    slab: SlabAllocator = "slub"
    slub_max_order: int = SLUB_MAX_ORDER
    driver: Driver = "linear"
    zones: ZoneLayout = "normal"
    nodes: int = 1
    copybreak: int = 0
    tap: int | None = None
    virtual_machines: tuple[VirtualMachinePlan, ...] = ()
    gro: bool = False
    trace: TracePlan | None = None
    udp_mem: Mem | None = None
    tcp_mem: Mem | None = None
    neighbour_timeout: float | None = None
    host: ClientHost = "emulated"
    nbd_timeout: float | None = None
    nbd_dead_conn_timeout: float | None = None
    nbd_connections: int = 1
    tls: TlsFiles | None = None
    console: str | None = None

    @property
    def page_cache(self) -> int:
        """Bytes of clean page cache at start: what a booted machine has read from its root file system."""
        return self.memory // PAGE_CACHE_SHARE

    @property
    def scarce(self) -> int:
        """Free pages above which no request waits: low, and what low zones keep from requests for higher ones."""
        spans = zone_spans(self.memory >> PAGE_SHIFT, self.zones, self.nodes)
        return self.watermarks.low + sum(max(lowmem_reserve(span, spans)) for span in spans)
