"""When floods start: with the workload, once its client swaps, or a while after that."""

from __future__ import annotations

import pytest

from testbed.experiment.coordinator import STEADY_S
from testbed.experiment.plan import Overrides, resolve
from testbed.experiment.topology import LinearTouch, NbdServer, Neighbour, Start, SwapClient, Topology, UdpFlood
from testbed.hosts.messages import StartFlood
from tests.experiment.faults.stage import Stage


def play(start: Start) -> float:
    """When the flood of a run started, in seconds since the start of the workload."""
    topology = Topology("when")
    server = topology.add(NbdServer("server"))
    client = topology.add(SwapClient("client", memory="64M", swap=server))
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=4))
    topology.flood(noise, client, UdpFlood(start=start))
    stage = Stage(resolve(topology, Overrides()), lambda _: True)
    stage.play()
    (started,) = (time for time, command in stage.flood.commands if isinstance(command, StartFlood))
    return started - stage.started


@pytest.mark.parametrize(("start", "expected"), [("workload", 0.0), ("swapping", 0.0), ("steady", STEADY_S)])
def test_a_flood_starts_when_it_should(start: Start, expected: float) -> None:
    """The client of the stage swaps as soon as it works."""
    assert expected <= play(start) <= expected + 0.5
