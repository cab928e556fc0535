"""Runs of the same conditions on several hosts: what they are called, and what a comparison keeps of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from testbed.experiment.ablation.rows import GAUGES
from testbed.experiment.arguments import RunOptions
from testbed.experiment.compare.moments import moments_of_run
from testbed.experiment.execution import Job, on_real_sockets, on_virtual_time
from testbed.experiment.result import Outcome, Result
from testbed.experiment.topology import Topology
from testbed.hosts.plan import ClientHost

Host = Literal["kernel", "emulated", "simulated"]
"""What can be compared: a real kernel, the model on real sockets, and the same model on virtual time."""
HOSTS: tuple[Host, ...] = get_args(Host)
"""The most real one first: the others are held against it."""


class Key(NamedTuple):
    """A run: of which cell, on which host, and the how manieth."""

    cell: str
    host: Host
    repetition: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run, and what a comparison needs of it. `seconds` is how long the workload took, None if it did not end;
    `evidence` is what the check of progress saw, `failed` are the names of the checks that did not hold, and `moments`
    from how many each bursty counter comes (moments.py)."""

    cell: str
    host: Host
    repetition: int
    seed: int
    outcome: Outcome
    seconds: float | None
    evidence: str
    counters: dict[str, int]
    directory: str
    failed: tuple[str, ...] = ()
    moments: dict[str, float] = {}

    @property
    def key(self) -> Key:
        """What it is called."""
        return Key(self.cell, self.host, self.repetition)

    @property
    def completed(self) -> bool:
        """Whether it came to the end of its work without a stall, whatever other checks found."""
        return self.outcome == "pass" or (self.outcome == "fail" and "progress" not in self.failed)


@dataclass(frozen=True, slots=True)
class Cell:
    """Conditions to compare hosts under; `options` holds for all of its runs but for host, seed and directory."""

    name: str
    topology: Topology
    options: RunOptions
    arguments: Mapping[str, Any]

    def job(self, host: Host, seed: int, out: Path) -> Job:
        """One run of it."""
        kind: ClientHost = "kernel" if host == "kernel" else "emulated"
        overrides = replace(self.options.overrides, host=kind)
        options = replace(self.options, overrides=overrides, seed=seed, out=out)
        return on_virtual_time if host == "simulated" else on_real_sockets, self.topology, options


def run(key: Key, seed: int, result: Result) -> Run:
    """What is kept of a result. Gauges are left out: what they show at the end of a run is chance."""
    progress = next((check.evidence for check in result.checks if check.name == "progress"), "")
    counters = {name: value for name, value in result.counters.items() if name not in GAUGES}
    return Run(
        cell=key.cell,
        host=key.host,
        repetition=key.repetition,
        seed=seed,
        outcome=result.outcome,
        seconds=result.workload.seconds or None,
        evidence=result.error or progress,
        counters=counters | {"reserve_min_free": result.memory.reserve_min_free},
        directory=result.directory,
        failed=tuple(check.name for check in result.checks if check.ok is False),
        moments=moments_of_run(Path(result.directory)),
    )
