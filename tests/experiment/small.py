"""The smallest topology that can be run, with whatever a test wants different."""

from __future__ import annotations

from typing import Any

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.topology import Flood


def build(
    server: dict[str, Any] | None = None,
    client: dict[str, Any] | None = None,
    flood: Flood | None = None,
    workload: LinearTouch | None = None,
) -> Topology:
    topology = Topology("small")
    host = topology.add(NbdServer("server", **(server or {})))
    swapper = topology.add(SwapClient("client", swap=host, **(client or {})))
    noise = topology.add(Neighbour("noise"))
    topology.connect(host, swapper, noise)
    topology.workload(swapper, workload or LinearTouch())
    if flood is not None:
        topology.flood(noise, swapper, flood)
    return topology
