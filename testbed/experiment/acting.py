"""Which patches can act on a client at all: some need a kind of machine that most clients are not.

Switching off a patch that cannot act shows nothing, and a host on which it cannot act says nothing about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from testbed.experiment.faults.step import Schedule
from testbed.hosts.kernel.switches import SWITCHES
from testbed.hosts.plan import ClientPlan
from testbed.mm.watermarks import PAGE_SIZE
from testbed.mm.zone_layout import zone_spans
from testbed.patches import ALWAYS_ACTING, PATCHES


def _writers_meet(client: ClientPlan, schedule: Schedule) -> bool:
    """Is min_free_kbytes written twice in the same moment, and has it watermarks of several zones to set?"""
    writes = Counter(step.time for step in schedule if step.what == (client.name, "min_free_kbytes"))
    zones = zone_spans(client.memory // PAGE_SIZE, client.zones, client.nodes)
    return len(zones) > 1 and max(writes.values(), default=0) > 1


_NEEDS: dict[int, Callable[[ClientPlan, Schedule], bool]] = {
    1: _writers_meet,
    3: lambda client, _schedule: client.slab == "slub",
    6: lambda client, _schedule: client.nodes > 1 and client.workload.mempolicy is not None,
    10: lambda client, _schedule: client.driver in ("frag", "vector"),
    11: lambda client, _schedule: client.driver == "page",
    13: lambda client, _schedule: client.slab == "slab",
}
"""What the patches that have `acts_on` ask of a client and of what is to happen to it."""


def acting(clients: Iterable[ClientPlan], schedule: Schedule = ()) -> frozenset[int]:
    """The numbers of the patches that can act on at least one of these clients; of none, those that act on any."""
    known = list(clients)
    if not known:
        return ALWAYS_ACTING
    return frozenset(number for number in PATCHES if any(_acts(number, client, schedule) for client in known))


def _acts(number: int, client: ClientPlan, schedule: Schedule) -> bool:
    """A patch acts on a real kernel if that can do without it."""
    if client.host == "kernel":
        return any(switch.patch == number and switch.slab in (None, client.slab) for switch in SWITCHES)
    return number not in _NEEDS or _NEEDS[number](client, schedule)
