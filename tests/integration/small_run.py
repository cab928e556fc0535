"""Small experiments on real namespaces: a few megabytes of RAM, over in seconds, and what they leave on the machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.coordinator import Limits, RunRecord
from testbed.experiment.plan import Overrides, Plan, resolve
from testbed.experiment.run import execute
from testbed.experiment.topology import Traffic
from testbed.hosts.messages import Event, Sample
from testbed.patches import PATCHES
from testbed.size import parse_size

ALL_ON = frozenset(PATCHES)
ALL_OFF: frozenset[int] = frozenset()
LIMITS = Limits(time=120.0, stall=4.0)
RING = 64


class Silent:
    """An observer that only keeps events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def sample(self, sample: Sample) -> None:
        return

    def event(self, event: Event) -> None:
        self.events.append(event)


def small_plan(
    *floods: Traffic,
    program: str = "builtin",
    gso: bool = True,
    bystanders: Iterable[Bystander] = (Bystander(count=3),),
    overrides: Overrides | None = None,
    memory: str = "16M",
    neighbour_timeout: float | None = None,
) -> Plan:
    """One client with 16 MiB of RAM, 8 tasks that touch 2.5 times that, a server, and a neighbour that may flood."""
    topology = Topology("small")
    server = topology.add(NbdServer("server", program=program))
    client = topology.add(
        SwapClient(
            "client",
            swap=server,
            memory=memory,
            ring=RING,
            gso=gso,
            bystanders=list(bystanders),
            neighbour_timeout=neighbour_timeout,
        )
    )
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=8, total=parse_size(memory) * 5 // 2))
    for flood in floods:
        topology.flood(noise, client, flood)
    return resolve(topology, overrides)


def run_plan(plan: Plan, patches: frozenset[int] = ALL_ON, limits: Limits = LIMITS, seed: int = 1) -> RunRecord:
    """Run a plan once, quietly."""
    return execute(plan, patches, seed, limits, Silent())


def network_namespaces(pids: Iterable[int] | None = None) -> set[int]:
    """Inode numbers of the network namespaces that these processes (None: all) are in or hold open."""
    found: set[int] = set()
    everybody = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    for pid in everybody if pids is None else pids:
        process = Path("/proc") / str(pid)
        try:
            found.add((process / "ns" / "net").stat().st_ino)
            for descriptor in (process / "fd").iterdir():
                target = str(descriptor.readlink())
                if target.startswith("net:["):
                    found.add(int(target[5:-1]))
        except OSError:
            continue
    return found


def mounts() -> list[str]:
    """Mount points of this mount namespace."""
    return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


