"""Faults on a simulated link: the effects of a real relay, on frames that have a size but no bytes.

While a fault acts, a group of frames is taken apart, since each frame has a fate of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from testbed.hosts.messages import ClearFault, Command, Event, Failed, Finished, Message, SetFault, Shutdown
from testbed.lab.effects.effect import AnyEffect
from testbed.lab.effects.link_faults import LinkFaults, Way, effects_of
from testbed.lab.effects.stack import Stack
from testbed.simulation.link import Frames, Link, LinkSpeed, Port


class OneFrame:
    """A group of one frame, as effects see it: something with a length."""

    __slots__ = ("group",)

    def __init__(self, group: Frames) -> None:
        self.group = group

    def __len__(self) -> int:
        return self.group.size


class FaultyLink(Link):
    """A link with a stack of effects in front of its queue: frames `offered` to it, and those that it has `queued`."""

    def __init__(self, speed: LinkSpeed, deliver: Callable[[Frames], None], stack: Stack[OneFrame]) -> None:
        super().__init__(speed, deliver)
        self.offered = 0
        self.queued = 0
        self.stack = stack
        self._timer: asyncio.TimerHandle | None = None

    def send(self, group: Frames) -> None:
        self.offered += group.frames
        if self.stack.idle:
            self.stack.passed(group.frames)
            self._queue(group)
            return
        now = self._loop.time()
        for number in range(group.frames):
            self.stack.put(OneFrame(group.one(number)), now)
        self._forward()

    def _forward(self) -> None:
        for frame in self.stack.due(self._loop.time()):
            self._queue(frame.group)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.stack.next_due
        if due is not None:
            self._timer = self._loop.call_at(due, self._forward)

    def _queue(self, group: Frames) -> None:
        self.queued += group.frames
        super().send(group)

    def counters(self) -> dict[str, Any]:
        """The account that a real relay gives; nothing comes too fast for this one."""
        return {
            "interface_packets": self.offered,
            "ring_packets": self.offered,
            "ring_drops": 0,
            "taken": self.stack.taken,
            "duplicated": self.stack.duplicated,
            "altered": self.stack.altered,
            "held": self.stack.held,
            "dropped": dict(self.stack.drops),
            "tx_packets": self.queued,
            "tx_dropped": 0,
        }


class SimulatedFaultRelay:
    """Stands in both links of a port; make it before anything is sent on them."""

    def __init__(self, name: str, port: Port, speed: LinkSpeed) -> None:
        self.name = name
        self._faults: LinkFaults[OneFrame] = LinkFaults()
        self._loop = asyncio.get_running_loop()
        self._said: list[Message] = []
        port.up = self._up = FaultyLink(speed, port.up.deliver, self._faults.stacks["from"])
        port.down = self._down = FaultyLink(speed, port.down.deliver, self._faults.stacks["to"])

    def send(self, command: Command) -> bool:
        """Obey the runner."""
        match command:
            case SetFault():
                self._set(command)
            case ClearFault(number):
                self._answer("fault_cleared", {"number": number} | self._faults.clear(number))
            case Shutdown():
                report = {"to": self._down.counters(), "from": self._up.counters()}
                self._said.append(Finished(self.name, report))
        return True

    def _set(self, fault: SetFault) -> None:
        try:
            self._faults.set(fault.number, simulated_effects(fault), self._loop.time())
        except ValueError as error:
            self._said.append(Failed(self.name, str(error)))
        else:
            self._answer("fault_set", {"number": fault.number})

    def _answer(self, name: str, fields: dict[str, int]) -> None:
        self._said.append(Event(self.name, self._loop.time(), name, fields))

    def messages(self) -> list[Message]:
        """What was said since the last call."""
        said, self._said = self._said, []
        return said


def simulated_effects(fault: SetFault) -> dict[Way, AnyEffect]:
    """The effects of a fault. Raises ValueError for one that no link can have, or that looks into frames."""
    effects = effects_of(fault.kind, fault.arguments, fault.seed)
    if any(effect.needs_bytes for effect in effects.values()):
        raise ValueError(f"the simulator's frames have no bytes, which {fault.kind} needs: run it for real")
    return effects
