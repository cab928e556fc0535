"""Known differences between the model and a real kernel: what the kernel does, and why the model does not.

Each was found in measurements; what is not here is not understood, and is reported so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.experiment.compare.runs import Host


@dataclass(frozen=True, slots=True)
class Known:
    """A difference in `what` (a counter, or "outcome") between a model's host and a reference, in cells whose
    arguments it `holds` for."""

    what: str
    host: Host
    reference: Host
    holds: Callable[[Mapping[str, Any]], bool]
    why: str


JUMBO = 9000
WEAK_FLOOD = 2000


def _order_2_buffers(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments.get("patched")) and arguments.get("flood_size") == JUMBO


def _weak_flood(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments.get("patched")) and 0 < arguments.get("flood", 0) <= WEAK_FLOOD


KNOWN: tuple[Known, ...] = (
    Known(
        "outcome",
        "emulated",
        "kernel",
        _order_2_buffers,
        "a frame of 9,000 bytes takes four pages in a row in User Mode Linux's driver, and the kernel's free memory is "
        "in smaller pieces than the model's: on its console 1,783 pages were free, none of them in such a block, and "
        "no frame came in any more",
    ),
    Known(
        "outcome",
        "emulated",
        "kernel",
        _weak_flood,
        "both survive, but under so weak a flood only the kernel has frames in its reserve, fewer than twenty: each "
        "of its writes takes longer, so its free memory is below min for longer",
    ),
)


def explain(
    what: str, host: Host, reference: Host, arguments: Mapping[str, Any], known: Sequence[Known] = KNOWN
) -> str | None:
    """Why this difference is there, if that is known."""
    for each in known:
        if (each.what, each.host, each.reference) == (what, host, reference) and each.holds(arguments):
            return each.why
    return None
