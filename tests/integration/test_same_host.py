"""A server on its client's machine on real sockets: over loopback, in the client's namespace."""

from __future__ import annotations

import pytest

from testbed.experiment.plan import Plan, resolve
from testbed.experiment.topology import LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.verdict import judge
from testbed.patches import enabled
from tests.integration.small_run import ALL_ON, RING, run_plan

pytestmark = pytest.mark.root


def plan() -> Plan:
    topology = Topology("same_host")
    server = topology.add(NbdServer("server", same_host=True, cache="none", realtime=True))
    client = topology.add(SwapClient("client", swap=server, memory="128M", ring=RING))
    topology.connect(client, topology.add(Neighbour("neighbour")))
    topology.workload(client, LinearTouch(processes=8, total="176M"))
    return resolve(topology)


def test_what_nbd_sends_from_the_reserve_never_arrives() -> None:
    record = run_plan(plan(), ALL_ON)
    (client,) = record.evidence.clients
    assert client.report is not None
    assert judge(record.evidence).outcome == "deadlock"
    assert client.report["counters"]["PFMemallocDrop"] > 1
    assert client.report["pages_leaked"] == 0


def test_pages_go_out_over_loopback_and_come_back_as_they_were() -> None:
    """Whether all of them do depends on who is faster: without patch 14 the sender may lose the last page."""
    record = run_plan(plan(), enabled([14], force=True))
    (client,) = record.evidence.clients
    assert client.report is not None
    assert record.evidence.error is None
    assert client.report["swap"]["pages_in"] > 0
    assert client.report["workload"]["corrupt"] == 0
    assert client.report["pages_leaked"] == 0
