"""Two memory nodes and tasks with a memory policy, from the outside: where patch 06 has an occasion."""

from __future__ import annotations

import pytest

from testbed.experiment import simulate
from testbed.experiment.acting import acting
from testbed.experiment.coordinator import Limits
from testbed.experiment.plan import Plan, resolve
from testbed.experiment.topology import (
    Bystander,
    LinearTouch,
    NbdServer,
    Neighbour,
    SwapClient,
    Topology,
    UdpFlood,
)
from testbed.patches import PATCHES
from tests.integration.small_run import Silent

SEEDS = (6, *range(5))
"""Not in every run does a task find only the reserve: the first of these in which one does will do."""


def plan(mempolicy: str | None) -> Plan:
    """More tasks than so small a machine has memory for: those that die, and those that swap, need the reserve."""
    topology = Topology("numa")
    server = topology.add(NbdServer("server"))
    readers = [Bystander(reader="never", count=3, buffer="4M"), Bystander(reader="faulting", count=5)]
    client = topology.add(SwapClient("client", memory="16M", swap=server, nodes=2, bystanders=readers))
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=64, mempolicy=mempolicy))
    topology.flood(noise, client, UdpFlood(pps=20_000))
    return resolve(topology)


def occasions(mempolicy: str, patches: frozenset[int]) -> tuple[int, int]:
    """As `counters`, of the first run that has any."""
    return next((found for seed in SEEDS if any(found := counters(mempolicy, patches, seed))), (0, 0))


def counters(mempolicy: str | None, patches: frozenset[int], seed: int) -> tuple[int, int]:
    """How often the reserve was looked for near the CPU whatever the policy, and how often where the policy says."""
    record = simulate.execute(plan(mempolicy), patches, seed, Limits(time=2, stall=4), Silent())
    report = record.evidence.clients[0].report
    assert report is not None
    row = report["witnesses"].get("6", {"opportunity": 0, "witness": 0})
    return row["witness"], row["opportunity"] - row["witness"]


@pytest.mark.parametrize("mempolicy", ["interleave:0,1", "prefer:1"])
def test_patch_06_acts_where_tasks_have_a_policy(mempolicy: str) -> None:
    assert 6 in acting(plan(mempolicy).clients)
    ignored, kept = occasions(mempolicy, frozenset(PATCHES))
    assert ignored > 0
    assert kept == 0
    ignored, kept = occasions(mempolicy, frozenset(PATCHES) - {6})
    assert ignored == 0
    assert kept > 0


def test_tasks_without_a_policy_give_it_no_occasion() -> None:
    assert 6 not in acting(plan(None).clients)
    assert counters(None, frozenset(PATCHES), SEEDS[0]) == (0, 0)
