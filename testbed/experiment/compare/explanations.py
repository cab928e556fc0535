"""Known differences between the model and a real kernel: what the kernel does, and why the model does not.

Each was found in measurements; what is not here is not understood, and is reported so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.experiment.compare.runs import Host, Run

FEW = 0.01
"""So small a share of a flood's frames comes to sit in the reserve, or does not, by chance."""


@dataclass(frozen=True, slots=True)
class Known:
    """A difference in `what` (a counter, or "outcome") between a model's host and a reference, in cells whose
    arguments it `holds` for."""

    what: str
    host: Host
    reference: Host
    holds: Callable[[Mapping[str, Any]], bool]
    why: str


KNOWN: tuple[Known, ...] = ()


def explain(
    what: str, host: Host, reference: Host, arguments: Mapping[str, Any], known: Sequence[Known] = KNOWN
) -> str | None:
    """Why this difference is there, if that is known."""
    for each in known:
        if (each.what, each.host, each.reference) == (what, host, reference) and each.holds(arguments):
            return each.why
    return None


def drops_by_chance(runs: Sequence[Run]) -> str | None:
    """Why hosts that all did their work, and lost nothing, differ in whether the flood had a frame dropped for its
    memory; None if that is not how they differ, or not known to be, or if it was no small matter.
    """
    if any(run.outcome != "pass" and run.failed != ("drops happen",) for run in runs):
        return None
    dropped = [run.counters["PFMemallocDrop"] for run in runs]
    frames = [run.counters["InDatagrams"] + run.counters["RcvbufErrors"] for run in runs]
    if any(count > FEW * of for count, of in zip(dropped, frames, strict=True)):
        return None
    return f"all came through; the flood hardly reached the reserve (PFMemallocDrop {min(dropped)} to {max(dropped)})"
