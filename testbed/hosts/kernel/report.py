"""A kernel host's account of its run, in the shape of the emulated client's, from what its kernel counted.

What only a model can know is not there: there is no ledger of single frames. In its place stand the counts of three
kernels' parts that know nothing of each other: the veth, the packet socket behind it, the guest's network driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from testbed.hosts.kernel import proc_text
from testbed.hosts.kernel.counters import CANARY, GuestCounters
from testbed.hosts.kernel.image import KernelImage
from testbed.hosts.kernel.pulse import Pulse
from testbed.hosts.kernel.switches import SWITCHES
from testbed.hosts.plan import ClientPlan
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.drop_reason import SITES, DropReason
from testbed.patches import PATCHES

CONTRADICTIONS = {9: "PFMemallocDrop", 15: "pgscan_direct_throttle", 16: "pgscan_direct_throttle"}
"""Counters of the kernel's own that stay 0 while the patch is off."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Frames on their way in: what the veth had, what the packet socket was given and what it lost, and what it still
    held when the guest was gone."""

    veth: int
    socket: int
    lost: int
    pending: int


@dataclass(frozen=True, slots=True)
class Work:
    """When the workload began and ended, CLOCK_MONOTONIC seconds, None for what has not been, and the CPU times of the
    whole guest at those moments."""

    started: float | None
    ended: float | None
    cpu_before: dict[str, float]
    cpu_after: dict[str, float]


@dataclass(frozen=True, slots=True)
class Account:
    """All that there is to tell. `lowest_free` is in pages; `hang` is evidence of one, `disorder` why it did not come
    to an orderly end, `reconnects` how often another connection took the place of one to the server, `killed` which
    task was killed by what."""

    plan: ClientPlan
    image: KernelImage
    parameters: tuple[str, ...]
    counters: GuestCounters
    pulse: Pulse
    wire: Wire
    work: Work
    lowest_free: int
    panic: str | None
    hang: dict[str, Any] | None
    disorder: str | None
    reconnects: int
    killed: dict[str, str]


def kernel_report(account: Account) -> dict[str, Any]:
    """The report that the verdict reads."""
    counters = account.counters.snapshot() | {"tp_drops": account.wire.lost}
    frames = _frames(account, counters)
    return {
        "counters": counters,
        "frames": frames,
        "swap": _swap(account, counters),
        "memory": _memory(account),
        "workload": _workload(account),
        "times": _times(account.work, account.counters.progress),
        "interfaces": _interfaces(account.wire, counters),
        "sockets": _sockets(account),
        "panic": account.panic,
        "witnesses": _witnesses(account, counters),
        "ledger": [
            {"reason": reason, "site": SITES[DropReason[reason]], "frames": count}
            for reason, count in {DropReason.DELIVERED.name: frames["delivered"], **frames["dropped"]}.items()
            if count
        ],
        "kernel": {
            **account.image.identity(account.parameters),
            "release": account.counters.text("version").strip(),
            "switches": {name: each.on for name, each in _switches(account).items()},
            "hang": account.hang,
            "disorder": account.disorder,
        },
    }


def _frames(account: Account, counters: dict[str, int]) -> dict[str, Any]:
    """UDP's filter drops are its errors that have no other name; any others of the filter hit the swap connection."""
    filtered = counters["PFMemallocDrop"]
    unrelated = counters["InErrors"] - counters["RcvbufErrors"] - counters["MemErrors"] - counters["InCsumErrors"]
    dropped = {
        DropReason.PFMEMALLOC: filtered,
        DropReason.SOCKET_RCVBUFF: counters["RcvbufErrors"],
        DropReason.PROTO_MEM: counters["MemErrors"],
        DropReason.UNHANDLED_PROTO: counters["rx_dropped"],
        DropReason.RX_MISSED: _missed(account, counters),
    }
    received = account.wire.veth - account.wire.lost
    return {
        "received": received,
        "delivered": received - account.wire.pending - sum(dropped.values()),
        "dropped": {reason.name: count for reason, count in dropped.items()},
        "pending": account.wire.pending,
        "unrelated_pfmemalloc": filtered,
        "unrelated_pfmemalloc_delivered": 0,
        "unrelated_pfmemalloc_dropped": min(filtered, unrelated),
        "swap_socket_filtered": max(0, filtered - unrelated),
    }


def _missed(account: Account, counters: dict[str, int]) -> int:
    """Frames that the driver had no memory for. Debian's does not count them; they are what is missing."""
    if account.image.built:
        return counters["rx_missed"]
    wire = account.wire
    return max(0, wire.socket - wire.lost - wire.pending - counters["rx_packets"])


def _interfaces(wire: Wire, counters: dict[str, int]) -> dict[str, int]:
    return {
        "wire_rx_packets": wire.veth,
        "socket_packets": wire.socket,
        "tp_drops": wire.lost,
        "pending": wire.pending,
        "rx_packets": counters["rx_packets"],
        "rx_missed": counters["rx_missed"],
    }


def _swap(account: Account, counters: dict[str, int]) -> dict[str, Any]:
    pages_in, pages_out = counters["pswpin"], counters["pswpout"]
    started, ended = account.work.started, account.work.ended
    seconds = ended - started if started is not None and ended is not None else 0.0
    moved = (pages_in + pages_out) * PAGE_SIZE / (1 << 20)
    return {
        "pages_in": pages_in,
        "pages_out": pages_out,
        "corrupt": counters["corrupt"],
        "nbd_reconnects": account.reconnects,
        "max_gap_s": account.pulse.max_gap_s,
        "mib_per_s": moved / seconds if seconds else 0.0,
        "seconds": seconds,
    }


def _memory(account: Account) -> dict[str, int]:
    zones = proc_text.zoneinfo(account.counters.text("zoneinfo"))
    return {
        "total": zones.managed,
        "min": zones.min,
        "low": zones.low,
        "high": zones.high,
        "reserve_min_free": account.lowest_free,
    }


def _workload(account: Account) -> dict[str, Any]:
    progress = account.counters.progress
    return {
        "tasks": progress.get("tasks", 0),
        "finished_tasks": progress.get("finished", 0),
        "killed_tasks": progress.get("killed", 0),
        "pages": account.plan.workload.pages,
        "touches": progress.get("touches", 0),
        "checked": progress.get("checked", 0),
        "corrupt": progress.get("corrupt", 0),
        "killed": account.killed,
    }


def _times(work: Work, progress: dict[str, int]) -> dict[str, float | None]:
    """User time is that of so many undisturbed touches, system time all else that the guest's processor did."""
    if work.started is None or work.ended is None:
        return {"user_s": None, "system_s": None, "elapsed_s": None}
    busy = sum(
        work.cpu_after.get(name, 0.0) - work.cpu_before.get(name, 0.0)
        for name in ("user", "nice", "system", "irq", "softirq")
    )
    reads = progress.get("checked", 0)
    writes = progress.get("touches", 0) - reads
    user_s = (writes * progress.get("write_ns", 0) + reads * progress.get("read_ns", 0)) / 1e9
    return {"user_s": user_s, "system_s": max(0.0, busy - user_s), "elapsed_s": work.ended - work.started}


def _sockets(account: Account) -> dict[str, dict[str, int]]:
    drops = proc_text.udp_drops(account.counters.text("udp"))
    sockets = [("canary", account.plan.canary_port)]
    sockets += [(f"{bystander.reader}:{bystander.port}", bystander.port) for bystander in account.plan.bystanders]
    return {
        name: {"received": account.counters.received(number), "drops": drops.get(port, 0)}
        for number, (name, port) in enumerate(sockets, start=CANARY)
    }


def _switches(account: Account) -> dict[str, proc_text.Switch]:
    return proc_text.switches(account.counters.text("testbed"))


def _witnesses(account: Account, counters: dict[str, int]) -> dict[str, dict[str, Any]]:
    """How often a built kernel's switch was asked, and what shows that it is on: each time it was, or a counter."""
    said = _switches(account)
    found: dict[str, dict[str, Any]] = {}
    for number, patch in PATCHES.items():
        mine = [switch for switch in SWITCHES if switch.patch == number and switch.name in said]
        if not mine:
            continue
        asked = sum(said[switch.name].count for switch in mine)
        on = sum(said[switch.name].count for switch in mine if said[switch.name].on)
        found[str(number)] = {
            "opportunity": asked,
            "witness": on or counters.get(CONTRADICTIONS.get(number, ""), 0),
            "what": "times the kernel's own code asked: " + ", ".join(switch.name for switch in mine),
            "title": patch.title,
        }
    return found
