"""A swap client's account of its run, in the shape that the verdict reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from testbed.hosts.witnesses import witnesses
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.drop_reason import DropReason

if TYPE_CHECKING:
    from testbed.hosts.emulated_client import EmulatedClient

UNRELATED_ENDS = (
    DropReason.DELIVERED,
    DropReason.PFMEMALLOC,
    DropReason.SOCKET_RCVBUFF,
    DropReason.SOCKET_BACKLOG,
    DropReason.PROTO_MEM,
)
NBD_COUNTERS = (
    *("swap_read_errors", "swap_write_errors", "sigbus"),
    *("nbd_reconnects", "nbd_requeued", "nbd_timeouts"),
)


@dataclass(frozen=True, slots=True)
class Ends:
    """What there was at the end: packets as both sides of the model count them, frames still in a backlog, and what
    /proc said before the tasks were stopped."""

    interfaces: Mapping[str, int]
    pending: int
    proc: Mapping[str, str]


def client_report(
    client: EmulatedClient, counters: Mapping[str, int], memory: Mapping[str, int], ends: Ends
) -> dict[str, Any]:
    """The report; what is passed in was read before everything was given back."""
    progress = client.progress
    return {
        "counters": dict(counters),
        "frames": _frames(client, ends.pending),
        "swap": _swap(client, counters),
        "memory": dict(memory),
        "workload": {
            "tasks": client.nr_tasks,
            "finished_tasks": progress.finished_tasks,
            "killed_tasks": progress.killed_tasks,
            "pages": client.plan.workload.pages,
            "touches": progress.touches,
            "checked": progress.checked,
            "corrupt": progress.corrupt,
            "killed": dict(progress.killed),
        },
        "times": _times(client),
        "pages_leaked": client.node.pages_leaked(),
        "interfaces": dict(ends.interfaces),
        "sockets": {
            bystander.sk.name: {
                "delivered": client.ledger.count(reason=DropReason.DELIVERED, socket=bystander.sk.name),
                "received": bystander.received,
            }
            for bystander in client.sockets
        },
        "streams": {
            listener.name: {"connections": len(listener.connections), "received": listener.received}
            for listener in client.listeners
        },
        "virtual_machines": {
            each.tun.name: {
                "delivered": client.ledger.count(reason=DropReason.DELIVERED, socket=each.tun.name),
                "sent_out": each.tun.tx_packets,
                "dropped": each.tun.tx_dropped,
                "read": each.tun.read,
            }
            for each in client.virtual_machines
        },
        "panic": client.panic,
        "witnesses": witnesses(
            counters, client.netstat, (client.device.pf_memalloc_sends, client.device.ordinary_sends)
        ),
        "ledger": client.ledger.take_rows(),
        "proc": dict(ends.proc),
        "device": {"tx_dropped": client.edge.tx_dropped},
    }


def _frames(client: EmulatedClient, pending: int) -> dict[str, Any]:
    ledger = client.ledger
    names = {sk.name for sk in client.unrelated}
    unrelated = {
        reason: sum(ledger.count(reason=reason, socket=name, pfmemalloc=True) for name in names)
        for reason in UNRELATED_ENDS
    }
    return {
        "received": client.edge.received,
        "delivered": ledger.count(reason=DropReason.DELIVERED),
        "dropped": ledger.dropped(),
        "pending": pending,
        "unrelated_pfmemalloc": sum(unrelated.values()),
        "unrelated_pfmemalloc_delivered": unrelated[DropReason.DELIVERED],
        "unrelated_pfmemalloc_dropped": unrelated[DropReason.PFMEMALLOC],
        "swap_socket_filtered": ledger.count(reason=DropReason.PFMEMALLOC, socket="swap"),
    }


def _times(client: EmulatedClient) -> dict[str, float | None]:
    """Seconds; None for what is not known, all three of a workload that did not come to an end."""
    user_s, system_s = client.cpu_times.split(client.progress.touches)
    started, ended = client.workload_started, client.workload_ended
    elapsed_s = None if started is None or ended is None else ended - started
    return {"user_s": user_s, "system_s": system_s, "elapsed_s": elapsed_s}


def _swap(client: EmulatedClient, counters: Mapping[str, int]) -> dict[str, Any]:
    pages_in, pages_out = counters["pswpin"], counters["pswpout"]
    started, ended = client.workload_started, client.workload_ended
    seconds = ended - started if started is not None and ended is not None else 0.0
    moved = (pages_in + pages_out) * PAGE_SIZE / (1 << 20)
    return {
        "pages_in": pages_in,
        "pages_out": pages_out,
        "corrupt": client.progress.corrupt,
        "lost_pages": _lost_pages(client),
        **{name: counters[name] for name in NBD_COUNTERS},
        "connection_lost": client.device.failed,
        "max_gap_s": client.device.max_gap_s,
        "mib_per_s": moved / seconds if seconds else 0.0,
        "seconds": seconds,
    }


def _lost_pages(client: EmulatedClient) -> dict[str, Any]:
    """The pages that were not on the server any more after a reconnection: how many, and the first of them."""
    progress = client.progress
    if not client.device.nbd_reconnects:
        return {"count": 0, "pages": []}
    return {"count": progress.wrong_from_swap, "pages": [asdict(lost) for lost in progress.wrong_slots]}
