"""Runs a plan for real: builds its network, starts its hosts as processes in it, and takes it through its course."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from multiprocess.connection import wait

from testbed.experiment.coordinator import Coordinator, Limits, Observer, RunRecord
from testbed.experiment.faults.kinds import PROCESS
from testbed.experiment.faults.processes import KeptAreas, Supervised, flood_was_killed
from testbed.experiment.leftovers import temporary_directory
from testbed.experiment.network import Network
from testbed.experiment.plan import FloodPlan, NeighbourPlan, Plan, StreamPlan
from testbed.hosts.kernel.catalogue import choose
from testbed.hosts.kernel.client import KernelClientSpec, kernel_client_main
from testbed.hosts.kernel.guest_program import guest_program
from testbed.hosts.messages import Shutdown
from testbed.hosts.nbd_host import NbdHostSpec, nbd_host_main
from testbed.hosts.plan import CapturePlan, ClientPlan, ServerPlan
from testbed.hosts.server_program import ServerPrograms
from testbed.hosts.swap_client import HOST_INTERFACE, SwapClientSpec, swap_client_main
from testbed.lab.capture import SnifferSpec, sniffer_main
from testbed.lab.fault_relay import FaultRelaySpec, fault_relay_main, relay_name
from testbed.lab.neighbour import CanaryProfile, FloodProfile, FloodSpec, flood_main
from testbed.lab.process import HostProcess
from testbed.lab.stream import StreamProfile

TICK_S = 0.1
READY_TIMEOUT_S = 30.0
TEMPLATE_KINDS = {"icmp": "icmp_echo"}


def execute(plan: Plan, patches: frozenset[int], seed: int, limits: Limits, observer: Observer) -> RunRecord:
    """Run `plan` once. Nothing of it is left when this returns or raises.

    Raises LabError when the network cannot be built or a host cannot start.
    """
    started = time.monotonic()
    plan = plan.with_whole_frames()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(plan))
        processes = Processes()
        stack.callback(processes.stop)
        coordinator = Coordinator(plan, patches, limits, observer, processes)
        _Start(network, processes, coordinator, seed, stack).all(plan)
        coordinator.carry_out()
        return coordinator.record(time.monotonic() - started)


class Processes:
    """The host processes of a run, which is what its clock waits for."""

    def __init__(self) -> None:
        self.running: list[HostProcess] = []

    def spawn(self, name: str, main: Any, spec: Any, namespaces: list[Any]) -> HostProcess:
        """Start a host and wait until it is ready. Raises LabError."""
        process = HostProcess(name, main, spec, namespaces).start()
        self.running.append(process)
        process.wait_ready(READY_TIMEOUT_S)
        return process

    def now(self) -> float:
        """CLOCK_MONOTONIC, which all processes share."""
        return time.monotonic()

    def tick(self, most: float) -> None:
        """Wait a moment, or until somebody says something."""
        wait([process.channel for process in self.running if process.alive], min(TICK_S, most))

    def stop(self) -> None:
        """End every process, by its pid."""
        for process in self.running:
            process.send(Shutdown())
        for process in self.running:
            process.stop(1.0)
            process.close()


class _Start:
    """Starts relays, then servers, then clients, then neighbours; each is ready before the next begins."""

    def __init__(
        self,
        network: Network,
        processes: Processes,
        coordinator: Coordinator,
        seed: int,
        stack: contextlib.ExitStack,
    ) -> None:
        self.network = network
        self.processes = processes
        self.coordinator = coordinator
        self.seed = seed
        self._stack = stack
        self._exports: dict[str, str] = {}
        self._captures: dict[str, CapturePlan] = {}

    def all(self, plan: Plan) -> None:
        self._sniffers(plan)
        for host, namespace in self.network.relays.items():
            name = relay_name(host)
            relay = self.processes.spawn(name, fault_relay_main, FaultRelaySpec(name), [namespace])
            self.coordinator.add_link(host, relay)
        for server in plan.servers:
            self._server(server)
        for client in plan.clients:
            self._client(client, plan.canary_source(client))
        for neighbour in plan.neighbours:
            self._floods(neighbour)

    def _server(self, server: ServerPlan) -> None:
        host = self.network.hosts[server.interface.host]
        if server.program == "builtin" and self._may_stop(server.name):
            self.coordinator.add(self._restartable(server))
        elif server.program == "builtin":
            self.coordinator.add(self.processes.spawn(server.name, nbd_host_main, NbdHostSpec(server), [host]))
        else:
            directory = self._stack.enter_context(temporary_directory())
            programs = self._stack.enter_context(ServerPrograms(directory))
            self._exports |= programs.start(server, host)

    def _restartable(self, server: ServerPlan) -> Supervised:
        """A server that can be started again with what it had, or without."""
        areas = self._stack.enter_context(KeptAreas(server))

        def start(data: str = "kept") -> HostProcess:
            if data == "lost":
                areas.lose()
            spec = NbdHostSpec(areas.plan)
            return self.processes.spawn(server.name, nbd_host_main, spec, [self.network.hosts[server.interface.host]])

        return Supervised(start(), start)

    def _may_stop(self, name: str) -> bool:
        """Does the schedule do something to the process of this host?"""
        return any(step.target == name and step.kind in PROCESS for step in self.coordinator.plan.schedule)

    def _client(self, plan: ClientPlan, source: NeighbourPlan) -> None:
        if plan.name in self._exports:
            plan = replace(plan, swap=replace(plan.swap, export=self._exports[plan.name]))
        process = self._kernel(plan) if plan.host == "kernel" else self._emulated(plan)
        name = f"canary for {plan.name}"
        profile = CanaryProfile(plan.interface.address, plan.canary_port)
        canary = self.processes.spawn(
            name, flood_main, FloodSpec(name, "eth0", (), profile), [self.network.hosts[source.name]]
        )
        supervised = plan.host == "emulated" and self._may_stop(plan.name)
        self.coordinator.add_client(plan, Supervised(process) if supervised else process, canary)

    def _sniffers(self, plan: Plan) -> None:
        """An emulated client captures its link itself, since it alone knows why it drops what; others are looked at."""
        self._captures = {capture.host: capture for capture in plan.captures}
        for capture in plan.captures:
            if capture.host not in self.network.nics:
                spec = SnifferSpec(capture.host, HOST_INTERFACE, capture.path, capture.snaplen)
                name, namespaces = f"capture of {capture.host}", [self.network.hosts[capture.host]]
                self.coordinator.add(self.processes.spawn(name, sniffer_main, spec, namespaces))

    def _emulated(self, plan: ClientPlan) -> HostProcess:
        host, nic = self.network.hosts[plan.name], self.network.nics[plan.name]
        spec = SwapClientSpec(plan, self.coordinator.patches, self.seed, host, self._captures.get(plan.name))
        return self.processes.spawn(plan.name, swap_client_main, spec, [nic, host])

    def _kernel(self, plan: ClientPlan) -> HostProcess:
        image, parameters = choose(plan.slab, self.coordinator.patches)
        if plan.slab == "slub":
            parameters = (*parameters, f"slub_max_order={plan.slub_max_order}")
        directory = self._stack.enter_context(temporary_directory())
        spec = KernelClientSpec(
            plan=plan,
            image=image,
            parameters=parameters,
            program=guest_program(),
            seed=self.seed,
            neighbours=self.network.known_to(plan),
            directory=directory,
            console=Path(plan.console) if plan.console else directory / "console.log",
        )
        return self.processes.spawn(plan.name, kernel_client_main, spec, [self.network.hosts[plan.name]])

    def _floods(self, neighbour: NeighbourPlan) -> None:
        for traffic in neighbour.by_start():
            floods = [_profile(flood) for flood in traffic.floods]
            streams = [_stream_profile(stream) for stream in traffic.streams]
            spec = FloodSpec(neighbour.name, "eth0", floods, None, self.seed, streams)
            process = self.processes.spawn(neighbour.name, flood_main, spec, [self.network.hosts[neighbour.name]])
            last_word = partial(flood_was_killed, traffic)
            stoppable = self._may_stop(neighbour.name)
            host = Supervised(process, last_word=last_word) if stoppable else process
            self.coordinator.add_floods(traffic, host)


def _stream_profile(stream: StreamPlan) -> StreamProfile:
    return StreamProfile(stream.target.address, stream.ports, stream.bytes_per_second)


def _profile(flood: FloodPlan) -> FloodProfile:
    ipv6 = flood.kind == "ipv6_udp"
    return FloodProfile(
        kind=TEMPLATE_KINDS.get(flood.kind, flood.kind),
        pps=flood.pps,
        size=flood.size,
        source_mac=flood.source.mac,
        destination_mac=flood.target.mac,
        source_ip=flood.source.address6 if ipv6 else flood.source.address,
        destination_ip=flood.target.address6 if ipv6 else flood.target.address,
        ports=flood.ports or (9,),
    )
