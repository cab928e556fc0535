"""What was seen of a run, before anybody judges it.

Three independent witnesses: the client's own account (`report` and `samples`), the real kernel's interface and socket
counters that the report carries beside it, and the runner (canaries, floods, stalls). `number` is how a check reads
the report: what is missing or not a count raises `Missing`, and a check that raised it has failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.experiment.faults.injected import Injected
from testbed.hosts.plan import ClientHost

PROGRESS_COUNTERS = ("swap_completions", "pgsteal_kswapd", "pgsteal_direct", "touches")
"""A client that moves at all moves one of these: NBD replies to swap requests, pages reclaim has freed, pages its
tasks have touched."""


class Missing(Exception):
    """Evidence that should be there and is not; the message names it."""


@dataclass(frozen=True, slots=True)
class Observation:
    """All counters and gauges of one client at `time` (CLOCK_MONOTONIC seconds)."""

    time: float
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Canary:
    """Unrelated datagrams: how many were sent, and how many the client's real socket returned."""

    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class Stall:
    """A client that stopped, at three moments: when it last moved, when that was noticed, and after it had been given
    as long again with no flood.

    `flood_stopped` is when the last flood ended (CLOCK_MONOTONIC seconds), or the moment of notice if none was running.
    A client that moved a little when the flood ended and then stopped once more may be given by its second stop, which
    began without any flood. `scarce` is the number of free pages above which no request for memory has to wait.
    All faults have been cleared by then, too, and `flood_stopped` is when TCP can no longer have waited for them.
    """

    last_moved: Observation
    noticed: Observation
    flood_stopped: float
    after: Observation
    scarce: int


@dataclass(frozen=True, slots=True)
class ClientEvidence:
    """What was seen of one client; None for what was not seen.

    `ring` is its number of receive descriptors, `acting` the patches that can act on it, `host` what it is. `path` are
    the hosts that its swap depends on, `sources` those that flood it; `corrupt_pages` are the pages of each task that
    were wrong.
    """

    name: str
    ring: int
    acting: frozenset[int]
    report: Mapping[str, Any] | None = None
    samples: Sequence[Observation] = ()
    canary_before: Canary | None = None
    canary_after: Canary | None = None
    stall: Stall | None = None
    flood_asked: bool = False
    flood_sent: int | None = None
    path: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    corrupt_pages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    host: ClientHost = "emulated"


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """What was seen of a run. `patches` are the numbers that were on, limits are in seconds, `workload_started` is
    in CLOCK_MONOTONIC seconds, `error` is what kept the rig itself from going on, `links` are the accounts of those
    who passed frames on, by the host whose link it is, and `faults` are those that were injected."""

    clients: Sequence[ClientEvidence]
    patches: frozenset[int]
    stall_limit: float
    time_limit: float
    out_of_time: bool = False
    workload_started: float | None = None
    error: str | None = None
    links: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    faults: Sequence[Injected] = ()


def section(data: Mapping[str, Any] | None, *path: str) -> Mapping[str, Any]:
    """The mapping at `path` of a report. Raises Missing."""
    here: Any = data
    if here is None:
        raise Missing("the client's report")
    for depth, key in enumerate(path, start=1):
        if not isinstance(here, Mapping) or key not in here:
            raise Missing(f"{'.'.join(path[:depth])} in the client's report")
        here = here[key]
    if not isinstance(here, Mapping):
        raise Missing(f"{'.'.join(path)} in the client's report")
    return here


def number(data: Mapping[str, Any] | None, *path: str) -> int:
    """The count at `path` of a report: a whole number from 0. Raises Missing."""
    value = section(data, *path[:-1]).get(path[-1])
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Missing(f"{'.'.join(path)} in the client's report")
    return value


def seconds(data: Mapping[str, Any] | None, *path: str) -> float:
    """The duration at `path` of a report, from 0. Raises Missing."""
    value = section(data, *path[:-1]).get(path[-1])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise Missing(f"{'.'.join(path)} in the client's report")
    return float(value)


def gauge(observation: Observation, name: str) -> int:
    """One counter of an observation. Raises Missing."""
    if name not in observation.counters:
        raise Missing(f"{name} in a sample")
    return observation.counters[name]


def moved(earlier: Observation, later: Observation) -> dict[str, int]:
    """By how much each progress counter changed, leaving out those that did not. Raises Missing."""
    changes = {name: gauge(later, name) - gauge(earlier, name) for name in PROGRESS_COUNTERS}
    return {name: change for name, change in changes.items() if change}
