"""In which zones a request looks for memory, and in which order (`struct zonelist`, `policy_zonelist`).

A node's list has its own zones first, from the highest that the request may use down, then those of the other nodes
(node order). Kernel requests can use low memory only; user pages may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.mm.gfp import GFP_DMA, GFP_DMA32, GFP_HIGHMEM, GFP_ZONEMASK
from testbed.mm.sched import Task
from testbed.mm.zone_layout import ZoneType

if TYPE_CHECKING:
    from testbed.mm.zone import Zone


@dataclass(frozen=True, slots=True)
class Zonelist:
    """`zones` in the order they are tried. `high_zoneidx` is the highest zone asked for, `classzone` the kind of the
    first one there is, on which it depends how much lower zones keep back."""

    zones: tuple[Zone, ...]
    high_zoneidx: int
    classzone: int


class Zonelists:
    """The zonelists of a machine's zones."""

    def __init__(self, zones: Sequence[Zone]) -> None:
        self._kinds = {zone.span.kind for zone in zones}
        self._nodes = sorted({zone.span.node for zone in zones})
        self._by_kind = sorted(zones, key=lambda zone: -zone.span.kind)
        self.policy_zone = max(self._kinds)
        self._lists: dict[tuple[int, int, tuple[int, ...]], Zonelist] = {}
        self._local = {
            node: [self._make(node, gfp_mask, tuple(self._nodes)) for gfp_mask in range(GFP_ZONEMASK + 1)]
            for node in self._nodes
        }

    def gfp_zone(self, gfp_mask: int) -> ZoneType:
        """`gfp_zone`: the highest zone that a request may use. A zone the layout has not stands for NORMAL."""
        if gfp_mask & GFP_DMA and ZoneType.DMA in self._kinds:
            return ZoneType.DMA
        if gfp_mask & GFP_DMA32 and ZoneType.DMA32 in self._kinds:
            return ZoneType.DMA32
        return ZoneType.HIGHMEM if gfp_mask & GFP_HIGHMEM and ZoneType.HIGHMEM in self._kinds else ZoneType.NORMAL

    def node_zonelist(self, node: int, gfp_mask: int) -> Zonelist:
        """`node_zonelist`: every zone that the request may use, those of `node` first."""
        return self._local[node][gfp_mask & GFP_ZONEMASK]

    def of(self, gfp_mask: int, current: Task) -> Zonelist:
        """Where the request of a task looks: near it, or where its policy says. An interrupt follows no policy."""
        if current.mempolicy is None or current.in_interrupt:
            return self._local[current.node][gfp_mask & GFP_ZONEMASK]
        return self._with_nodemask(current.mempolicy.first_node(current.node), gfp_mask, current)

    def near(self, gfp_mask: int, current: Task, *, ignore_nodemask: bool) -> Zonelist:
        """Patch 06: where a request looks when it does without watermarks, whatever order its policy prefers."""
        if ignore_nodemask:
            return self.node_zonelist(current.node, gfp_mask)
        return self._with_nodemask(current.node, gfp_mask, current)

    def _with_nodemask(self, node: int, gfp_mask: int, current: Task) -> Zonelist:
        policy = current.mempolicy
        if policy is None or policy.mode != "bind" or self.gfp_zone(gfp_mask) < self.policy_zone:
            return self.node_zonelist(node, gfp_mask)
        key = (node, gfp_mask & GFP_ZONEMASK, policy.nodes)
        if key not in self._lists:
            self._lists[key] = self._make(*key)
        return self._lists[key]

    def _make(self, node: int, gfp_mask: int, nodemask: tuple[int, ...]) -> Zonelist:
        high_zoneidx = self.gfp_zone(gfp_mask)
        usable = [zone for zone in self._by_kind if zone.span.kind <= high_zoneidx and zone.span.node in nodemask]
        zones = tuple(sorted(usable, key=lambda zone: (zone.span.node - node) % (self._nodes[-1] + 1)))
        return Zonelist(zones, int(high_zoneidx), int(zones[0].span.kind if zones else high_zoneidx))
