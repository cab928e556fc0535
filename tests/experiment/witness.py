"""A run as it looks when everything goes right, for tests to spoil one thing at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from testbed.experiment.evidence import Canary, ClientEvidence, Observation, RunEvidence, Stall
from testbed.patches import ALWAYS_ACTING, PATCHES

ALL_PATCHES = frozenset(PATCHES)
STALL_LIMIT = 5.0


def report() -> dict[str, Any]:
    """A client's report of a run that passed, under a flood."""
    return {
        "counters": {"pswpin": 9000, "pswpout": 12000, "PFMemallocDrop": 700, "rx_missed": 3},
        "frames": {
            "received": 30000,
            "delivered": 29000,
            "dropped": {"PFMEMALLOC": 700, "SOCKET_RCVBUFF": 297, "RX_MISSED": 3},
            "pending": 0,
            "unrelated_pfmemalloc": 700,
            "unrelated_pfmemalloc_delivered": 0,
            "unrelated_pfmemalloc_dropped": 700,
            "swap_socket_filtered": 0,
        },
        "swap": {"pages_in": 9000, "pages_out": 12000, "corrupt": 0, "max_gap_s": 0.4, "mib_per_s": 55.0},
        "memory": {"total": 16384, "min": 256, "low": 320, "high": 384, "reserve_min_free": 90},
        "workload": {
            "tasks": 16,
            "finished_tasks": 16,
            "pages": 65536,
            "touches": 131072,
            "checked": 65536,
            "corrupt": 0,
        },
        "pages_leaked": 0,
        "interfaces": {
            "wire_rx_packets": 25000,
            "wire_received": 25000,
            "tp_drops": 0,
            "inner_rx_packets": 24500,
            "inner_delivered": 24500,
        },
        "sockets": {
            "canary": {"delivered": 240, "received": 240},
            "bystander:20000": {"delivered": 8000, "received": 8000},
        },
        "witnesses": {
            str(number): {"opportunity": 5, "witness": 5, "what": f"what patch {number} does"}
            for number, patch in PATCHES.items()
            if number in ALWAYS_ACTING | {3}
        },
        "ledger": [
            {"reason": "DELIVERED", "frames": 28000, "socket": "swap"},
            {"reason": "DELIVERED", "frames": 1000, "socket": "canary"},
            {"reason": "PFMEMALLOC", "frames": 700},
            {"reason": "SOCKET_RCVBUFF", "frames": 297},
            {"reason": "RX_MISSED", "frames": 3},
            {"reason": "TX_NOMEM", "frames": 8},
        ],
    }


def counters(**changes: int) -> dict[str, int]:
    """The counters of a sample."""
    return {
        "swap_completions": 100,
        "pgsteal_kswapd": 50,
        "pgsteal_direct": 20,
        "touches": 9000,
        "pswpin": 40,
        "pswpout": 60,
        "nr_writeback": 32,
        "nr_free_pages": 90,
        "allocstall": 7,
        "rx_refill_fail": 11,
        "tasks_waiting": 16,
    } | changes


def samples() -> list[Observation]:
    """A client seen ten times a second, always moving."""
    return [
        Observation(tick / 10, counters(swap_completions=100 + tick, tasks_waiting=3 if tick < 50 else 0))
        for tick in range(60)
    ]


def client(**changes: Any) -> ClientEvidence:
    """One client of a run that passed."""
    whole = ClientEvidence(
        name="client",
        ring=128,
        acting=ALWAYS_ACTING | {3},
        report=report(),
        samples=samples(),
        canary_before=Canary(20, 20),
        canary_after=Canary(200, 150),
        flood_asked=True,
        flood_sent=20000,
    )
    return replace(whole, **changes)


def run(*clients: ClientEvidence, **changes: Any) -> RunEvidence:
    """A run that passed."""
    whole = RunEvidence(clients=clients or (client(),), patches=ALL_PATCHES, stall_limit=STALL_LIMIT, time_limit=120.0)
    return replace(whole, **changes)


def spoiled(*path: str, value: Any = None, remove: bool = False) -> dict[str, Any]:
    """The report with one entry changed or removed."""
    changed = copy.deepcopy(report())
    here = changed
    for key in path[:-1]:
        here = here[key]
    if remove:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return changed


def stall(during: dict[str, int] | None = None, afterwards: dict[str, int] | None = None) -> Stall:
    """A client that hung: nothing moved in five seconds, nor in five more after the flood; reclaim went on trying.

    `during` and `afterwards` change counters in the first and the second wait.
    """
    noticed = counters(allocstall=400, rx_refill_fail=5000) | (during or {})
    return Stall(
        last_moved=Observation(10.0, counters()),
        noticed=Observation(15.0, noticed),
        flood_stopped=15.1,
        after=Observation(20.2, noticed | {"allocstall": 800} | (afterwards or {})),
        scarce=320,
    )
