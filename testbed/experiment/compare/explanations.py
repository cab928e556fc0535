"""Known differences between the model and a real kernel: what the kernel does, and why the model does not.

Each was found in measurements; what is not here is not understood, and is reported so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.experiment.compare.moments import by_chance
from testbed.experiment.compare.runs import Host, Run
from testbed.experiment.kernel_checks import LARGEST_BLOCK

BLOCKS = (
    "the kernel hung for want of a block: what it had free was in blocks smaller than a receive buffer, since pages of "
    "its own, page tables and slabs among them, lie in between; the model has fewer of these, so that its blocks last"
)
FEW = 0.01
"""So small a share of a flood's frames comes to sit in the reserve, or does not, by chance."""
MANY_TIMES = 10
Medians = Mapping[str, float]
"""The medians of one host's counters, by name."""


@dataclass(frozen=True, slots=True)
class Known:
    """Why `host` counts `less` of `counter` than a reference, or more, in cells that it `holds` for: by their arguments
    and by what else both hosts counted there, the host first.
    """

    counter: str
    host: Host
    reference: Host
    less: bool
    holds: Callable[[Mapping[str, Any], Medians, Medians], bool]
    why: str


def _raises_min_free(arguments: Mapping[str, Any], _ours: Medians, _theirs: Medians) -> bool:
    """The grid's cells do, for a second again and again."""
    return "min_free" in arguments


def _retries(_arguments: Mapping[str, Any], ours: Medians, theirs: Medians) -> bool:
    """The kernel's reclaimers looked at many times as many pages."""
    scanned = [medians.get("pgscan_direct", 0.0) for medians in (ours, theirs)]
    return scanned[1] > MANY_TIMES * scanned[0] > 0


def _kswapd_does_more(_arguments: Mapping[str, Any], ours: Medians, theirs: Medians) -> bool:
    """Of the pages reclaimed the kernel's kswapd freed a larger share than the model's."""
    shares = [_kswapd_share(medians) for medians in (ours, theirs)]
    return shares[0] is not None and shares[1] is not None and shares[1] > shares[0]


def _kswapd_share(medians: Medians) -> float | None:
    kswapd, direct = medians.get("pgsteal_kswapd", 0.0), medians.get("pgsteal_direct", 0.0)
    return kswapd / (kswapd + direct) if kswapd + direct else None


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
        _retries,
        "while most pages are under writeback, a real reclaimer tries again and again (pgscan_direct in millions); "
        "the model's sleeps after each try until a page has been freed or written, since nothing else can have changed",
    ),
    Known(
        "allocstall",
        "emulated",
        "kernel",
        False,
        _kswapd_does_more,
        "User Mode Linux touches fewer pages a second than the server takes, so that its kswapd mostly keeps up alone; "
        "the model touches more, and tasks reclaim themselves while kswapd waits for a request",
    ),
    Known("pgscan_direct_throttle", "emulated", "kernel", True, _raises_min_free, KSWAPD_FIRST),
    Known("PFMemallocDrop", "emulated", "kernel", True, _raises_min_free, KSWAPD_FIRST),
)


def explain(
    counter: str,
    host: Host,
    reference: Host,
    arguments: Mapping[str, Any],
    medians: Mapping[Host, Medians],
    *,
    less: bool,
    known: Sequence[Known] = KNOWN,
) -> str | None:
    """Why the host counts `less` than the reference, or more, if that is known. `medians` are of all counters."""
    ours, theirs = medians.get(host, {}), medians.get(reference, {})
    for each in known:
        difference = each.counter, each.host, each.reference, each.less
        if difference == (counter, host, reference, less) and each.holds(arguments, ours, theirs):
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


def blocks_too_small(runs: Sequence[Run]) -> str | None:
    """Why a kernel hung that the model came through: its free memory was in blocks too small for a receive buffer.

    None unless each of its runs that hung says so, and nothing but these differs from what the model did.
    """
    hung = [run for run in runs if run.outcome == "deadlock"]
    if not hung or any(run.host != "kernel" or LARGEST_BLOCK not in run.evidence for run in hung):
        return None
    if any(run.outcome != "pass" for run in runs if run not in hung):
        return None
    return BLOCKS
