"""Faults of a kernel host that happen inside its guest, or to the process that it is.

The guest is told what to do, and answers when it is done; one that hangs may never. What was set last decides
min_free_kbytes, memory is taken by a process that locks it, readers are stopped by a signal. To pause the guest is to
stop its kernel's process: its tasks get no further than their next system call, fault or interrupt.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from testbed.hosts.kernel.guest import FAILED, Guest
from testbed.hosts.kernel.records import Record
from testbed.hosts.messages import SetFault
from testbed.hosts.plan import ClientPlan
from testbed.lab.errors import LabError
from testbed.mm.watermarks import PAGE_SIZE

PAUSE = "pause"


class GuestFaults:
    """The faults of one guest. `event` is how the runner hears of them, and of what they did."""

    def __init__(self, plan: ClientPlan, guest: Guest, event: Callable[[str, dict[str, Any]], None]) -> None:
        self._plan = plan
        self._guest = guest
        self._event = event
        self._acting: dict[int, SetFault] = {}
        self._paused: dict[int, float] = {}

    def set(self, fault: SetFault) -> None:
        """Let a fault act from now on. Raises LabError for one that a kernel client cannot have."""
        if fault.kind != PAUSE and fault.kind not in _LINES:
            raise LabError(f"a kernel client cannot have the fault {fault.kind}")
        self._acting[fault.number] = fault
        if fault.kind == PAUSE:
            self._pause(fault.number)
        else:
            self._tell("fault_set", fault, _LINES[fault.kind](self, fault, True))

    def clear(self, number: int) -> None:
        """End a fault."""
        fault = self._acting.pop(number, None)
        if number in self._paused:
            self._resume(number)
        elif fault is not None:
            self._tell("fault_cleared", fault, _LINES[fault.kind](self, fault, False))

    def close(self) -> None:
        """Let a guest that is paused go on, so that it can come to its end."""
        while self._paused:
            self.clear(next(iter(self._paused)))

    def _pause(self, number: int) -> None:
        self._paused[number] = time.monotonic()
        self._event("fault_set", {"number": number} | self._signal(signal.SIGSTOP))

    def _resume(self, number: int) -> None:
        seconds = round(time.monotonic() - self._paused.pop(number), 3)
        if not self._paused:
            self._signal(signal.SIGCONT)
        self._event("fault_cleared", {"number": number, "seconds": seconds})

    def _signal(self, number: signal.Signals) -> dict[str, Any]:
        try:
            os.kill(self._guest.uml.pid, number)
        except (LabError, ProcessLookupError):
            return {"failed": "the guest has ended"}
        return {"pid": self._guest.uml.pid}

    def _tell(self, name: str, fault: SetFault, lines: Sequence[str]) -> None:
        """Have the guest carry out these lines; the runner hears of it when the last is answered."""
        answers: list[Record] = []

        def answered(answer: Record) -> None:
            answers.append(answer)
            if len(answers) == len(lines):
                self._event(name, {"number": fault.number} | _told(fault.kind, answers))

        try:
            for line in lines:
                self._guest.tell(line, answered)
        except LabError as error:
            self._event(name, {"number": fault.number, "failed": str(error)})

    def _memory_taken(self, fault: SetFault, begins: bool) -> list[str]:
        pages = fault.arguments["bytes"] // PAGE_SIZE
        return [f"inflate {fault.number} {pages}" if begins else f"deflate {fault.number}"]

    def _min_free_kbytes(self, _fault: SetFault, _begins: bool) -> list[str]:
        wanted = [number for number, each in self._acting.items() if each.kind == "min_free_kbytes"]
        kbytes = self._acting[max(wanted)].arguments["kbytes"] if wanted else self._plan.min_free_kbytes
        return [f"sysctl vm/min_free_kbytes {kbytes}"]

    def _stop_reading(self, fault: SetFault, begins: bool) -> list[str]:
        port = fault.arguments.get("port")
        read = [each.port for each in self._plan.bystanders if each.reader != "never"]
        return [f"{'stop_reading' if begins else 'read_again'} {each}" for each in read if port in (None, each)]


def _told(kind: str, answers: Sequence[Record]) -> dict[str, Any]:
    """What a fault did, from the guest's answers to its lines."""
    if failed := [answer.text for answer in answers if answer.name == FAILED]:
        return {"failed": failed[0]}
    if kind == "stop_reading":
        return {"sockets": len(answers)}
    if kind == "memory_taken" and answers[0].text:
        pages, killed = map(int, answers[0].text.split())
        return {"pages": pages} | ({"killed_for_memory": True} if killed else {})
    return {}


_LINES: dict[str, Callable[[GuestFaults, SetFault, bool], list[str]]] = {
    "memory_taken": GuestFaults._memory_taken,
    "min_free_kbytes": GuestFaults._min_free_kbytes,
    "stop_reading": GuestFaults._stop_reading,
}
"""What the guest is told when a fault of this kind begins, or ends."""
