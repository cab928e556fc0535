"""A guest's files become the emulated client's counters."""

from __future__ import annotations

import pytest

from testbed.experiment.evidence import PROGRESS_COUNTERS
from testbed.hosts.kernel.counters import GuestCounters
from tests.hosts.kernel.proc_samples import TEXTS


def counters() -> GuestCounters:
    guest = GuestCounters()
    for source, text in TEXTS.items():
        guest.take(source, text)
    return guest


EXPECTED = {
    "allocstall": 1590,
    "pgalloc": 250000,
    "nr_free_pages": 362,
    "nr_writeback": 105,
    "swap_used": 25000,
    "swap_completions": (523824 + 742944) // 8,
    "pswpin": 65478,
    "pswpout": 92867,
    "pgscan_direct_throttle": 19,
    "PFMemallocDrop": 668,
    "RcvbufErrors": 275780,
    "RetransSegs": 3,
    "rx_packets": 524526,
    "rx_missed": 7,
    "rx_refill_fail": 7,
    "rx_dropped": 2,
    "softnet_dropped": 3,
    "touches": 131072,
    "tasks_waiting": 3,
    "finished_tasks": 5,
    "canary_received": 242,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_counter_has_its_source(name: str) -> None:
    assert counters().snapshot()[name] == EXPECTED[name]


def test_a_guest_that_has_said_nothing_has_all_that_the_coordinator_needs() -> None:
    silent = GuestCounters().snapshot()
    needed = {
        *PROGRESS_COUNTERS,
        "tasks_waiting",
        "canary_received",
        "nr_free_pages",
        "nr_writeback",
        "pswpin",
        "pswpout",
    }
    assert needed <= set(silent)
    assert set(silent.values()) == {0}


def test_the_newest_text_counts() -> None:
    guest = counters()
    guest.take("meminfo", "MemFree: 400 kB\n")
    assert guest.snapshot()["nr_free_pages"] == 100
