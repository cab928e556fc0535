"""How a machine's memory is divided into nodes and zones, and what lower zones keep from requests for higher ones.

`normal` is one zone, as User Mode Linux has it. `x86_64` has DMA up to 16 MiB, DMA32 up to 4 GiB and NORMAL above;
`i386` has DMA, NORMAL up to 896 MiB and HIGHMEM above. Two nodes have half of memory each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

PAGES_PER_MIB = 256


class ZoneType(IntEnum):
    """`enum zone_type`; the order is that of addresses."""

    DMA = 0
    DMA32 = 1
    NORMAL = 2
    HIGHMEM = 3

    @property
    def title(self) -> str:
        """The zone's name in /proc/zoneinfo."""
        return {"NORMAL": "Normal", "HIGHMEM": "HighMem"}.get(self.name, self.name)


LAYOUTS: dict[str, dict[ZoneType, int | None]] = {
    "normal": {ZoneType.NORMAL: None},
    "x86_64": {ZoneType.DMA: 16 * PAGES_PER_MIB, ZoneType.DMA32: 4096 * PAGES_PER_MIB, ZoneType.NORMAL: None},
    "i386": {ZoneType.DMA: 16 * PAGES_PER_MIB, ZoneType.NORMAL: 896 * PAGES_PER_MIB, ZoneType.HIGHMEM: None},
}
"""The zones of each layout, with the page frame number at which they end (None: at the end of memory)."""

MAX_NUMNODES = 2

LOWMEM_RESERVE_RATIO = {ZoneType.DMA: 256, ZoneType.DMA32: 256, ZoneType.NORMAL: 32}
"""`sysctl_lowmem_reserve_ratio`."""


@dataclass(frozen=True, slots=True)
class ZoneSpan:
    """One zone: its kind, its node, its first page frame and its number of pages."""

    kind: ZoneType
    node: int
    start: int
    pages: int


def zone_spans(pages: int, layout: str = "normal", nodes: int = 1) -> list[ZoneSpan]:
    """The zones of a machine with `pages` pages, by address; zones without a page are left out.

    Raises:
        ValueError: an unknown layout, or a number of nodes that the model does not have.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown zone layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if not 1 <= nodes <= MAX_NUMNODES:
        raise ValueError(f"a machine has 1 to {MAX_NUMNODES} memory nodes, not {nodes}")
    node_starts = [pages * node // nodes for node in range(nodes + 1)]
    spans = []
    for node, (first, last) in enumerate(pairwise(node_starts)):
        start = first
        for kind, limit in LAYOUTS[layout].items():
            end = last if limit is None else min(last, limit)
            if end > start:
                spans.append(ZoneSpan(kind, node, start, end - start))
                start = end
    return spans


def lowmem_reserve(span: ZoneSpan, spans: Sequence[ZoneSpan]) -> tuple[int, ...]:
    """`setup_per_zone_lowmem_reserve`: for each class of request, the pages of this zone that it must leave alone.

    They are a share of the higher zones that the request could have used: who can live there should.
    """
    higher = [other for other in spans if other.node == span.node and other.kind > span.kind]
    ratio = LOWMEM_RESERVE_RATIO.get(span.kind, 1)
    return tuple(sum(other.pages for other in higher if other.kind <= kind) // ratio for kind in ZoneType)
