"""A small topology with everything that can go wrong, and its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood
from testbed.experiment.plan import Plan, resolve

MIB = 1 << 20
READERS = (Bystander(count=2), Bystander(port=7000, reader="prompt", count=1), Bystander(reader="faulting", count=1))


def faulty(declare: Callable[..., Any] | None = None, server: dict[str, Any] | None = None, **client: Any) -> Topology:
    """A server, a client of 16 MiB, and a neighbour that floods it; `declare(topology, *hosts)` adds the faults."""
    topology = Topology("faulty")
    serving = topology.add(NbdServer("server", **(server or {})))
    settings: dict[str, Any] = {"memory": "16M", "bystanders": READERS, "gso": False}
    swapping = topology.add(SwapClient("client", swap=serving, **settings | client))
    noise = topology.add(Neighbour("noise"))
    topology.connect(serving, swapping, noise)
    topology.workload(swapping, LinearTouch(processes=8, total="32M"))
    topology.flood(noise, swapping, UdpFlood(pps=5_000, size=1000))
    if declare is not None:
        declare(topology, serving, swapping, noise)
    return topology


def faulty_plan(declare: Callable[..., Any] | None = None, **changes: Any) -> Plan:
    """Its plan."""
    return resolve(faulty(declare, **changes))
