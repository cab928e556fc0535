"""Runs a plan on virtual time, in this process: no root, no network, and every run with the same seed is the same.

Hosts, links and disks are simulated; the models, the course of the experiment, the evidence and the verdict are those
of a real run. All of a server's programs are simulated as ours, and every swap area is kept in memory.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from dataclasses import replace

from testbed.experiment.coordinator import Coordinator, Limits, Observer, RunRecord
from testbed.experiment.faults.kinds import SIMULATED, layer_of
from testbed.experiment.faults.step import Step
from testbed.experiment.plan import FloodPlan, Plan, StreamPlan
from testbed.experiment.preflight import real_memory
from testbed.hosts.emulated_client import SAMPLE_INTERVAL
from testbed.hosts.messages import SetFault
from testbed.hosts.plan import ClientPlan, ServerPlan, SwapArea
from testbed.hosts.swap_client import GC_THRESHOLDS
from testbed.hosts.workload import STAMP
from testbed.lab.errors import LabError
from testbed.lab.fault_relay import relay_name
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.export import Export, MemoryExport
from testbed.simulation.client import SimulatedClient
from testbed.simulation.edge import TCP_HEADERS, TRAIN, SimulatedEdge
from testbed.simulation.fault_relay import SimulatedFaultRelay, simulated_effects
from testbed.simulation.link import LinkSpeed, Port
from testbed.simulation.neighbour import SimulatedCanary, SimulatedFlood, SimulatedNeighbour
from testbed.simulation.reduced import ReducedExport
from testbed.simulation.server import SimulatedServer
from testbed.simulation.tcp_stream import NeighbourPort, SimulatedTcpStream
from testbed.simulation.virtual_time import VirtualTimeLoop, finish

TICK_S = 0.1
READY_TIMEOUT_S = 30.0
SPEED = LinkSpeed()
WHOLE_PAGES_UP_TO = 2 << 30
"""Bytes of clients' memory and swap areas together above which only a stamp of each page is kept."""
CLIENTS_SAMPLED_OFTEN = 10
SLOWEST_SAMPLES_S = 0.5
"""With more clients than this samples come less often, but at least so often."""


def execute(plan: Plan, patches: frozenset[int], seed: int, limits: Limits, observer: Observer) -> RunRecord:
    """Simulate `plan` once; times in the record are virtual.

    Raises LabError for what the simulator does not have, and when a client cannot start.
    """
    plan = plan.with_whole_frames()
    check(plan)
    thresholds = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    loop = VirtualTimeLoop()
    try:
        coordinator = Coordinator(plan, patches, limits, observer, _VirtualClock(loop))
        loop.run_until_complete(_build(coordinator, seed, loop))
        coordinator.carry_out()
        return replace(coordinator.record(loop.time()), simulated=True)
    finally:
        finish(loop)
        gc.set_threshold(*thresholds)


def check(plan: Plan) -> None:
    """Refuse what is not simulated: real kernels, captures, most faults.

    Raises LabError.
    """
    for step in plan.schedule:
        _check_fault(step)
    for client in plan.clients:
        if client.host != "emulated":
            raise LabError(f"a real kernel cannot be simulated: {client.name} must be emulated")
    if plan.captures:
        raise LabError("the simulator's frames have no bytes that could be captured: run it for real")


def _check_fault(step: Step) -> None:
    if step.action == "set" and layer_of(step.kind) == "link":
        try:
            simulated_effects(SetFault(step.number, step.kind, step.arguments, step.seed))
        except ValueError as error:
            raise LabError(str(error)) from None
    elif layer_of(step.kind) != "link" and step.kind not in SIMULATED:
        raise LabError(f"the simulator has no {step.kind} fault, which {step.target} is to have: run it for real")


class _VirtualClock:
    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def tick(self, most: float) -> None:
        self._loop.run_until_complete(asyncio.sleep(min(TICK_S, most)))


async def _build(coordinator: Coordinator, seed: int, loop: VirtualTimeLoop) -> None:
    """Make all hosts, and wait until the clients are ready."""
    plan = coordinator.plan
    page_bytes = PAGE_SIZE if real_memory(plan) <= WHOLE_PAGES_UP_TO else STAMP.size
    interval = min(SLOWEST_SAMPLES_S, SAMPLE_INTERVAL * max(1.0, len(plan.clients) / CLIENTS_SAMPLED_OFTEN))
    servers = {area.client: server for each in plan.servers for server, area in _served(each, page_bytes)}
    ports = {neighbour.name: NeighbourPort(SPEED) for neighbour in plan.neighbours}
    clients = {
        client.name: SimulatedClient(
            *(client, coordinator.patches, seed, SimulatedEdge(loop, SPEED, servers[client.name])),
            page_bytes=page_bytes,
            sample_interval=interval,
        )
        for client in plan.clients
    }
    hosts = {server.name: server.port for server in servers.values()} | ports
    hosts |= {name: client.edge.port for name, client in clients.items()}
    for host in sorted(plan.fault_links):
        coordinator.add_link(host, SimulatedFaultRelay(relay_name(host), hosts[host], SPEED))
    await _ready(list(clients.values()))
    for server in dict.fromkeys(servers.values()):
        coordinator.add(server)
    for client in plan.clients:
        source = ports[plan.canary_source(client).name]
        coordinator.add_client(client, clients[client.name], _canary(client, clients[client.name].edge, source))
    seeds = itertools.count(seed)
    for neighbour in plan.neighbours:
        for traffic in neighbour.by_start():
            source = ports[neighbour.name]
            made = [_flood(flood, clients[flood.target.host].edge, source, next(seeds)) for flood in traffic.floods]
            streams = [_stream(each, clients[each.target.host].edge, source) for each in traffic.streams]
            coordinator.add_floods(traffic, SimulatedNeighbour(neighbour.name, made, streams))


def _served(plan: ServerPlan, page_bytes: int) -> list[tuple[SimulatedServer, SwapArea]]:
    def storage(area: SwapArea) -> Export:
        return MemoryExport(area.bytes) if page_bytes == PAGE_SIZE else ReducedExport(area.bytes, page_bytes)

    server = SimulatedServer(plan, SPEED, storage)
    return [(server, area) for area in plan.areas]


async def _ready(clients: list[SimulatedClient]) -> None:
    deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_S
    while waiting := [client.name for client in clients if not client.ready]:
        if asyncio.get_running_loop().time() > deadline:
            raise LabError(f"{waiting[0]} was not ready after {READY_TIMEOUT_S:g} s")
        await asyncio.sleep(TICK_S)


def _canary(plan: ClientPlan, edge: SimulatedEdge, source: Port) -> SimulatedCanary:
    (kind,) = edge.kinds("udp", (plan.canary_port,), None, plan.interface.mac)
    return SimulatedCanary(f"canary for {plan.name}", source, edge.port, kind)


def _stream(plan: StreamPlan, edge: SimulatedEdge, source: NeighbourPort) -> SimulatedTcpStream:
    mss = plan.target.mtu - TCP_HEADERS
    return SimulatedTcpStream(
        *(source, edge.port, plan.source.address, plan.ports),
        bytes_per_second=plan.bytes_per_second,
        mss=mss,
        train=mss * TRAIN,
    )


def _flood(plan: FloodPlan, edge: SimulatedEdge, source: Port, seed: int) -> SimulatedFlood:
    kinds = edge.kinds(plan.kind, plan.ports, plan.ethertype, plan.target.mac)
    return SimulatedFlood(source, edge.port, kinds, pps=plan.pps, size=plan.size, seed=seed)
