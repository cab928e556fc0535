"""Swap to a server on the same machine, from the outside: when it hangs, and when it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.experiment import simulate
from testbed.experiment.coordinator import Limits, RunRecord
from testbed.experiment.load import load_topology
from testbed.experiment.plan import Overrides, resolve
from testbed.experiment.topology import LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.verdict import judge
from testbed.patches import PATCHES, enabled
from tests.integration.small_run import Silent

ALL = frozenset(PATCHES)
STOCK: frozenset[int] = frozenset()
ROOT = Path(__file__).parents[2]


def run(patches: frozenset[int], memory: str, **server: Any) -> RunRecord:
    topology = Topology("same_host")
    host = topology.add(NbdServer("server", same_host=True, **server))
    client = topology.add(SwapClient("client", memory=memory, ring=64, swap=host))
    topology.connect(client, topology.add(Neighbour("neighbour")))
    topology.workload(client, LinearTouch(processes=8))
    return simulate.execute(resolve(topology), patches, 1, Limits(time=200, stall=4), Silent())


def counters(record: RunRecord) -> dict[str, int]:
    (client,) = record.evidence.clients
    assert client.report is not None
    return dict(client.report["counters"])


@pytest.mark.parametrize("memory", ["32M", "48M"])
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_with_the_series_what_nbd_sends_never_arrives(cache: str, memory: str) -> None:
    record = run(ALL, memory, cache=cache, realtime=True)
    assert judge(record.evidence).outcome == "deadlock"
    assert counters(record)["PFMemallocDrop"] > 1


@pytest.mark.parametrize("memory", ["32M", "48M"])
@pytest.mark.parametrize(("cache", "patches"), [("none", STOCK), ("writeback", enabled([14], force=True))])
def test_an_ordinary_server_waits_for_swap_which_waits_for_it(cache: str, patches: frozenset[int], memory: str) -> None:
    record = run(patches, memory, cache=cache)
    (check,) = (check for check in judge(record.evidence).checks if check.name == "progress")
    assert check.evidence.startswith("deadlock")
    assert "waits in direct reclaim for swap" in check.evidence
    assert counters(record)["PFMemallocDrop"] == 0


def test_a_server_that_may_go_deeper_than_all_others_mostly_goes_on() -> None:
    """Mostly: nbd itself is no better off than anybody, and may be the one that finds no memory."""
    outcomes = (judge(run(STOCK, memory, cache="none", realtime=True).evidence).outcome for memory in ("32M", "40M"))
    assert "pass" in outcomes


def test_the_topology_shows_both_outcomes() -> None:
    topology, _ = load_topology(ROOT / "topologies" / "same_host.py")
    plan = resolve(topology, Overrides())
    outcomes = [
        judge(simulate.execute(plan, patches, 1, Limits(time=60, stall=4), Silent()).evidence).outcome
        for patches in (ALL, enabled([14], force=True))
    ]
    assert outcomes == ["deadlock", "pass"]
