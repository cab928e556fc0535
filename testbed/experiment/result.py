"""What a run leaves behind: the shape of `result.json`, which scripts rely on.

The names of the keys are a contract: add, never rename. With several clients the numbers at the top level are sums
over them (the lowest for `reserve_min_free`, the longest for `max_gap_s`), and `clients` has each one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from testbed.experiment.faults.injected import Injected
from testbed.experiment.faults.kinds import layer_of
from testbed.experiment.faults.step import Schedule, Step, end_of

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


class LostPage(msgspec.Struct):
    """A page that was not on the server any more: its slot, and whose page number so and so it was."""

    slot: int
    task: str
    page: int


class LostPages(msgspec.Struct):
    """Pages that came back wrong after a reconnection: how many, and the first of them."""

    count: int = 0
    pages: list[LostPage] = []


class Swap(msgspec.Struct):
    """Swap traffic in pages; `max_gap_s` is the longest time without a completion, `mib_per_s` counts both ways.

    `connection_lost` says why a connection to the server was lost last, `nbd_requeued` counts requests that were
    queued again for that and `nbd_timeouts` those that took too long, `sigbus` the faults that found a page unreadable;
    errors are in pages.
    """

    pages_in: int = 0
    pages_out: int = 0
    corrupt: int = 0
    max_gap_s: float = 0.0
    mib_per_s: float = 0.0
    swap_read_errors: int = 0
    swap_write_errors: int = 0
    sigbus: int = 0
    nbd_reconnects: int = 0
    nbd_requeued: int = 0
    nbd_timeouts: int = 0
    connection_lost: str | None = None
    lost_pages: LostPages = msgspec.field(default_factory=LostPages)


SWAP_SUMS = (
    *("swap_read_errors", "swap_write_errors", "sigbus"),
    *("nbd_reconnects", "nbd_requeued", "nbd_timeouts"),
)


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
    """What the tasks did, in pages; `seconds` is from start to end, 0 if they did not come to an end.

    `killed` says of each task that was killed by what.
    """

    tasks: int = 0
    finished_tasks: int = 0
    killed_tasks: int = 0
    pages: int = 0
    touches: int = 0
    checked: int = 0
    corrupt: int = 0
    seconds: float = 0.0
    killed: dict[str, str] = {}


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


class Capture(msgspec.Struct, frozen=True):
    """The capture of one host's link: a file in the run's directory, the frames in it, and those that are missing.

    Both are None for a file that was not ended, because its writer was killed.
    """

    link: str
    file: str
    frames: int | None
    lost: int | None


class ClientResult(msgspec.Struct):
    """One client's own numbers. `stalled_after_s` is when it last moved, from the start of the workload; None if it
    did not stall. `corrupt_pages` are those of each task that were not what it had written, such as "3-5". `kernel`
    tells which real kernel ran in its place, and what was seen of it if it hung; empty for a model."""

    name: str
    counters: dict[str, int]
    frames: Frames
    swap: Swap
    memory: Memory
    workload: Workload = msgspec.field(default_factory=Workload)
    witnesses: dict[str, Witness] = {}
    stalled_after_s: float | None = None
    times: Times = msgspec.field(default_factory=Times)
    corrupt_pages: dict[str, list[str]] = {}
    kernel: dict[str, Any] = {}


class LinkFrames(msgspec.Struct):
    """What became of the frames that went one way, "to" the host whose link it is or "from" it.

    `received` + `duplicated` = `sent` + `held` + all `dropped`; `altered` ones went on with other bytes. "ring" counts
    those that came too fast for whoever passes them on, "interface" those that the next interface refused.
    """

    received: int = 0
    sent: int = 0
    duplicated: int = 0
    altered: int = 0
    held: int = 0
    dropped: dict[str, int] = {}


class FaultResult(msgspec.Struct):
    """One fault of the schedule. Times are seconds from the schedule's start: planned, and when it happened.

    None for what was not planned, or did not happen. `did` is what whoever carried it out says of it.
    """

    number: int
    layer: str
    target: str
    kind: str
    arguments: dict[str, Any] = {}
    seed: int = 0
    at: float = 0.0
    until: float | None = None
    set_at: float | None = None
    cleared_at: float | None = None
    did: dict[str, Any] = {}


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
    captures: list[Capture] = []
    limits: list[str] = []
    links: dict[str, dict[str, LinkFrames]] = {}
    faults: list[FaultResult] = []
    schedule: list[dict[str, Any]] = []
    faults_start: str = "workload"
    warnings: list[str] = []
    topology: str = ""
    version: str = ""
    environment: dict[str, str | int] = {}
    directory: str = ""
    error: str | None = None


def client_result(
    name: str,
    report: Mapping[str, Any],
    stalled_after_s: float | None = None,
    corrupt_pages: Mapping[str, Sequence[str]] | None = None,
) -> ClientResult:
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
        corrupt_pages={task: list(pages) for task, pages in (corrupt_pages or {}).items()},
        kernel=dict(report.get("kernel") or {}),
    )


def fault_results(schedule: Schedule, injected: Iterable[Injected]) -> list[FaultResult]:
    """What became of each fault of a schedule."""
    happened = {fault.step.number: fault for fault in injected}
    return [
        _fault_result(step, end_of(schedule, step.number), happened.get(step.number))
        for step in schedule
        if step.action == "set"
    ]


def _fault_result(step: Step, until: float | None, fault: Injected | None) -> FaultResult:
    result = FaultResult(
        *(step.number, layer_of(step.kind), step.target, step.kind, step.arguments, step.seed, step.time, until)
    )
    if fault is not None:
        result.set_at = round(fault.began - fault.started, 3)
        result.cleared_at = None if fault.ended is None else round(fault.ended - fault.started, 3)
        result.did = fault.did
    return result


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
        for name in SWAP_SUMS:
            setattr(total, name, getattr(total, name) + getattr(swap, name))
        total.connection_lost = total.connection_lost or swap.connection_lost
        total.lost_pages.count += swap.lost_pages.count
        total.lost_pages.pages = total.lost_pages.pages + swap.lost_pages.pages
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
        total.killed = total.killed | work.killed
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
