"""Which limit a run came up against: lines that explain an outcome without having any part in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from testbed.experiment.evidence import ClientEvidence, Missing, RunEvidence, number
from testbed.experiment.plan import Plan
from testbed.hosts.plan import ClientPlan
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.drop_reason import DropReason


def limits_reached(plan: Plan, run: RunEvidence) -> list[str]:
    """One line for each limit that some client reached, and for the limits of the run itself."""
    lines = [f"time limit: the run was ended after {run.time_limit:g} s"] if run.out_of_time else []
    plans = {client.name: client for client in plan.clients}
    for client in run.clients:
        if client.stall is not None:
            lines.append(f"{client.name}: stall limit: nothing moved for {run.stall_limit:g} s")
        lines += [f"{client.name}: {line}" for line in _memory(plans[client.name], client.report)]
        lines += [f"{client.name}: {line}" for line in _counted(client)]
        if client.flood_asked:
            lines += [f"{client.name}: {line}" for line in _bystanders(plans[client.name])]
    return lines


def _memory(plan: ClientPlan, report: Mapping[str, Any] | None) -> Iterator[str]:
    marks = plan.watermarks
    steps = [
        (0, "all of its memory was in use"),
        (marks.atomic_floor, f"at or below {marks.atomic_floor}, where GFP_ATOMIC requests fail"),
        (marks.throttle, f"at or below {marks.throttle}, where direct reclaimers are throttled"),
        (marks.min, f"at or below {marks.min}, where ordinary requests wait"),
        (marks.low, f"at or below {marks.low}, where kswapd starts"),
    ]
    try:
        lowest = number(report, "memory", "reserve_min_free")
    except Missing:
        return
    for bound, text in steps:
        if lowest <= bound:
            yield f"free memory went down to {lowest} pages: {text}"
            return


def _counted(client: ClientEvidence) -> Iterator[str]:
    counts = {
        ("counters", "rx_refill_fail"): "receive buffers could not be allocated",
        ("frames", "dropped", DropReason.RX_MISSED.name): "frames found no buffer in the receive ring",
        ("frames", "dropped", DropReason.RX_NOMEM.name): "short frames found no memory to be copied into",
        ("frames", "dropped", DropReason.SOCKET_RCVBUFF.name): "datagrams found their socket's receive buffer full",
        ("frames", "dropped", DropReason.PROTO_MEM.name): "frames came when udp_mem or tcp_mem was used up",
        ("frames", "dropped", DropReason.SOCKET_BACKLOG.name): "frames found their socket busy and its backlog full",
        ("counters", "pgscan_direct_throttle"): "times a direct reclaimer was throttled",
        ("counters", "oom_kill"): "tasks were killed for want of memory",
        ("interfaces", "tp_drops"): "frames were lost before the emulated NIC saw them: this machine was too busy",
    }
    for path, text in counts.items():
        try:
            count = number(client.report, *path)
        except Missing:
            continue
        if count:
            yield f"{count} {text}"


def _bystanders(plan: ClientPlan) -> Iterator[str]:
    """Buffers that cannot hold the reserve cannot starve even an unprotected host."""
    held = sum(bystander.buffer for bystander in plan.bystanders if bystander.reader != "prompt") // PAGE_SIZE
    if held < plan.watermarks.high:
        yield (
            f"the bystanders' buffers hold {held} pages at most, less than the {plan.watermarks.high} kswapd keeps "
            "free: the flood cannot take them all"
        )
