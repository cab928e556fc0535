"""What the series costs where it has nothing to do: the letter's benchmarks without memory pressure, in the model.

Each workload runs without the series, with it, and with it and a SOCK_MEMALLOC socket, on a new host every time. The
three follow each other in each round, so that what disturbs the machine disturbs all of them: a case is compared with
the vanilla run of its own round. A difference counts when the median ratio is farther from 1 than the rounds' ratios
are spread, which is their interquartile range.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Iterator

import msgspec

from testbed.patches import Switches
from testbed.workloads.hackbench import Hackbench, Pipe, UnixSocket
from testbed.workloads.host import Host, Workload
from testbed.workloads.iozone import Iozone
from testbed.workloads.netperf import TcpStream, UdpStream
from testbed.workloads.sysbench import Sysbench

HOST_PAGES = 4096
"""16 MiB of RAM."""
OPERATIONS: dict[str, int] = {
    "hackbench, pipes": 160_000,
    "hackbench, sockets": 16_000,
    "netperf UDP_STREAM": 16_000,
    "netperf TCP_STREAM": 3_000,
    "iozone": 16_000,
    "sysbench faults": 24_000,
}
"""Operations of each workload in a round."""
WORKLOADS: dict[str, Callable[[Host], Workload]] = {
    "hackbench, pipes": lambda host: Hackbench(host, Pipe),
    "hackbench, sockets": lambda host: Hackbench(host, UnixSocket),
    "netperf UDP_STREAM": UdpStream,
    "netperf TCP_STREAM": TcpStream,
    "iozone": Iozone,
    "sysbench faults": Sysbench,
}
VANILLA = "vanilla"
CASES: dict[str, Callable[[], Host]] = {
    VANILLA: lambda: Host(Switches.of(()), HOST_PAGES),
    "series": lambda: Host(Switches(), HOST_PAGES),
    "series, memalloc socket": lambda: Host(Switches(), HOST_PAGES, memalloc=True),
}


class Row(msgspec.Struct, frozen=True):
    """One workload in one case: operations per CPU second (median), the median of the rounds' ratios to vanilla, and
    their interquartile range."""

    workload: str
    case: str
    per_cpu_s: float
    ratio: float
    spread: float

    @property
    def differs(self) -> bool:
        """Whether the difference from vanilla exceeds the spread."""
        return abs(self.ratio - 1) > self.spread


def compare(rounds: int, share: float = 1.0) -> Iterator[Row]:
    """Measure every workload in `rounds` rounds (at least 2) with that share of its operations."""
    for workload, operations in OPERATIONS.items():
        rates: dict[str, list[float]] = {case: [] for case in CASES}
        for number in range(rounds):
            for case in _rotated(list(CASES), number):
                rates[case].append(measure(workload, case, max(1, int(operations * share))))
        yield from evaluate(workload, rates)


def _rotated(names: list[str], by: int) -> list[str]:
    """Every case is first, second and third as often as the others."""
    by %= len(names)
    return names[by:] + names[:by]


def measure(workload: str, case: str, operations: int) -> float:
    """Operations per CPU second, on a new host. Raises RuntimeError when not every page has come back."""
    host = CASES[case]()
    work = WORKLOADS[workload](host)
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        done = asyncio.run(work.run(operations))
        seconds = time.process_time() - started
    finally:
        gc.enable()
    if leaked := host.node.pages_leaked():
        raise RuntimeError(f"{workload}, {case}: {leaked} pages were not given back")
    return done / seconds


def evaluate(workload: str, rates: dict[str, list[float]]) -> Iterator[Row]:
    """A row for each case, from the rates of its rounds."""
    for case, measured in rates.items():
        ratios = [rate / vanilla for rate, vanilla in zip(measured, rates[VANILLA], strict=True)]
        first, _, third = statistics.quantiles(ratios, n=4)
        yield Row(workload, case, statistics.median(measured), statistics.median(ratios), third - first)
