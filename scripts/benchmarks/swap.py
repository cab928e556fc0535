"""The whole swap client at work: pages each way per second of the workload, every page's contents checked.

A machine with 64 MiB of memory swaps over NBD through the emulated NIC while 16 tasks write 256 MiB and read them all
back three times. The swap area is small enough to count as full, so slots are freed as soon as their page is back and
pages move in both directions all the time. The send buffer is the largest that such a machine allows.
Run by itself as root, with PYTHONPATH at the top of the project: `python -m scripts.benchmarks.swap [repetitions]`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from typing import Any

from scripts.benchmarks.lab import Row, row
from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.coordinator import Limits
from testbed.experiment.plan import Overrides, resolve
from testbed.experiment.run import execute
from testbed.experiment.verdict import judge
from testbed.hosts.messages import Event, Sample
from testbed.lab.errors import LabError
from testbed.patches import PATCHES

LIMITS = Limits(time=120, stall=10)


def topology() -> Topology:
    """One client that swaps, its server, and a neighbour that only sends canaries."""
    machine = Topology("swap_benchmark")
    server = machine.add(NbdServer("server"))
    client = machine.add(SwapClient("client", memory="64M", swap=server, gso=True, send_buffer="512K"))
    machine.connect(server, client, machine.add(Neighbour("neighbour")))
    machine.workload(client, LinearTouch(processes=16, total="256M", passes=3))
    return machine


class Stopwatch:
    """An observer that notes when the workload began and ended."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def sample(self, sample: Sample) -> None:
        pass

    def event(self, event: Event) -> None:
        self.times[event.name] = event.time

    @property
    def seconds(self) -> float:
        return self.times["workload_ended"] - self.times["workload_started"]


def rows(repetitions: int = 5) -> list[Row]:
    """Pages each way per second."""
    runs = [_run() for _ in range(repetitions)]
    each = [min(run["in"], run["out"]) / run["seconds"] for run in runs]
    last = runs[-1]
    detail = (
        "64M of memory, 256M written once and read 3 times by 16 tasks, contents checked: "
        f"in the last run {last['in']:.0f} pages in and "
        f"{last['out']:.0f} out in {last['seconds']:.2f} s; median of {repetitions}"
    )
    return [row("swap_pages_per_s", statistics.median(each), "pages/s each way", detail)]


def _run() -> dict[str, float]:
    watch = Stopwatch()
    record = execute(resolve(topology(), Overrides()), frozenset(PATCHES), 1, LIMITS, watch)
    verdict = judge(record.evidence)
    report: Mapping[str, Any] | None = record.evidence.clients[0].report
    counters = report["counters"] if report else {}
    if not counters or counters["corrupt"] or counters["finished_tasks"] != 16:
        raise LabError(f"the swap client did not finish its workload: {verdict.outcome}")
    return {"in": counters["pswpin"], "out": counters["pswpout"], "seconds": watch.seconds}


if __name__ == "__main__":
    for line in rows(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(json.dumps(line))
