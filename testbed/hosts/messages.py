"""What a host process and the runner say to each other over their pipe.

The runner sends commands (the second half of this file); a host answers with the first half. A host says
`Ready` once it can take traffic, `Sample` about ten times a second from then on, `Event` when something
worth a line happens, and exactly one of `Finished` or `Failed` before it exits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Ready:
    """The host has its sockets open. `facts` holds what others need to know (addresses, ports, sizes)."""

    host: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """All counters and gauges at `time` (CLOCK_MONOTONIC seconds), under the kernel's names.

    `faults` is what those that act have done so far, by number: who is killed cannot say it when they end.
    """

    host: str
    time: float
    counters: dict[str, int]
    faults: dict[int, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once, at `time` (CLOCK_MONOTONIC seconds)."""

    host: str
    time: float
    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """The host has shut down in good order; `report` is its whole account of the run."""

    host: str
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """The host cannot go on; `message` is one line for people."""

    host: str
    message: str


@dataclass(frozen=True, slots=True)
class StartWorkload:
    """To a swap client: start the workload's tasks."""


@dataclass(frozen=True, slots=True)
class StartFlood:
    """To a neighbour: start injecting its floods."""


@dataclass(frozen=True, slots=True)
class StopFlood:
    """To a neighbour: stop injecting; answered by an `Event` named `flood_stopped` with `sent` and `pps`."""


@dataclass(frozen=True, slots=True)
class SendCanary:
    """To a neighbour: send `count` UDP datagrams to the client's canary port, paced over `seconds`."""

    count: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Shutdown:
    """To any host: stop, account for everything, say `Finished` and exit."""


@dataclass(frozen=True, slots=True)
class SetFault:
    """To whoever runs a link, a server or a client: let fault `number` of the schedule act from now on.

    `kind` names it and `arguments` are its numbers, as in the event log; `seed` is for whatever is random in it.
    Answered by an `Event` named `fault_set` with `number`.
    """

    number: int
    kind: str
    arguments: dict[str, Any]
    seed: int


@dataclass(frozen=True, slots=True)
class ClearFault:
    """To whoever was given fault `number`: end it; answered by an `Event` named `fault_cleared` with `number`."""

    number: int


Message = Ready | Sample | Event | Finished | Failed
Command = StartWorkload | StartFlood | StopFlood | SendCanary | SetFault | ClearFault | Shutdown
