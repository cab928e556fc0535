"""What a run leaves behind: the shape of `result.json`, which scripts rely on.

The names of the keys are a contract: add, never rename. With several clients the numbers at the top level are sums
over them (the lowest for `reserve_min_free`, the longest for `max_gap_s`), and `clients` has each one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

Outcome = Literal["pass", "fail", "deadlock", "error"]
OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "deadlock", "error")


class Check(msgspec.Struct, frozen=True):
    """One check of the verdict: `ok` None means there was nothing to check, and `evidence` says why."""

    name: str
    ok: bool | None
    evidence: str


class Frames(msgspec.Struct):
    """Frames at the client's emulated NIC, each received one being delivered, dropped or still pending at the end."""

    received: int = 0
    delivered: int = 0
    dropped: dict[str, int] = {}
    pending: int = 0
    unrelated_pfmemalloc: int = 0
    unrelated_pfmemalloc_delivered: int = 0
    unrelated_pfmemalloc_dropped: int = 0
    swap_socket_filtered: int = 0


class Swap(msgspec.Struct):
    """Swap traffic in pages; `max_gap_s` is the longest time without a completion, `mib_per_s` counts both ways."""

    pages_in: int = 0
    pages_out: int = 0
    corrupt: int = 0
    max_gap_s: float = 0.0
    mib_per_s: float = 0.0


class FloodTotals(msgspec.Struct):
    """Flood frames really sent, and the rate that was really reached."""

    sent: int = 0
    pps: float = 0.0


class Memory(msgspec.Struct):
    """Watermarks and the lowest number of free pages seen, in pages."""

    min: int = 0
    low: int = 0
    high: int = 0
    reserve_min_free: int = 0
    total: int = 0


class Workload(msgspec.Struct):
    """What the tasks did, in pages; `seconds` is from start to end, 0 if they did not come to an end."""

    tasks: int = 0
    finished_tasks: int = 0
    killed_tasks: int = 0
    pages: int = 0
    touches: int = 0
    checked: int = 0
    corrupt: int = 0
    seconds: float = 0.0


class Times(msgspec.Struct):
    """The workload's times in seconds, from its start to its end; None if it did not come to one.

    User time is the CPU time of the tasks' own writes and checks, system time all other CPU time of the emulated
    client. A simulation has no CPU time, and its elapsed time is virtual. Of several clients CPU times are added up,
    and the longest elapsed time counts.
    """

    user_s: float | None = None
    system_s: float | None = None
    elapsed_s: float | None = None


class Witness(msgspec.Struct):
    """How often a patch had an occasion to act, how often it was seen to act, and what that is."""

    opportunity: int = 0
    witness: int = 0
    what: str = ""


class ClientResult(msgspec.Struct):
    """One client's own numbers. `stalled_after_s` is when it last moved, from the start of the workload; None if it
    did not stall. `kernel` tells which real kernel ran in its place, and what was seen of it if it hung; empty for a
    model."""

    name: str
    counters: dict[str, int]
    frames: Frames
    swap: Swap
    memory: Memory
    workload: Workload = msgspec.field(default_factory=Workload)
    witnesses: dict[str, Witness] = {}
    stalled_after_s: float | None = None
    times: Times = msgspec.field(default_factory=Times)
    kernel: dict[str, Any] = {}


class Result(msgspec.Struct, kw_only=True):
    """The whole of `result.json`. `patches` are the numbers that were on, `elapsed_s` is from start to verdict.

    In a simulation (`simulated`) that is virtual time, and nothing but `wall_s`, `directory` and `environment` depends
    on the machine; `wall_s` is how long it really took.
    """

    outcome: Outcome
    checks: list[Check] = []
    patches: list[int] = []
    seed: int = 0
    elapsed_s: float = 0.0
    wall_s: float = 0.0
    simulated: bool = False
    counters: dict[str, int] = {}
    frames: Frames = msgspec.field(default_factory=Frames)
    swap: Swap = msgspec.field(default_factory=Swap)
    flood: FloodTotals = msgspec.field(default_factory=FloodTotals)
    memory: Memory = msgspec.field(default_factory=Memory)
    workload: Workload = msgspec.field(default_factory=Workload)
    witnesses: dict[str, Witness] = {}
    stalled_after_s: float | None = None
    times: Times = msgspec.field(default_factory=Times)
    arguments: dict[str, Any] = {}
    clients: list[ClientResult] = []
    limits: list[str] = []
    warnings: list[str] = []
    topology: str = ""
    version: str = ""
    environment: dict[str, str | int] = {}
    directory: str = ""
    error: str | None = None


def client_result(name: str, report: Mapping[str, Any], stalled_after_s: float | None = None) -> ClientResult:
    """A client's section, from its report. What the report lacks stays 0: the verdict has failed for it already."""

    def section(key: str, kind: Any) -> Any:
        return msgspec.convert(dict(report.get(key) or {}), kind)

    return ClientResult(
        name=name,
        counters={str(key): int(value) for key, value in (report.get("counters") or {}).items()},
        frames=section("frames", Frames),
        swap=section("swap", Swap),
        memory=section("memory", Memory),
        workload=msgspec.structs.replace(
            section("workload", Workload), seconds=float((report.get("swap") or {}).get("seconds", 0.0))
        ),
        witnesses=section("witnesses", dict[str, Witness]),
        stalled_after_s=stalled_after_s,
        times=section("times", Times),
        kernel=dict(report.get("kernel") or {}),
    )


def add_up(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sums of counters by name."""
    total: dict[str, int] = {}
    for each in counters:
        for name, value in each.items():
            total[name] = total.get(name, 0) + value
    return total


def total_frames(clients: Iterable[ClientResult]) -> Frames:
    """Frames of all clients together."""
    total = Frames()
    for frames in (client.frames for client in clients):
        total.received += frames.received
        total.delivered += frames.delivered
        total.pending += frames.pending
        total.dropped = add_up([total.dropped, frames.dropped])
        total.unrelated_pfmemalloc += frames.unrelated_pfmemalloc
        total.unrelated_pfmemalloc_delivered += frames.unrelated_pfmemalloc_delivered
        total.unrelated_pfmemalloc_dropped += frames.unrelated_pfmemalloc_dropped
        total.swap_socket_filtered += frames.swap_socket_filtered
    return total


def total_swap(clients: Iterable[ClientResult]) -> Swap:
    """Swap of all clients together, with the longest gap of any."""
    total = Swap()
    for swap in (client.swap for client in clients):
        total.pages_in += swap.pages_in
        total.pages_out += swap.pages_out
        total.corrupt += swap.corrupt
        total.max_gap_s = max(total.max_gap_s, swap.max_gap_s)
        total.mib_per_s += swap.mib_per_s
    return total


def total_memory(clients: Iterable[ClientResult]) -> Memory:
    """Memory of all clients together, with the lowest free count of any."""
    all_memory = [client.memory for client in clients]
    if not all_memory:
        return Memory()
    return Memory(
        min=sum(memory.min for memory in all_memory),
        low=sum(memory.low for memory in all_memory),
        high=sum(memory.high for memory in all_memory),
        reserve_min_free=min(memory.reserve_min_free for memory in all_memory),
        total=sum(memory.total for memory in all_memory),
    )


def total_workload(clients: Iterable[ClientResult]) -> Workload:
    """The tasks of all clients together, with the longest time of any; 0 seconds if one did not come to an end."""
    all_work = [client.workload for client in clients]
    total = Workload()
    for work in all_work:
        for name in ("tasks", "finished_tasks", "killed_tasks", "pages", "touches", "checked", "corrupt"):
            setattr(total, name, getattr(total, name) + getattr(work, name))
    if all(work.seconds for work in all_work):
        total.seconds = max((work.seconds for work in all_work), default=0.0)
    return total


def total_times(clients: Iterable[ClientResult]) -> Times:
    """The times of all clients together; None where one client's is not known."""

    def together(values: list[float | None], combine: Callable[[list[float]], float]) -> float | None:
        known = [value for value in values if value is not None]
        return combine(known) if values and len(known) == len(values) else None

    each = [client.times for client in clients]
    return Times(
        together([times.user_s for times in each], sum),
        together([times.system_s for times in each], sum),
        together([times.elapsed_s for times in each], max),
    )


def total_witnesses(clients: Iterable[ClientResult]) -> dict[str, Witness]:
    """Occasions and acts of each patch on all clients together."""
    total: dict[str, Witness] = {}
    for client in clients:
        for number, seen in client.witnesses.items():
            both = total.setdefault(number, Witness(what=seen.what))
            both.opportunity += seen.opportunity
            both.witness += seen.witness
    return total


def first_stall(clients: Iterable[ClientResult]) -> float | None:
    """When the first client that stalled last moved."""
    return min((client.stalled_after_s for client in clients if client.stalled_after_s is not None), default=None)


def encode(result: Result) -> bytes:
    """`result.json` as bytes, indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"


def decode(text: bytes) -> Result:
    """A Result from the bytes of a `result.json`. Raises msgspec.MsgspecError for anything else."""
    return msgspec.json.decode(text, type=Result)
