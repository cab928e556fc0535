"""Which patches can act on a client at all: some need a kind of machine that most clients are not.

Switching off a patch that cannot act shows nothing, and a host on which it cannot act says nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from testbed.hosts.kernel.switches import SWITCHES
from testbed.hosts.plan import ClientPlan
from testbed.patches import ALWAYS_ACTING, PATCHES

_NEEDS: dict[int, Callable[[ClientPlan], bool]] = {
    1: lambda client: False,
    6: lambda client: client.nodes > 1,
    10: lambda client: client.driver == "frag",
    11: lambda client: client.driver == "page",
    13: lambda client: client.slab == "slab",
}
"""What the patches that have `acts_on` ask of a client; nothing here ever writes min_free_kbytes twice."""


def acting(clients: Iterable[ClientPlan]) -> frozenset[int]:
    """The numbers of the patches that can act on at least one of these clients; of none, those that act on any."""
    known = list(clients)
    if not known:
        return ALWAYS_ACTING
    return frozenset(number for number in PATCHES if any(_acts(number, client) for client in known))


def _acts(number: int, client: ClientPlan) -> bool:
    """A patch acts on a real kernel if that can do without it."""
    if client.host == "kernel":
        return any(switch.patch == number and switch.slab in (None, client.slab) for switch in SWITCHES)
    return number not in _NEEDS or _NEEDS[number](client)
