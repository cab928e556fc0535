"""When floods start: with the workload, once its client swaps, or so long before that sockets are full by then."""

from __future__ import annotations

import pytest

from testbed.experiment.coordinator import FLOOD_LEAD_S
from testbed.experiment.plan import Overrides, resolve
from testbed.experiment.topology import LinearTouch, NbdServer, Neighbour, Start, SwapClient, Topology, UdpFlood
from testbed.hosts.messages import StartFlood
from tests.experiment.faults.stage import Stage


def play(start: Start) -> tuple[Stage, float]:
    """The stage after a run, and when its flood started, in seconds since the start of the workload."""
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
    return stage, started - stage.started


def test_a_flood_before_the_workload_has_its_lead() -> None:
    assert play("before")[1] == pytest.approx(-FLOOD_LEAD_S, abs=0.5)


@pytest.mark.parametrize("start", ["workload", "swapping"])
def test_other_floods_wait_for_the_workload(start: Start) -> None:
    assert play(start)[1] >= 0
