"""The smallest experiment: a client that swaps to a server, and a neighbour that may flood it. For tests.

Calling it makes one run and gives its Result; the run's directory, with its captures and its event log, is kept for
whoever wants to know why a test failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from testbed.experiment.arguments import RunOptions
from testbed.experiment.command import run_once, simulate_once
from testbed.experiment.live import NoView
from testbed.experiment.plan import Overrides
from testbed.experiment.result import Result
from testbed.experiment.topology import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, Traffic
from testbed.hosts.plan import ClientHost
from testbed.lab.pcapng import SNAPLEN
from testbed.patches import enabled

MEMORY = "16M"
RING = 64
PROCESSES = 8
TIME_LIMIT_S, STALL_LIMIT_S = 120.0, 5.0


class SwapPair:
    """Makes runs; `directories` has where each went.

    Args:
        runs: the directory that runs are made in.
        need: told the name of a capability before it is needed; ends the test if it is missing.
        host: what stands in the client's place.
    """

    def __init__(self, runs: Path, need: Callable[[str], None], host: ClientHost = "emulated") -> None:
        self.directories: list[Path] = []
        self._runs = runs
        self._need = need
        self._host = host

    def topology(self, *floods: Traffic, server: dict[str, Any] | None = None, **client: Any) -> Topology:
        """The pair as a topology; `server` and `client` are arguments of NbdServer and SwapClient."""
        topology = Topology("swap_pair")
        area = topology.add(NbdServer("server", **(server or {})))
        settings: dict[str, Any] = {"memory": MEMORY, "ring": RING, "host": self._host} | client
        swapping = topology.add(SwapClient("client", swap=area, **settings))
        noise = topology.add(Neighbour("noise"))
        topology.connect(area, swapping, noise)
        topology.workload(swapping, LinearTouch(processes=PROCESSES))
        for flood in floods:
            topology.flood(noise, swapping, flood)
        return topology

    def __call__(
        self,
        *floods: Traffic,
        without: Iterable[int] = (),
        seed: int = 1,
        simulate: bool = False,
        server: dict[str, Any] | None = None,
        **client: Any,
    ) -> Result:
        """Run the pair under `floods`, with the patches in `without` off. Raises what a run raises."""
        return self.run(self.topology(*floods, server=server, **client), without=without, seed=seed, simulate=simulate)

    def run(
        self, topology: Topology, *, without: Iterable[int] = (), seed: int = 1, simulate: bool = False
    ) -> Result:
        """Run any topology; its captures are there unless it was simulated. Raises CannotRun, LabError."""
        if not simulate:
            self._need("root")
        out = self._runs / f"run-{len(self.directories) + 1}"
        options = RunOptions(
            patches=enabled(without, force=True),
            overrides=Overrides(),
            seed=seed,
            time_limit=TIME_LIMIT_S,
            stall_limit=STALL_LIMIT_S,
            out=out,
            force=True,
            capture=None if simulate else SNAPLEN,
            topology=topology.name,
        )
        self.directories.append(out)
        return (simulate_once if simulate else run_once)(topology, options, NoView())
