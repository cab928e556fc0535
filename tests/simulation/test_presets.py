"""The series as it was merged, from the outside: it saves a machine unless its NIC's driver uses `netdev_alloc_skb`."""

from __future__ import annotations

import pytest

from testbed.experiment import simulate
from testbed.experiment.coordinator import Limits
from testbed.experiment.plan import Overrides, resolve
from testbed.experiment.result import Outcome
from testbed.experiment.topology import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood
from testbed.experiment.verdict import judge
from testbed.net.skbuff import Driver
from testbed.patches import PATCHES
from tests.integration.small_run import Silent


@pytest.mark.parametrize(
    ("preset", "driver", "outcome", "unmarked"),
    [
        ("3.6", "linear", "deadlock", True),
        ("3.6", "page", "pass", False),
        ("3.6", "frag", "pass", False),
        ("v9", "linear", "pass", False),
        ("6.1", "linear", "pass", False),
    ],
)
def test_before_4_1_build_skb_forgets_that_a_buffer_is_of_the_reserve(
    preset: str, driver: Driver, outcome: Outcome, unmarked: bool
) -> None:
    """3.5 cut linear buffers from pages and made skbs with `build_skb`, which looked at the page from 4.1 on."""
    topology = Topology("merged")
    server = topology.add(NbdServer("server", bandwidth="32M"))
    bystanders = [Bystander(reader="never", count=3), Bystander(reader="faulting", count=2)]
    client = topology.add(SwapClient("client", memory="32M", swap=server, driver=driver, bystanders=bystanders))
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(total="48M"))
    topology.flood(noise, client, UdpFlood(pps=40_000))
    plan = resolve(topology, Overrides(preset=preset))
    record = simulate.execute(plan, frozenset(PATCHES), 1, Limits(time=60, stall=2), Silent())
    report = record.evidence.clients[0].report
    assert report is not None
    assert judge(record.evidence).outcome == outcome
    assert (report["counters"]["PFMemallocDrop"] == 0) == unmarked
