"""Hosts that do as a test wants, on a clock that only ticks when it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from testbed.experiment.coordinator import Coordinator, Limits, RunRecord
from testbed.experiment.plan import Plan
from testbed.hosts.messages import (
    ClearFault,
    Command,
    Event,
    Finished,
    Message,
    Sample,
    SendCanary,
    SetFault,
    Shutdown,
    StartWorkload,
    StopFlood,
)
from testbed.lab.fault_relay import relay_name
from testbed.patches import ALWAYS_ACTING
from tests.experiment import witness

TICK_S = 0.1
WORK_S = 12.0
"""Seconds that the workload of a client takes if nothing stops it."""


class FakeClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def tick(self, most: float) -> None:
        self.time += min(TICK_S, most)


class FakeHost:
    """Takes faults, answers them, and remembers the commands with their times; `moving` is for a client to ask."""

    def __init__(self, name: str, clock: FakeClock) -> None:
        self.name = name
        self.commands: list[tuple[float, Command]] = []
        self.active: dict[int, str] = {}
        self._clock = clock
        self._said: list[Message] = []

    def send(self, command: Command) -> bool:
        self.commands.append((self._clock.now(), command))
        if isinstance(command, SetFault):
            self.active[command.number] = command.kind
            self.event("fault_set", number=command.number)
        elif isinstance(command, ClearFault):
            del self.active[command.number]
            self.event("fault_cleared", number=command.number, frames_lost=7)
        elif isinstance(command, StopFlood):
            self.event("flood_stopped", sent=20000, pps=5000.0, each=[{"sent": 20000}], streams=[])
        elif isinstance(command, Shutdown):
            self._said.append(Finished(self.name, self.report()))
        return True

    def report(self) -> dict[str, object]:
        return {}

    def event(self, name: str, **fields: object) -> None:
        self._said.append(Event(self.name, self._clock.now(), name, fields))

    def messages(self) -> list[Message]:
        said, self._said = self._said, []
        return said


class FakeClient(FakeHost):
    """Works for `WORK_S` seconds in all, but only while `moving` says so, and swaps after `swaps_after` of them."""

    def __init__(self, name: str, clock: FakeClock, moving: Callable[[], bool]) -> None:
        super().__init__(name, clock)
        self.canaries = 0
        self.swaps_after = 0.0
        self._moving = moving
        self._work = 0.0
        self._before = clock.now()
        self._started = False

    def send(self, command: Command) -> bool:
        if isinstance(command, StartWorkload):
            self._started = True
        return super().send(command)

    def _swaps(self) -> bool:
        return self._started and self._work > self.swaps_after

    def report(self) -> dict[str, object]:
        return witness.report()

    def messages(self) -> list[Message]:
        now = self._clock.now()
        ended, swaps = self._work >= WORK_S, self._swaps()
        if self._started and self._moving():
            self._work += now - self._before
        self._before = now
        if self._swaps() and not swaps:
            self.event("swapping")
        done = min(100, round(10 * self._work))
        counters = witness.counters(
            swap_completions=done,
            touches=done,
            tasks_waiting=int(self._started and self._work < WORK_S),
            canary_received=self.canaries,
        )
        if not ended and self._work >= WORK_S:
            self.event("workload_ended")
        return [*super().messages(), Sample(self.name, now, counters)]


class Stage:
    """A plan with fake hosts. `moves(stage)` decides whether the client can move at this moment."""

    def __init__(self, plan: Plan, moves: Callable[[Stage], bool], stall_limit: float = 5.0) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []
        limits = Limits(time=200.0, stall=stall_limit)
        self.coordinator = Coordinator(plan, witness.ALL_PATCHES, limits, self, self.clock)
        self.client = FakeClient("client", self.clock, lambda: moves(self))
        self.server, self.flood = FakeHost("server", self.clock), FakeHost("noise", self.clock)
        self.link = FakeHost(relay_name("client"), self.clock)
        canary = _Canary(self.client, self.clock)
        self.coordinator.add(self.server)
        self.coordinator.add_client(plan.clients[0], self.client, canary)
        for neighbour in plan.neighbours:
            for traffic in neighbour.by_start():
                self.coordinator.add_floods(traffic, self.flood)
        if plan.fault_links:
            self.coordinator.add_link("client", self.link)

    def play(self) -> RunRecord:
        """The whole run. What only a real client could account for is as in a run that passed."""
        self.coordinator.carry_out()
        record = self.coordinator.record(self.clock.now() - 1000.0)
        client = replace(record.evidence.clients[0], acting=ALWAYS_ACTING | {3})
        return replace(record, evidence=replace(record.evidence, clients=[client], links={}))

    def sample(self, sample: Sample) -> None:
        return

    def event(self, event: Event) -> None:
        self.events.append(event)

    @property
    def started(self) -> float:
        return next(time for time, command in self.client.commands if isinstance(command, StartWorkload))

    def told(self, host: FakeHost) -> list[tuple[float, str, int]]:
        """The faults that a host was told of, with the seconds since the start of the workload."""
        return [
            (round(time - self.started, 6), type(command).__name__, command.number)
            for time, command in host.commands
            if isinstance(command, SetFault | ClearFault)
        ]


class _Canary(FakeHost):
    def __init__(self, client: FakeClient, clock: FakeClock) -> None:
        super().__init__("canary", clock)
        self._client = client

    def send(self, command: Command) -> bool:
        if isinstance(command, SendCanary):
            self._client.canaries += command.count
        return True
