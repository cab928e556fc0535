"""Known differences between the model and a real kernel: what the kernel does, and why the model does not.

Each was found in measurements; what is not here is not understood, and is reported so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.experiment.compare.moments import by_chance
from testbed.experiment.compare.runs import Host, Run

FEW = 0.01
"""So small a share of a flood's frames comes to sit in the reserve, or does not, by chance."""


@dataclass(frozen=True, slots=True)
class Known:
    """Why `host` counts `less` of `counter` than a reference, or more, in cells whose arguments it `holds` for."""

    counter: str
    host: Host
    reference: Host
    less: bool
    holds: Callable[[Mapping[str, Any]], bool]
    why: str


def _is_of_the_grid(arguments: Mapping[str, Any]) -> bool:
    """There the server is as slow as a disk, and min_free_kbytes is raised for a moment again and again."""
    return "min_free" in arguments


KSWAPD_FIRST = (
    "when min_free_kbytes is raised, a real kswapd shares the processor with tasks and packets, which find the reserve "
    "not yet filled; the model's has freed what it can, in pages that are clean, before any of them looks"
)
KNOWN: tuple[Known, ...] = (
    Known(
        "allocstall",
        "emulated",
        "kernel",
        True,
        _is_of_the_grid,
        "while most pages are under writeback, a real reclaimer tries again and again (pgscan_direct in millions); "
        "the model's sleeps after each try until a page has been freed or written, since nothing else can have changed",
    ),
    Known(
        "allocstall",
        "emulated",
        "kernel",
        False,
        _is_of_the_grid,
        "User Mode Linux touches fewer pages a second than the server takes, so that its kswapd mostly keeps up alone; "
        "the model touches more, and tasks reclaim themselves while kswapd waits for a request",
    ),
    Known("pgscan_direct_throttle", "emulated", "kernel", True, _is_of_the_grid, KSWAPD_FIRST),
    Known("PFMemallocDrop", "emulated", "kernel", True, _is_of_the_grid, KSWAPD_FIRST),
)


def explain(
    counter: str,
    host: Host,
    reference: Host,
    arguments: Mapping[str, Any],
    *,
    less: bool,
    known: Sequence[Known] = KNOWN,
) -> str | None:
    """Why the host counts `less` than the reference, or more, if that is known."""
    for each in known:
        difference = each.counter, each.host, each.reference, each.less
        if difference == (counter, host, reference, less) and each.holds(arguments):
            return each.why
    return None


def few_moments(ratio: float | None, ours: float | None, theirs: float | None) -> str | None:
    """Why counts differ by `ratio` that come from so many moments (None: not known), if chance is enough for that."""
    if ours is None or theirs is None or not by_chance(ratio, ours, theirs):
        return None
    return f"no more than chance: as if it came from {ours:.0f} moments of one size here, and {theirs:.0f} there"


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
