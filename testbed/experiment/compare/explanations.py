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


KNOWN: tuple[Known, ...] = ()


def explain(
    what: str, host: Host, reference: Host, arguments: Mapping[str, Any], known: Sequence[Known] = KNOWN
) -> str | None:
    """Why this difference is there, if that is known."""
    for each in known:
        if (each.what, each.host, each.reference) == (what, host, reference) and each.holds(arguments):
            return each.why
    return None
