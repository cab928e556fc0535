"""Takes an experiment through its course: canaries, workload, floods, stalls, the end; and collects evidence.

The coordinator decides nothing about the outcome. It sends canaries before and after, starts each flood at the moment
the topology names, notices when a client has stopped moving, stops the floods, watches for as long again, and hands
what everybody saw to the verdict. What its hosts are, and what its clock shows, is the business of whoever made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Protocol

from testbed.experiment.acting import acting
from testbed.experiment.evidence import (
    PROGRESS_COUNTERS,
    Canary,
    ClientEvidence,
    Observation,
    RunEvidence,
    Stall,
)
from testbed.experiment.faults.injected import Injected, held_until, on, ranges
from testbed.experiment.faults.injector import Injector
from testbed.experiment.plan import NeighbourPlan, Plan
from testbed.experiment.topology import Start
from testbed.hosts.messages import (
    Command,
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
from testbed.hosts.plan import ClientPlan
from testbed.lab.errors import LabError
from testbed.lab.fault_relay import relay_name

CANARY_TIMEOUT_S = 5.0
CANARY_QUIET_S = 1.0
FINISH_TIMEOUT_S = 30.0
STEADY_S = 1.0
"""How long a client must have swapped for floods and faults that wait until that is steady."""
CONFIRM_STALLS = 6
"""Stall limits for which a client that stalled is watched after the floods have stopped."""
CANARY_BEFORE = 50
CANARY_AFTER_MARGIN = 64
CANARY_SECONDS = 0.5


class Observer(Protocol):
    """Whoever wants to see the run while it goes on."""

    def sample(self, sample: Sample) -> None:
        """A host's counters."""

    def event(self, event: Event) -> None:
        """Something that happened once."""


class Host(Protocol):
    """Whoever takes commands and answers with messages."""

    @property
    def name(self) -> str: ...

    def send(self, command: Command) -> bool:
        """Give it a command; False when it is gone."""
        ...

    def messages(self) -> list[Message]:
        """What it has said since the last call."""
        ...


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Seconds, on the clock that the hosts' messages bear."""
        ...

    def tick(self, most: float) -> None:
        """Let a moment pass, in which hosts may say something, but no more than `most` seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: how long the whole workload may take, and how long a client may stand still."""

    time: float
    stall: float


class _Client:
    """What the runner knows about one client while it runs; `path` are the hosts that its swap depends on."""

    def __init__(self, plan: ClientPlan, host: Host, canary: Host, path: frozenset[str]) -> None:
        self.plan = plan
        self.path = path
        self.host = host
        self.canary = canary
        self.samples: list[Observation] = []
        self.last_moved: Observation | None = None
        self.stall: Stall | None = None
        self.canary_before: Canary | None = None
        self.canary_after: Canary | None = None
        self.report: dict[str, Any] | None = None
        self.corrupt_pages: dict[str, list[int]] = {}
        self.swaps_since = inf
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

    def stalled_for(self, faults: Iterable[Injected]) -> float:
        """Seconds without progress while tasks wait, less those that one of the `faults` explains."""
        if self.last_moved is None or self.ended or not self.latest.counters["tasks_waiting"]:
            return 0.0
        moved = self.last_moved.time
        return max(0.0, self.latest.time - max(moved, held_until(on(self.path, faults), moved)))


class _CanaryWatch:
    """Datagrams under way to one client, `sent` of them from `now` on."""

    def __init__(self, client: _Client, sent: int, now: float) -> None:
        self.client = client
        self.sent = sent
        self.received = 0
        self._before = self._read()
        self._deadline = now + CANARY_TIMEOUT_S
        self._changed = now + CANARY_SECONDS

    def _read(self) -> int:
        return self.client.latest.counters["canary_received"] if self.client.samples else 0

    def over(self, now: float) -> bool:
        """Have all been read, or will no more come?"""
        received = self._read() - self._before
        if received != self.received:
            self.received, self._changed = received, max(self._changed, now)
        return received >= self.sent or now >= min(self._deadline, self._changed + CANARY_QUIET_S)


class _Flood:
    """The floods and streams of one neighbour that start together, sent by one host."""

    def __init__(self, plan: NeighbourPlan, host: Host) -> None:
        self.plan = plan
        self.host = host
        self.started = False
        self.stopped: float | None = None
        self.sent = 0
        self.pps = 0.0
        self.each: list[dict[str, Any]] = []
        self.each_stream: list[dict[str, Any]] = []


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run's evidence, and what the floods reached: frames sent, frames a second. `elapsed_s` is by the run's clock.
    """

    evidence: RunEvidence
    flood_sent: int
    flood_pps: float
    elapsed_s: float
    simulated: bool = False


class Coordinator:
    """One experiment. Give it its hosts, all of them ready, and then `carry_out`."""

    def __init__(self, plan: Plan, patches: frozenset[int], limits: Limits, observer: Observer, clock: Clock) -> None:
        self.plan = plan
        self.patches = patches
        self.limits = limits
        self.observer = observer
        self.clock = clock
        self.hosts: list[Host] = []
        self.clients: list[_Client] = []
        self.floods: list[_Flood] = []
        self.links: dict[str, Host] = {}
        self._link_reports: dict[str, Mapping[str, Any]] = {}
        self.faults = Injector(plan.schedule, plan.faults_start, self._say)
        self.out_of_time = False
        self.workload_started: float | None = None
        self._by_name: dict[str, list[Host]] = {}
        self._handlers: dict[Host, Callable[[Message], None]] = {}

    def add(self, host: Host) -> None:
        """A host that is only listened to."""
        self._add(host.name, host)

    def add_client(self, plan: ClientPlan, host: Host, canary: Host) -> None:
        """A client, and the host that sends it canaries."""
        self._add(plan.name, host)
        self.hosts.append(canary)
        servers = [server.name for server in self.plan.servers if plan.swap in server.areas]
        client = _Client(plan, host, canary, frozenset({plan.name, *servers}))
        self.clients.append(client)
        self._handlers[host] = lambda message: self._from_client(client, message)

    def add_floods(self, plan: NeighbourPlan, host: Host) -> None:
        """Floods and streams that start together, and the host that sends them."""
        self._add(plan.name, host)
        flood = _Flood(plan, host)
        self.floods.append(flood)
        self._handlers[host] = lambda message: self._from_flood(flood, message)

    def add_link(self, name: str, host: Host) -> None:
        """What passes frames on in the link of the host `name`, and is asked for its account at the end."""
        self._add(relay_name(name), host)
        self.links[name] = host
        self._handlers[host] = lambda message: self._from_link(name, message)

    def _add(self, name: str, host: Host) -> None:
        self.hosts.append(host)
        self._by_name.setdefault(name, []).append(host)

    def carry_out(self) -> None:
        """Canary, workload and floods, stall or end, canary, shutdown."""
        for client, canary in zip(self.clients, self._canaries(lambda _: CANARY_BEFORE), strict=True):
            client.canary_before = canary
        self._workload()
        self.faults.end(self.clock.now(), self._by_name)
        self._stop_floods()
        if any(client.stall is not None for client in self.clients):
            self._confirm_stalls()
        after = self._canaries(lambda plan: plan.ring + CANARY_AFTER_MARGIN)
        for client, canary in zip(self.clients, after, strict=True):
            client.canary_after = canary
        self._finish()

    def _workload(self) -> None:
        for client in self.clients:
            client.last_moved = client.latest if client.samples else None
            client.host.send(StartWorkload())
        self.workload_started = self.clock.now()
        self._say("workload_started", {})
        deadline = self.clock.now() + self.limits.time
        self._start_what_is_due()
        while not all(client.ended for client in self.clients):
            self._tick()
            self._start_what_is_due()
            if any(self._stalled(client) for client in self.clients):
                self._note_stalls()
                return
            if self.clock.now() > deadline:
                self.out_of_time = True
                return

    def _stalled(self, client: _Client) -> bool:
        return client.stalled_for(self.faults.injected.values()) >= self.limits.stall

    def _start_what_is_due(self) -> None:
        if not self.faults.started and self._is_due(self.faults.faults_start, self.clients):
            self.faults.start(self.clock.now())
        for flood in self.floods:
            if not flood.started and self._is_due(flood.plan.start, self._targets(flood)):
                flood.started = True
                flood.host.send(StartFlood())

    def _targets(self, flood: _Flood) -> list[_Client]:
        return [client for client in self.clients if client.plan.name in flood.plan.targets]

    def _is_due(self, start: Start, clients: Sequence[_Client]) -> bool:
        since = self.clock.now() - (STEADY_S if start == "steady" else 0.0)
        return start == "workload" or any(client.swaps_since <= since for client in clients)

    def _note_stalls(self) -> None:
        for client in self.clients:
            if self._stalled(client) and client.last_moved is not None:
                client.stall = Stall(client.last_moved, client.latest, 0.0, client.latest, client.plan.scarce)
                still = client.latest.time - client.last_moved.time
                self._say("stalled", {"client": client.plan.name, "seconds": round(still, 3)})

    def _stop_floods(self) -> None:
        for flood in self.floods:
            if flood.started:
                flood.host.send(StopFlood())
        self._until(lambda: all(flood.stopped for flood in self.floods if flood.started), CANARY_TIMEOUT_S)

    def _confirm_stalls(self) -> None:
        """Watch stalled clients for as long again, now that no flood is left to starve them, and no fault is felt.

        One that moves and then stops once more is watched from there; one that goes on is left alone after a while.
        """
        now = self.clock.now()
        stopped = max((flood.stopped for flood in self.floods if flood.stopped), default=now)
        stalled = {client: stopped for client in self.clients if client.stall is not None}
        for client in stalled:
            ended = [fault.felt_until for fault in on(client.path, self.faults.injected.values()) if fault.ended]
            stalled[client] = max([stopped, *ended])
        self._until(
            lambda: sum(self._confirmed(client, since) for client, since in stalled.items()) == len(stalled),
            CONFIRM_STALLS * self.limits.stall + max(stalled.values()) - now,
        )

    def _confirmed(self, client: _Client, stopped: float) -> bool:
        """Whether a stalled client has been watched to the end: still for a stall limit without flood, or finished."""
        assert client.stall is not None
        assert client.last_moved is not None
        noticed = client.stall.noticed
        if client.last_moved.time > noticed.time and self._stalled(client):
            noticed = client.latest
            self._say("stalled again", {"client": client.plan.name})
            client.stall = replace(client.stall, last_moved=client.last_moved, noticed=noticed)
        client.stall = replace(client.stall, flood_stopped=stopped, after=client.latest)
        still = client.last_moved.time <= noticed.time
        return client.ended or (still and client.latest.time >= max(stopped, noticed.time) + self.limits.stall)

    def _canaries(self, count: Callable[[ClientPlan], int]) -> list[Canary]:
        """Send every client `count` datagrams, and wait until all have been read or no more come."""
        self._until(lambda: all(client.samples for client in self.clients), CANARY_TIMEOUT_S)
        watches = [_CanaryWatch(client, count(client.plan), self.clock.now()) for client in self.clients]
        for watch in watches:
            watch.client.canary.send(SendCanary(watch.sent, CANARY_SECONDS))
        while not all(watch.over(self.clock.now()) for watch in watches):
            self._tick()
        return [Canary(watch.sent, watch.received) for watch in watches]

    def _finish(self) -> None:
        for client in self.clients:
            client.host.send(Shutdown())
        self._until(lambda: all(client.report is not None for client in self.clients), FINISH_TIMEOUT_S)
        for link in self.links.values():
            link.send(Shutdown())
        self._until(lambda: len(self._link_reports) == len(self.links), FINISH_TIMEOUT_S)

    def _until(self, done: Callable[[], bool], seconds: float) -> bool:
        deadline = self.clock.now() + seconds
        while not done():
            if self.clock.now() > deadline:
                return False
            self._tick()
        return True

    def _tick(self) -> None:
        """Let a moment pass, and hand on what was said."""
        self.faults.carry_out(self.clock.now(), self._by_name)
        self.clock.tick(self.faults.wait(self.clock.now()))
        for host in self.hosts:
            for message in host.messages():
                self._take(host, message)

    def _take(self, host: Host, message: Message) -> None:
        if isinstance(message, Failed):
            raise LabError(f"{host.name}: {message.message}")
        handler = self._handlers.get(host)
        if handler is not None:
            handler(message)
        if isinstance(message, Sample):
            self.observer.sample(message)
        elif isinstance(message, Event):
            self.faults.heard(message)
            self.observer.event(message)

    def _from_client(self, client: _Client, message: Message) -> None:
        if isinstance(message, Sample):
            client.observe(message)
        elif isinstance(message, Event):
            if message.name == "corrupt_page":
                client.corrupt_pages.setdefault(message.fields["task"], []).append(message.fields["page"])
            if message.name == "swapping":
                client.swaps_since = message.time
            client.ended |= message.name == "workload_ended"
        elif isinstance(message, Finished):
            client.report = message.report

    def _from_link(self, name: str, message: Message) -> None:
        if isinstance(message, Finished):
            self._link_reports[name] = message.report

    def _from_flood(self, flood: _Flood, message: Message) -> None:
        if isinstance(message, Event) and message.name == "flood_stopped":
            flood.stopped = message.time
            flood.sent, flood.pps = message.fields["sent"], message.fields["pps"]
            flood.each, flood.each_stream = message.fields["each"], message.fields["streams"]

    def _say(self, name: str, fields: dict[str, Any]) -> None:
        self.observer.event(Event("runner", self.clock.now(), name, fields))

    def flood_totals(self) -> tuple[int, float]:
        """Frames that all floods sent, and their rates added up."""
        return sum(flood.sent for flood in self.floods), sum(flood.pps for flood in self.floods)

    def record(self, elapsed_s: float) -> RunRecord:
        """The evidence, after `elapsed_s` seconds from start to end."""
        return RunRecord(self.evidence(), *self.flood_totals(), elapsed_s)

    def evidence(self) -> RunEvidence:
        """All that was seen."""
        return RunEvidence(
            clients=[self._client_evidence(client) for client in self.clients],
            patches=self.patches,
            stall_limit=self.limits.stall,
            time_limit=self.limits.time,
            out_of_time=self.out_of_time,
            workload_started=self.workload_started,
            faults=list(self.faults.injected.values()),
            links={name: self._link_reports.get(name, {}) for name in self.links},
        )

    def _client_evidence(self, client: _Client) -> ClientEvidence:
        sent = list(self._sent_to(client.plan.name))
        return ClientEvidence(
            name=client.plan.name,
            ring=client.plan.ring,
            acting=acting([client.plan], self.plan.schedule),
            report=client.report,
            samples=client.samples,
            canary_before=client.canary_before,
            canary_after=client.canary_after,
            stall=client.stall,
            path=client.path,
            sources=frozenset(flood.plan.name for flood in self.floods if client.plan.name in flood.plan.targets),
            corrupt_pages={task: ranges(pages) for task, pages in client.corrupt_pages.items()},
            flood_asked=any(client.plan.name in flood.plan.targets for flood in self.floods),
            flood_sent=sum(sent) if sent else None,
            host=client.plan.host,
        )

    def _sent_to(self, name: str) -> Iterator[int]:
        for flood in self.floods:
            for plan, each in zip(flood.plan.floods, flood.each, strict=False):
                if plan.target.host == name:
                    yield each["sent"]
            for stream, each in zip(flood.plan.streams, flood.each_stream, strict=False):
                if stream.target.host == name:
                    yield each["segments"]
