"""A schedule of faults as plain data: what happens when, to whom, with which numbers.

A `Step` either sets a fault or clears one that an earlier step has set; both bear the fault's number. Steps come in
order of time, and those of the same moment in the order in which they were declared. Two runs with the same steps are
told the same things in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Layer = Literal["link", "storage", "process", "memory"]
Action = Literal["set", "clear"]
SEED_BITS = 31


class BadSchedule(ValueError):
    """A schedule that cannot be carried out; the message is one line for people."""


@dataclass(frozen=True, slots=True)
class Step:
    """One moment of a schedule, `time` seconds after the schedule's start, usually that of the workload.

    `target` is a host: its link, its storage, its process or its memory, as the `kind` says. `seed` is for whatever is
    random in the fault.
    """

    time: float
    action: Action
    target: str
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    seed: int = 0

    @property
    def what(self) -> tuple[str, str]:
        """Which fault of which host."""
        return self.target, self.kind


Schedule = tuple[Step, ...]


def numbered(steps: Iterable[Step]) -> Schedule:
    """The steps in order, each fault with a number from 1. A clear ends every fault of its kind that the target has.

    Raises BadSchedule for a clear of what is not set.
    """
    found: list[Step] = []
    active: dict[tuple[str, str], list[Step]] = {}
    number = 0
    for step in sorted(steps, key=lambda step: step.time):
        if step.action == "set":
            number += 1
            made = replace(step, number=number)
            active.setdefault(step.what, []).append(made)
            found.append(made)
            continue
        ended = active.pop(step.what, [])
        if not ended:
            raise _nothing_to_clear(step)
        found += [replace(each, time=step.time, action="clear") for each in ended]
    return tuple(found)


def check_clears(schedule: Schedule) -> None:
    """Raises BadSchedule if a step clears a fault that is not set then."""
    active: set[tuple[int, tuple[str, str]]] = set()
    for step in schedule:
        fault = (step.number, step.what)
        if step.action == "set":
            active.add(fault)
        elif fault not in active:
            raise _nothing_to_clear(step)
        else:
            active.remove(fault)


def _nothing_to_clear(step: Step) -> BadSchedule:
    return BadSchedule(f"at {step.time:g} s: {step.target} has no {step.kind} that could be cleared")


def seeded(schedule: Schedule, seed: int) -> Schedule:
    """The schedule with a seed for each fault that has none, drawn from the run's."""
    return tuple(step if step.seed else replace(step, seed=_fault_seed(seed, step.number)) for step in schedule)


def _fault_seed(seed: int, number: int) -> int:
    return random.Random(f"fault {number} of a run with seed {seed}").getrandbits(SEED_BITS) or 1


def end_of(schedule: Sequence[Step], number: int) -> float | None:
    """When fault `number` is to be cleared; None if never."""
    return next((step.time for step in schedule if (step.number, step.action) == (number, "clear")), None)
