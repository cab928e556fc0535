"""The grid: every combination of conditions that decide whether swap over the network survives, or a sample of it.

Each point is one client whose tasks touch more than its memory while a neighbour floods three sockets that nobody
reads. The server is as slow as a disk, so that hosts of either kind swap at one rate. One fills its memory in half a
second, another in five, and is noticed to swap sooner or later: so the flood comes a second after that. From then on,
min_free_kbytes is raised for a second every other second. What was above the reserve is then in it, so that frames of
every flood come to sit there: without that, whether a slow flood ever gets so far is chance, on a real kernel, too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, Literal, get_args

from testbed.experiment.arguments import RunOptions
from testbed.experiment.compare.comparison import Refused
from testbed.experiment.compare.runs import Cell
from testbed.experiment.plan import resolve
from testbed.experiment.topology import (
    Bystander,
    LinearTouch,
    NbdServer,
    Neighbour,
    SwapClient,
    Topology,
    TopologyError,
    UdpFlood,
)
from testbed.mm.watermarks import PAGE_SIZE, compute
from testbed.patches import PRESETS
from testbed.size import format_size

MinFree = Literal["default", "half", "double"]
MIN_FREE: dict[MinFree, float] = {"default": 1, "half": 0.5, "double": 2}
MTU = 1500
SWAPPED = 128 << 20
"""Bytes that the tasks of a client touch beyond its memory."""
RAISED = 4
"""How many times as large min_free_kbytes is while it is raised."""
RAISED_FROM_S, RAISED_EVERY_S, RAISED_FOR_S, RAISED_UNTIL_S = 1, 2, 1, 90


@dataclass(frozen=True, slots=True)
class Point:
    """One combination: sizes in bytes, `min_free` relative to the kernel's own choice, `flood` in frames a second,
    `flood_size` a whole Ethernet frame, and whether the kernel is `patched`, or has none of the series that it could
    be without."""

    memory: int
    min_free: MinFree
    flood: int
    flood_size: int
    tasks: int
    bystander_buffer: int
    patched: bool

    @property
    def name(self) -> str:
        """The point in a file name."""
        kernel = "patched" if self.patched else "vanilla"
        sizes = f"{format_size(self.memory)}-{self.min_free}-{self.flood}x{self.flood_size}"
        return f"{sizes}-{self.tasks}-{format_size(self.bystander_buffer)}-{kernel}"


VALUES: dict[str, tuple[Any, ...]] = {
    "memory": (64 << 20, 128 << 20, 256 << 20),
    "min_free": get_args(MinFree),
    "flood": (0, 2_000, 10_000, 20_000),
    "flood_size": (64, 1400, 9000),
    "tasks": (4, 16, 64),
    "bystander_buffer": (1 << 20, 4 << 20, 8 << 20),
    "patched": (True, False),
}
DIMENSIONS = tuple(item.name for item in fields(Point))
SETS = ("memory", "min_free_kbytes", "flood", "flood_size", "tasks", "bystander_buffer", "workload_total", "mtu")
"""What a point decides, and the command line cannot."""


def whole_grid() -> list[Point]:
    """Every point."""
    return [Point(**dict(zip(DIMENSIONS, values, strict=True))) for values in product(*VALUES.values())]


def sample(points: Sequence[Point], seed: int) -> Iterator[Point]:
    """The points in an order whose every beginning is a fair sample: next is one whose values were taken least so far.

    The same seed gives the same order, so that a sample can be made larger.
    """
    left = list(points)
    random.Random(seed).shuffle(left)
    taken: Counter[tuple[str, Any]] = Counter()
    values = {point: tuple(asdict(point).items()) for point in left}
    while left:
        point = min(left, key=lambda each: sum(taken[value] ** 2 for value in values[each]))
        left.remove(point)
        taken.update(values[point])
        yield point


def grid_topology(min_free_kbytes: int) -> Topology:
    """What all points have in common; `min_free_kbytes`, in KiB, is the client's when it is not raised."""
    topology = Topology("grid", faults_start="steady")
    server = topology.add(NbdServer("server", bandwidth="32M"))
    client = topology.add(SwapClient("client", memory="128M", swap=server, gso=False, bystanders=[Bystander(count=3)]))
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch())
    topology.flood(noise, client, UdpFlood(start="steady"))
    raised = topology.memory_of(client).min_free_kbytes(kbytes=RAISED * min_free_kbytes)
    for second in range(RAISED_FROM_S, RAISED_UNTIL_S, RAISED_EVERY_S):
        topology.at(second, raised, until=second + RAISED_FOR_S)
    return topology


def cell(point: Point, common: RunOptions) -> Cell:
    """The runs of a point."""
    rules = PRESETS[common.overrides.preset].rules
    default = compute(point.memory // PAGE_SIZE, None, rules).min_free_kbytes
    min_free_kbytes = int(default * MIN_FREE[point.min_free])
    overrides = replace(
        common.overrides,
        memory=point.memory,
        min_free_kbytes=min_free_kbytes,
        flood=point.flood,
        flood_size=point.flood_size,
        tasks=point.tasks,
        bystander_buffer=point.bystander_buffer,
        workload_total=point.memory + SWAPPED,
        mtu=max(MTU, point.flood_size),
    )
    patches = common.patches if point.patched else frozenset()
    options = replace(common, overrides=overrides, patches=patches)
    return Cell(point.name, grid_topology(min_free_kbytes), options, asdict(point))


def choose(common: RunOptions, count: int | None, seed: int) -> tuple[list[Cell], list[Refused]]:
    """`count` cells of the grid that can exist (None: all), and those that were met on the way and cannot."""
    points = whole_grid()
    cells: list[Cell] = []
    refused: list[Refused] = []
    for point in points if count is None else sample(points, seed):
        if len(cells) == count:
            break
        candidate = cell(point, common)
        try:
            resolve(candidate.topology, candidate.options.overrides)
        except TopologyError as error:
            refused.append(Refused(candidate.name, dict(candidate.arguments), str(error)))
        else:
            cells.append(candidate)
    return cells, refused
