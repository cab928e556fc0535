"""What was injected, as evidence: which fault acted when, and what of a run it explains.

The rules by which faults have a part in the verdict:

* While a fault that no swap request can get past acts on a client or its server, the client's stall clock stands
  still, if the schedule ends that fault. Afterwards TCP may wait as long again before it tries once more (its
  retransmission timer has doubled all the while, up to TCP_RTO_MAX), so the clock starts that much later, or as soon
  as the client moves.
* A fault that the schedule never ends stops no clock. The stall comes, everything is cleared, and the client is
  watched as after a flood: if it goes on, the fault explains the stall; if not, it is judged like any other.
* Pauses are reported in full. Only what is left of them outside such faults counts against the stall limit.
* Whatever else goes wrong while faults act is a failure like any other; its evidence names them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from testbed.experiment.faults.kinds import blocks, layer_of
from testbed.experiment.faults.step import Schedule, Step
from testbed.net.tcp_timer import TCP_RTO_MAX

MOST_NAMED = 6
PHRASES = {
    "partition": "the link of {target} was partitioned",
    "kill": "{target} was killed",
    "hang": "{target} answered nothing",
    "stall": "{target} stalled",
    "pause": "{target} was paused",
    "stop_reading": "nobody read from sockets of {target}",
    "min_free_kbytes": "min_free_kbytes of {target} was {kbytes}",
    "memory_taken": "{bytes} bytes of {target} were taken",
}

Span = tuple[float, float]


@dataclass(slots=True)
class Injected:
    """A fault that was set: the step that set it, from when to when it acted (None: it never ended), what it did.

    `to_end` says that the schedule ends it, `confirmed` that its target has answered. Times are on the clock of the
    run, whose workload began at `started`.
    """

    step: Step
    started: float
    began: float
    to_end: bool
    ended: float | None = None
    confirmed: bool = False
    did: dict[str, Any] = field(default_factory=dict)

    @property
    def blocks(self) -> bool:
        """Can no swap request of its target complete while it acts?"""
        return blocks(self.step.kind, self.step.arguments)

    @property
    def over(self) -> float:
        """When it ended; never, if it did not. A stall ends by itself."""
        ended = float("inf") if self.ended is None else self.ended
        return min(ended, self.began + self.step.arguments.get("seconds", 1.0)) if self.step.kind == "stall" else ended

    @property
    def felt_until(self) -> float:
        """Until when TCP may wait because of it."""
        return self.over + min(self.over - self.began, TCP_RTO_MAX)

    def __str__(self) -> str:
        step = self.step
        default = f"{step.kind} acted on the {layer_of(step.kind)} of {{target}}"
        text = PHRASES.get(step.kind, default).format(target=step.target, **step.arguments)
        if step.arguments.get("data") == "lost":
            text += " and lost its data"
        since = self.began - self.started
        return f"{text} from {since:.1f} " + ("s on" if self.ended is None else f"to {self.ended - self.started:.1f} s")


def on(hosts: Collection[str], faults: Iterable[Injected]) -> list[Injected]:
    """Those faults that acted on one of these hosts."""
    return [fault for fault in faults if fault.step.target in hosts]


def held_until(faults: Iterable[Injected], moved: float) -> float:
    """Until when faults explain that a client which last moved at `moved` does not move; infinity while one acts."""
    return max(
        (fault.felt_until for fault in faults if fault.blocks and fault.to_end and fault.over >= moved),
        default=float("-inf"),
    )


def remarks(schedule: Schedule, faults: Sequence[Injected]) -> list[str]:
    """Lines about the faults that did not happen, or of which nobody said that they did."""
    planned = len({step.number for step in schedule})
    missing = planned - len(faults)
    lines = [f"{missing} of {planned} faults did not happen: the workload was over before"] if missing else []
    return lines + [
        f"{fault.step.target} never confirmed fault {fault.step.number} ({fault.step.kind})"
        for fault in faults
        if not fault.confirmed
    ]


def named(faults: Sequence[Injected]) -> str:
    """The faults in words, of very many only the first."""
    words = ", ".join(map(str, faults[:MOST_NAMED]))
    return f"{words} and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else words


def spans(faults: Iterable[Injected], changes: Sequence[float]) -> list[Span]:
    """When swap was held up by blocking faults, in order and without overlap; `changes` is when swap moved."""
    held = sorted((fault.began, _first_move(fault, changes)) for fault in faults if fault.blocks)
    merged: list[Span] = []
    for begin, end in held:
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def _first_move(fault: Injected, changes: Sequence[float]) -> float:
    return min(fault.felt_until, next((time for time in changes if time > fault.over), float("inf")))


def outside(time: float, held: Iterable[Span]) -> float:
    """The time on a clock that stands still during these spans."""
    return time - sum(max(0.0, min(time, end) - begin) for begin, end in held if begin < time)


def ranges(numbers: Iterable[int]) -> list[str]:
    """Whole numbers in few words: 3, 4, 5 and 9 are 3-5 and 9."""
    ordered = sorted(set(numbers))
    if not ordered:
        return []
    edges = [one for one, other in pairwise(ordered) if other != one + 1]
    lasts = [*edges, ordered[-1]]
    firsts = [ordered[0], *(other for one, other in pairwise(ordered) if other != one + 1)]
    return [f"{first}-{last}" if first != last else str(first) for first, last in zip(firsts, lasts, strict=True)]
