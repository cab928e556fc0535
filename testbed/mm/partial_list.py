"""SLUB's list of a node's partial slabs (`kmem_cache_node.partial`).

It is a list, so what is loaded together is a slice of it. Each slab knows its rank: ranks grow from head to tail, so
one that is to leave from the middle is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter

from testbed.mm.slab_common import Slab

_rank = attrgetter("rank")


class PartialList(list[Slab]):
    """Partial slabs, head first; `nr_pfmemalloc` of them are pfmemalloc. Only its own methods change it."""

    __slots__ = ("nr_pfmemalloc",)

    def __init__(self) -> None:
        super().__init__()
        self.nr_pfmemalloc = 0

    def add_head(self, slab: Slab) -> None:
        """`add_partial` with DEACTIVATE_TO_HEAD."""
        slab.rank = self[0].rank - 1 if self else 0
        self.insert(0, slab)
        self.nr_pfmemalloc += slab.pfmemalloc

    def add_tail(self, slabs: list[Slab]) -> None:
        """`add_partial` with DEACTIVATE_TO_TAIL, for one slab after the other."""
        first = self[-1].rank + 1 if self else 0
        for rank, slab in enumerate(slabs, first):
            slab.rank = rank
        self += slabs
        self.nr_pfmemalloc += sum([slab.pfmemalloc for slab in slabs])

    def remove(self, slab: Slab) -> None:
        """`remove_partial` for a slab of this list."""
        del self[bisect_left(self, slab.rank, key=_rank)]
        self.nr_pfmemalloc -= slab.pfmemalloc

    def remove_all(self) -> None:
        """`remove_partial` for each."""
        self.clear()
        self.nr_pfmemalloc = 0

    def first(self, count: int, *, passing_over: bool) -> list[Slab]:
        """The first `count` slabs, or all if there are fewer, maybe `passing_over` those that are pfmemalloc."""
        if not passing_over:
            return self[:count]
        found: list[Slab] = []
        position = 0
        while len(found) < count and position < len(self):
            looked_at = self[position : position + count]
            found += [slab for slab in looked_at if not slab.pfmemalloc]
            position += len(looked_at)
        return found[:count]

    def remove_first(self, slabs: list[Slab], *, passing_over: bool) -> None:
        """`remove_partial` for slabs that `first` has found, from the first on."""
        end = bisect_left(self, slabs[-1].rank, key=_rank) + 1 if slabs and passing_over else len(slabs)
        if end > len(slabs):
            self[:end] = [slab for slab in self[:end] if slab.pfmemalloc]
            return
        del self[:end]
        if self.nr_pfmemalloc and not passing_over:
            self.nr_pfmemalloc -= sum([slab.pfmemalloc for slab in slabs])
