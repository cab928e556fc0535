"""Runs a plan: builds its network, starts its hosts, puts the client under pressure, watches, and collects evidence.

The runner decides nothing about the outcome. It sends canaries before and after, starts each flood at the moment the
topology names, notices when a client has stopped moving, stops the floods, watches for as long again, and hands what
everybody saw to the verdict.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from multiprocess.connection import wait

from testbed.experiment.evidence import (
    PROGRESS_COUNTERS,
    Canary,
    ClientEvidence,
    Observation,
    RunEvidence,
    Stall,
)
from testbed.experiment.leftovers import temporary_directory
from testbed.experiment.network import Network
from testbed.experiment.plan import FloodPlan, NeighbourPlan, Plan, StreamPlan
from testbed.hosts.messages import (
    Event,
    Failed,
    Finished,
    Message,
    Sample,
    SendCanary,
    Shutdown,
    StartFlood,
    StartWorkload,
    StopFlood,
)
from testbed.hosts.nbd_host import NbdHostSpec, nbd_host_main
from testbed.hosts.plan import ClientPlan, ServerPlan
from testbed.hosts.server_program import ServerPrograms
from testbed.hosts.swap_client import SwapClientSpec, swap_client_main
from testbed.lab.errors import LabError
from testbed.lab.neighbour import CanaryProfile, FloodProfile, FloodSpec, flood_main
from testbed.lab.process import HostProcess
from testbed.lab.stream import StreamProfile

TICK_S = 0.1
READY_TIMEOUT_S = 30.0
CANARY_TIMEOUT_S = 5.0
CANARY_QUIET_S = 1.0
FINISH_TIMEOUT_S = 30.0
CONFIRM_STALLS = 6
"""Stall limits for which a client that stalled is watched after the floods have stopped."""
CANARY_BEFORE = 50
CANARY_AFTER_MARGIN = 64
CANARY_SECONDS = 0.5
TEMPLATE_KINDS = {"icmp": "icmp_echo"}


class Observer(Protocol):
    """Whoever wants to see the run while it goes on."""

    def sample(self, sample: Sample) -> None:
        """A host's counters."""

    def event(self, event: Event) -> None:
        """Something that happened once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: how long the whole workload may take, and how long a client may stand still."""

    time: float
    stall: float


class _Client:
    """What the runner knows about one client while it runs."""

    def __init__(self, plan: ClientPlan, process: HostProcess, canary: HostProcess) -> None:
        self.plan = plan
        self.process = process
        self.canary = canary
        self.samples: list[Observation] = []
        self.last_moved: Observation | None = None
        self.stall: Stall | None = None
        self.canary_before: Canary | None = None
        self.canary_after: Canary | None = None
        self.report: dict[str, Any] | None = None
        self.swapping = False
        self.ended = False

    def observe(self, sample: Sample) -> None:
        seen = Observation(sample.time, sample.counters)
        self.samples.append(seen)
        before = self.last_moved
        if before is None or any(seen.counters[name] != before.counters[name] for name in PROGRESS_COUNTERS):
            self.last_moved = seen

    @property
    def latest(self) -> Observation:
        return self.samples[-1]

    def stalled_for(self) -> float:
        """Seconds without progress while tasks wait."""
        if self.last_moved is None or self.ended or not self.latest.counters["tasks_waiting"]:
            return 0.0
        return self.latest.time - self.last_moved.time


class _Flood:
    """The floods and streams of one neighbour that start together, sent by one process."""

    def __init__(
        self, start: str, floods: list[FloodPlan], streams: list[StreamPlan], process: HostProcess
    ) -> None:
        self.start = start
        self.floods = floods
        self.streams = streams
        self.process = process
        self.started = False
        self.stopped: float | None = None
        self.sent = 0
        self.pps = 0.0
        self.each: list[dict[str, Any]] = []
        self.each_stream: list[dict[str, Any]] = []

    def targets(self) -> set[str]:
        """The clients that it floods."""
        return {flood.target.host for flood in self.floods} | {stream.target.host for stream in self.streams}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run's evidence, and what the floods reached: frames sent, frames a second."""

    evidence: RunEvidence
    flood_sent: int
    flood_pps: float
    elapsed_s: float


def execute(plan: Plan, patches: frozenset[int], seed: int, limits: Limits, observer: Observer) -> RunRecord:
    """Run `plan` once. Nothing of it is left when this returns or raises.

    Raises LabError when the network cannot be built or a host cannot start.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(plan))
        run = _Run(plan, patches, limits, observer)
        stack.callback(run.stop)
        run.start(network, seed, stack)
        run.carry_out()
        sent, pps = run.flood_totals()
        return RunRecord(run.evidence(), sent, pps, time.monotonic() - started)


class _Run:
    def __init__(self, plan: Plan, patches: frozenset[int], limits: Limits, observer: Observer) -> None:
        self.plan = plan
        self.patches = patches
        self.limits = limits
        self.observer = observer
        self.processes: list[HostProcess] = []
        self.clients: list[_Client] = []
        self.floods: list[_Flood] = []
        self.out_of_time = False
        self._exports: dict[str, str] = {}
        self._handlers: dict[HostProcess, Callable[[Message], None]] = {}

    def start(self, network: Network, seed: int, stack: contextlib.ExitStack) -> None:
        """Start servers, then clients, then neighbours; each is ready before the next begins."""
        for server in self.plan.servers:
            self._start_server(server, network, stack)
        for client in self.plan.clients:
            self._start_client(client, network, seed)
        for neighbour in self.plan.neighbours:
            self._start_floods(neighbour, network, seed)

    def _start_server(self, server: ServerPlan, network: Network, stack: contextlib.ExitStack) -> None:
        if server.program == "builtin":
            self._spawn(server.name, nbd_host_main, NbdHostSpec(server), [network.hosts[server.name]])
        else:
            programs = stack.enter_context(ServerPrograms(stack.enter_context(temporary_directory())))
            self._exports |= programs.start(server, network.hosts[server.name])

    def _start_client(self, plan: ClientPlan, network: Network, seed: int) -> None:
        if plan.name in self._exports:
            plan = replace(plan, swap=replace(plan.swap, export=self._exports[plan.name]))
        spec = SwapClientSpec(plan, self.patches, seed, network.hosts[plan.name])
        process = self._spawn(plan.name, swap_client_main, spec, [network.nics[plan.name], network.hosts[plan.name]])
        source = self.plan.canary_source(plan)
        profile = CanaryProfile(plan.interface.address, plan.canary_port)
        canary = self._spawn(
            f"canary for {plan.name}",
            flood_main,
            FloodSpec(f"canary for {plan.name}", "eth0", (), profile),
            [network.hosts[source.name]],
        )
        client = _Client(plan, process, canary)
        self.clients.append(client)
        self._handlers[process] = lambda message: self._from_client(client, message)

    def _start_floods(self, neighbour: NeighbourPlan, network: Network, seed: int) -> None:
        starts = {flood.start for flood in neighbour.floods} | {stream.start for stream in neighbour.streams}
        for start in sorted(starts):
            floods = [flood for flood in neighbour.floods if flood.start == start]
            streams = [stream for stream in neighbour.streams if stream.start == start]
            profiles = [StreamProfile(each.target.address, each.ports, each.bytes_per_second) for each in streams]
            spec = FloodSpec(neighbour.name, "eth0", [_profile(flood) for flood in floods], None, seed, profiles)
            process = self._spawn(neighbour.name, flood_main, spec, [network.hosts[neighbour.name]])
            flood = _Flood(start, floods, streams, process)
            self.floods.append(flood)
            self._handlers[process] = lambda message, flood=flood: self._from_flood(flood, message)  # type: ignore[misc]

    def _spawn(self, name: str, main: Any, spec: Any, namespaces: list[Any]) -> HostProcess:
        process = HostProcess(name, main, spec, namespaces).start()
        self.processes.append(process)
        process.wait_ready(READY_TIMEOUT_S)
        return process

    def carry_out(self) -> None:
        """Canary, workload and floods, stall or end, canary, shutdown."""
        for client in self.clients:
            client.canary_before = self._canary(client, CANARY_BEFORE)
        self._workload()
        self._stop_floods()
        if any(client.stalled_for() >= self.limits.stall for client in self.clients):
            self._confirm_stalls()
        for client in self.clients:
            client.canary_after = self._canary(client, client.plan.ring + CANARY_AFTER_MARGIN)
        self._finish()

    def _workload(self) -> None:
        for client in self.clients:
            client.last_moved = client.latest if client.samples else None
            client.process.send(StartWorkload())
        self._say("workload_started", {})
        deadline = time.monotonic() + self.limits.time
        while not all(client.ended for client in self.clients):
            self._tick()
            self._start_due_floods()
            if any(client.stalled_for() >= self.limits.stall for client in self.clients):
                self._note_stalls()
                return
            if time.monotonic() > deadline:
                self.out_of_time = True
                return

    def _start_due_floods(self) -> None:
        for flood in self.floods:
            if not flood.started and (flood.start == "workload" or self._target_swaps(flood)):
                flood.started = True
                flood.process.send(StartFlood())

    def _target_swaps(self, flood: _Flood) -> bool:
        targets = flood.targets()
        return any(client.swapping for client in self.clients if client.plan.name in targets)

    def _note_stalls(self) -> None:
        for client in self.clients:
            if client.stalled_for() >= self.limits.stall and client.last_moved is not None:
                client.stall = Stall(client.last_moved, client.latest, 0.0, client.latest)
                self._say("stalled", {"client": client.plan.name, "seconds": round(client.stalled_for(), 3)})

    def _stop_floods(self) -> None:
        for flood in self.floods:
            if flood.started:
                flood.process.send(StopFlood())
        self._until(lambda: all(flood.stopped for flood in self.floods if flood.started), CANARY_TIMEOUT_S)

    def _confirm_stalls(self) -> None:
        """Watch stalled clients for as long again, now that no flood is left to starve them.

        One that moves and then stops once more is watched from there; one that goes on is left alone after a while.
        """
        stopped = max((flood.stopped for flood in self.floods if flood.stopped), default=time.monotonic())
        stalled = [client for client in self.clients if client.stall is not None]
        self._until(
            lambda: sum(self._confirmed(client, stopped) for client in stalled) == len(stalled),
            CONFIRM_STALLS * self.limits.stall,
        )

    def _confirmed(self, client: _Client, stopped: float) -> bool:
        """Whether a stalled client has been watched to the end: still for a stall limit without flood, or finished."""
        assert client.stall is not None
        assert client.last_moved is not None
        noticed = client.stall.noticed
        if client.last_moved.time > noticed.time and client.stalled_for() >= self.limits.stall:
            noticed = client.latest
            self._say("stalled again", {"client": client.plan.name})
            client.stall = Stall(client.last_moved, noticed, stopped, noticed)
        client.stall = Stall(client.stall.last_moved, noticed, stopped, client.latest)
        still = client.last_moved.time <= noticed.time
        return client.ended or (still and client.latest.time >= max(stopped, noticed.time) + self.limits.stall)

    def _canary(self, client: _Client, count: int) -> Canary:
        """Send `count` datagrams, and wait until all have been read or no more come."""
        self._until(lambda: bool(client.samples), CANARY_TIMEOUT_S)
        before = client.latest.counters["canary_received"] if client.samples else 0
        client.canary.send(SendCanary(count, CANARY_SECONDS))
        deadline = time.monotonic() + CANARY_TIMEOUT_S
        received, changed = 0, time.monotonic() + CANARY_SECONDS
        while received < count and time.monotonic() < min(deadline, changed + CANARY_QUIET_S):
            self._tick()
            now = client.latest.counters["canary_received"] - before if client.samples else 0
            if now != received:
                received, changed = now, max(changed, time.monotonic())
        return Canary(count, received)

    def _finish(self) -> None:
        for client in self.clients:
            client.process.send(Shutdown())
        self._until(lambda: all(client.report is not None for client in self.clients), FINISH_TIMEOUT_S)

    def _until(self, done: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            self._tick()
        return True

    def _tick(self) -> None:
        """Wait a moment for messages and hand them on."""
        wait([process.channel for process in self.processes if process.alive], TICK_S)
        for process in self.processes:
            for message in process.messages():
                self._take(process, message)

    def _take(self, process: HostProcess, message: Message) -> None:
        if isinstance(message, Failed):
            raise LabError(f"{process.name}: {message.message}")
        handler = self._handlers.get(process)
        if handler is not None:
            handler(message)
        if isinstance(message, Sample):
            self.observer.sample(message)
        elif isinstance(message, Event):
            self.observer.event(message)

    def _from_client(self, client: _Client, message: Message) -> None:
        if isinstance(message, Sample):
            client.observe(message)
        elif isinstance(message, Event):
            client.swapping |= message.name == "swapping"
            client.ended |= message.name == "workload_ended"
        elif isinstance(message, Finished):
            client.report = message.report

    def _from_flood(self, flood: _Flood, message: Message) -> None:
        if isinstance(message, Event) and message.name == "flood_stopped":
            flood.stopped = message.time
            flood.sent, flood.pps = message.fields["sent"], message.fields["pps"]
            flood.each = message.fields["each"]
            flood.each_stream = message.fields["streams"]

    def _say(self, name: str, fields: dict[str, Any]) -> None:
        self.observer.event(Event("runner", time.monotonic(), name, fields))

    def stop(self) -> None:
        """End every process, by its pid."""
        for process in self.processes:
            process.send(Shutdown())
        for process in self.processes:
            process.stop(1.0)
            process.close()

    def flood_totals(self) -> tuple[int, float]:
        """Frames that all floods sent, and their rates added up."""
        return sum(flood.sent for flood in self.floods), sum(flood.pps for flood in self.floods)

    def evidence(self) -> RunEvidence:
        """All that was seen."""
        return RunEvidence(
            clients=[self._client_evidence(client) for client in self.clients],
            patches=self.patches,
            stall_limit=self.limits.stall,
            time_limit=self.limits.time,
            out_of_time=self.out_of_time,
        )

    def _client_evidence(self, client: _Client) -> ClientEvidence:
        sent = list(self._sent_to(client.plan.name))
        return ClientEvidence(
            name=client.plan.name,
            ring=client.plan.ring,
            report=client.report,
            samples=client.samples,
            canary_before=client.canary_before,
            canary_after=client.canary_after,
            stall=client.stall,
            flood_asked=any(client.plan.name in flood.targets() for flood in self.floods),
            flood_sent=sum(sent) if sent else None,
        )

    def _sent_to(self, name: str) -> Iterator[int]:
        for flood in self.floods:
            for plan, each in zip(flood.floods, flood.each, strict=False):
                if plan.target.host == name:
                    yield each["sent"]
            for stream, each in zip(flood.streams, flood.each_stream, strict=False):
                if stream.target.host == name:
                    yield each["segments"]


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
