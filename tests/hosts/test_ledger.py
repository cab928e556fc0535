"""The ledger: rows and totals are the same frames."""

from __future__ import annotations

from testbed.hosts.ledger import Ledger
from testbed.net.drop_reason import DropReason
from tests.mm.machine import Machine

DELIVERED, MISSED, RESERVE = int(DropReason.DELIVERED), int(DropReason.RX_MISSED), int(DropReason.PFMEMALLOC)


def test_rows_add_up_to_totals_and_know_how_much_memory_was_free() -> None:
    machine = Machine()
    ledger = Ledger(machine.node.page_alloc)
    ledger.tally({(DELIVERED, "udp", False): 5, (RESERVE, "udp", True): 2})
    machine.drain(100)
    ledger.tally({(DELIVERED, "udp", False): 1})
    machine.drain(40)
    ledger.tally({(DELIVERED, "udp", False): 1, (MISSED, "swap", False): 3})
    ledger.close_interval(1.5)
    ledger.tally({(DELIVERED, "udp", False): 10})
    ledger.close_interval(2.5)
    rows = ledger.take_rows()
    first = rows[0]
    assert (first["time"], first["site"], first["reason"], first["frames"]) == (1.5, "socket", "DELIVERED", 7)
    assert (first["nr_free_pages_min"], first["nr_free_pages_max"]) == (40, 1024)
    assert sum(row["frames"] for row in rows) == sum(ledger.totals.values()) == 22
    assert ledger.count(socket="udp") == 19
    assert ledger.count(pfmemalloc=True) == ledger.count(reason=DropReason.PFMEMALLOC) == 2
    assert ledger.dropped() == {"PFMEMALLOC": 2, "RX_MISSED": 3}
    assert ledger.take_rows() == []


def test_an_interval_without_frames_has_no_rows() -> None:
    ledger = Ledger(Machine().node.page_alloc)
    ledger.close_interval(1)
    assert ledger.take_rows() == []
