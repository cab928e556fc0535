"""Faults of processes: a host that is paused, killed and started again is one host to the coordinator throughout.

What a server keeps outlives its process if the runner holds it: in files of memory, which the server opens by the
runner's own descriptors. To lose the data is to empty those files before the server starts again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

from testbed.experiment.plan import NeighbourPlan
from testbed.hosts.messages import ClearFault, Command, Event, Message, Sample, SetFault
from testbed.hosts.plan import ServerPlan, SwapArea
from testbed.lab.process import HostProcess

StartAgain = Callable[[str], HostProcess]
"""Starts a host again, with its data "kept" or "lost", and waits until it is ready."""


class Supervised:
    """A host in a process that may be paused and killed, and started again if there is a way to.

    `last_word` makes what is to be said for a host that is killed, from the last counters it told. What a fault inside
    it had done by then is told when that fault ends; whoever starts in its place does not have it.
    """

    def __init__(
        self,
        process: HostProcess,
        start_again: StartAgain | None = None,
        last_word: Callable[[Sample | None], Message] | None = None,
    ) -> None:
        self.name = process.name
        self._process: HostProcess | None = process
        self._start_again = start_again
        self._last_word = last_word
        self._set: dict[int, tuple[SetFault, float]] = {}
        self._said: list[Message] = []
        self._sample: Sample | None = None
        self._did: dict[int, dict[str, int]] = {}

    def send(self, command: Command) -> bool:
        """Carry out faults of the process; everything else is for the host itself. False when it is gone."""
        if isinstance(command, SetFault) and command.kind in ("kill", "pause"):
            self._set[command.number] = command, time.monotonic()
            pid = self._pid()
            self._pause(signal.SIGSTOP) if command.kind == "pause" else self._kill()
            self._say("fault_set", command.number, pid)
            return True
        if isinstance(command, ClearFault) and command.number in self._set:
            fault, began = self._set.pop(command.number)
            self._pause(signal.SIGCONT) if fault.kind == "pause" else self._restart(fault.arguments.get("data", "kept"))
            away = {"seconds": round(time.monotonic() - began, 3)}
            self._say("fault_cleared", command.number, away if fault.kind == "pause" else away | self._pid("new_pid"))
            return True
        if isinstance(command, ClearFault) and self._process is None:
            self._say("fault_cleared", command.number, self._did.get(command.number, {}))
            return True
        return self._process is not None and self._process.send(command)

    def messages(self) -> list[Message]:
        """What the host has said, and what was done to it."""
        if self._process is not None:
            self._listen(self._process.messages())
        said, self._said = self._said, []
        return said

    def _listen(self, said: list[Message]) -> None:
        for message in said:
            if isinstance(message, Sample):
                self._sample = message
                self._did |= message.faults
            elif isinstance(message, Event) and message.name == "fault_cleared":
                message = replace(message, fields=self._did.get(message.fields["number"], {}) | message.fields)
            self._said.append(message)

    def _pid(self, name: str = "pid") -> dict[str, Any]:
        """The process that there is, if there is one."""
        return {} if self._process is None else {name: self._process.pid}

    def _say(self, name: str, number: int, did: Mapping[str, Any]) -> None:
        self._said.append(Event(self.name, time.monotonic(), name, {"number": number, **did}))

    def _pause(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.alive:
            os.kill(self._process.pid, number)

    def _kill(self) -> None:
        if self._process is None:
            return
        self._listen(self._process.messages())
        self._process.kill()
        self._process = None
        if self._last_word is not None:
            self._said.append(self._last_word(self._sample))

    def _restart(self, data: str) -> None:
        if self._process is None and self._start_again is not None:
            self._process = self._start_again(data)


class KeptAreas:
    """The swap areas of a server, in memory that the runner holds; use it as a context manager.

    `plan` is the server's plan with these areas as files. Areas that are files already stay where they are.
    """

    def __init__(self, plan: ServerPlan) -> None:
        self._held: dict[int, int] = {}
        self.plan = replace(plan, areas=tuple(self._kept(area) for area in plan.areas))

    def _kept(self, area: SwapArea) -> SwapArea:
        if area.file is not None:
            return area
        held = os.memfd_create(f"swap of {area.client}")
        os.ftruncate(held, area.bytes)
        self._held[held] = area.bytes
        return replace(area, file=f"/proc/self/fd/{held}")

    def lose(self) -> None:
        """Forget everything that was written."""
        for held, size in self._held.items():
            os.ftruncate(held, 0)
            os.ftruncate(held, size)

    def __enter__(self) -> KeptAreas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for held in self._held:
            os.close(held)


def flood_was_killed(plan: NeighbourPlan, sample: Sample | None) -> Event:
    """What a flood would have said when it stopped, as far as its last counters tell: by flood, in shares of rates."""
    counters = {} if sample is None else sample.counters
    sent, rates = counters.get("flood_sent", 0), [flood.pps for flood in plan.floods]
    each = [{"sent": sent * pps // max(1, sum(rates)), "lost": 0, "pps": pps} for pps in rates]
    fields = {"sent": sent, "lost": 0, "pps": counters.get("flood_pps", 0), "each": each, "streams": []}
    return Event(plan.name, time.monotonic(), "flood_stopped", fields)
