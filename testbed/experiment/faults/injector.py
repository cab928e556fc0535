"""Carries a schedule out while a run goes on, and keeps the record of what was set, when, and what it did.

It only tells hosts what the next step is: whoever runs a link, a server or a client makes it happen and answers with
an event. At the end of the workload everything that is still set is cleared, so that what comes afterwards is seen
without faults; a process that was killed stays dead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from testbed.experiment.faults.injected import Injected
from testbed.experiment.faults.kinds import layer_of
from testbed.experiment.faults.recorded import EVENT, as_plain
from testbed.experiment.faults.step import Schedule, Step, end_of
from testbed.experiment.topology import Start
from testbed.hosts.messages import ClearFault, Command, Event, SetFault
from testbed.lab.fault_relay import relay_name

ANSWERS = {"fault_set", "fault_cleared"}
NO_HURRY = 3600.0


class Target(Protocol):
    """Whoever is told of a fault."""

    def send(self, command: Command) -> bool:
        """False when it is gone."""
        ...


class Injector:
    """Takes the steps of `schedule` as they fall due, counted from `faults_start`; `say` writes to the event log."""

    def __init__(
        self, schedule: Schedule, faults_start: Start, say: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self.injected: dict[int, Injected] = {}
        self.faults_start = faults_start
        self._schedule = schedule
        self._due = deque(schedule)
        self._say = say
        self._started: float | None = None

    @property
    def started(self) -> bool:
        """Does time run?"""
        return self._started is not None

    def start(self, now: float) -> None:
        """The times of the schedule count from `now`; the whole of it goes to the event log."""
        self._started = now
        if self._schedule:
            self._say(EVENT, {"start": self.faults_start, "steps": as_plain(self._schedule)})

    def wait(self, now: float) -> float:
        """Seconds until the next step is due."""
        if self._started is None or not self._due:
            return NO_HURRY
        return max(0.0, self._started + self._due[0].time - now)

    def carry_out(self, now: float, targets: Mapping[str, Sequence[Target]]) -> None:
        """Take the steps that are due."""
        while self._due and self.wait(now) <= 0.0:
            self._take(self._due.popleft(), now, targets)

    def _take(self, step: Step, now: float, targets: Mapping[str, Sequence[Target]]) -> None:
        assert self._started is not None
        self._say("fault", {**as_plain((step,))[0], "late": round(now - self._started - step.time, 3)})
        if step.action == "clear":
            self._clear(self.injected[step.number], now, targets)
            return
        to_end = end_of(self._schedule, step.number) is not None
        self.injected[step.number] = Injected(step, self._started, now, to_end)
        for target in targets[address(step)]:
            target.send(SetFault(step.number, step.kind, dict(step.arguments), step.seed))

    def _clear(self, fault: Injected, now: float, targets: Mapping[str, Sequence[Target]]) -> None:
        if fault.ended is None:
            fault.ended = now
            for target in targets[address(fault.step)]:
                target.send(ClearFault(fault.step.number))

    def end(self, now: float, targets: Mapping[str, Sequence[Target]]) -> None:
        """Take no more steps, and clear what is set."""
        self._due.clear()
        for fault in self.injected.values():
            if fault.ended is None and fault.step.kind != "kill":
                self._say("fault", {"action": "clear", "number": fault.step.number, "why": "the workload is over"})
                self._clear(fault, now, targets)

    def heard(self, event: Event) -> None:
        """A host answers: whatever numbers it gives tell what the fault did."""
        fault = self.injected.get(event.fields.get("number", 0))
        if event.name in ANSWERS and fault is not None:
            fault.confirmed = True
            fault.did |= {name: value for name, value in event.fields.items() if name != "number"}


def address(step: Step) -> str:
    """Who is told of a step: a host, or whoever stands in its link."""
    return relay_name(step.target) if layer_of(step.kind) == "link" else step.target
