"""SLAB's arrays of free objects (struct array_cache): a stack, last freed first, where bit 0 of a pointer is a tag."""

from __future__ import annotations

from testbed.mm.slab_common import Slab
from testbed.mm.watermarks import PAGE_SIZE

SHARED_FACTOR = 8
"""The array shared by a node's CPUs holds so many batches."""
SLAB_HEADER, BUFCTL, OFF_SLAB = 48, 4, PAGE_SIZE >> 3
"""Bytes of `struct slab` and of its index for each object, and the object size from which they lie elsewhere."""


class ArrayCache:
    """Free objects and, for each, 1 in `tags` if bit 0 of its pointer is set (SLAB_OBJ_PFMEMALLOC)."""

    __slots__ = ("entries", "limit", "tags")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: list[Slab] = []
        self.tags = bytearray()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def room(self) -> int:
        """How many more objects it may hold."""
        return self.limit - len(self.entries)

    def push(self, entries: list[Slab], tags: bytes | bytearray) -> None:
        """Put objects on top."""
        self.entries += entries
        self.tags += tags

    def pop_oldest(self, count: int) -> tuple[list[Slab], bytearray]:
        """Remove the `count` objects at the bottom."""
        taken = self.entries[:count], self.tags[:count]
        del self.entries[:count], self.tags[:count]
        return taken

    def pop_newest(self, count: int) -> tuple[list[Slab], bytearray]:
        """Remove the top `count` objects; the topmost is last."""
        taken = self.entries[-count:], self.tags[-count:]
        del self.entries[-count:], self.tags[-count:]
        return taken


def cache_limit(object_size: int) -> int:
    """`enable_cpucache`: the most objects that a CPU's array holds; they move in batches of half of that."""
    if object_size > PAGE_SIZE:
        return 8
    if object_size > 1024:
        return 24
    return 54 if object_size > 256 else 120


def cache_estimate(object_size: int) -> int:
    """`cache_estimate`: objects in a slab of one page, beside its `struct slab` if the objects are small."""
    if object_size >= OFF_SLAB:
        return PAGE_SIZE // object_size
    objects = (PAGE_SIZE - SLAB_HEADER) // (object_size + BUFCTL)
    while objects * object_size + (SLAB_HEADER + objects * BUFCTL + 63 & ~63) > PAGE_SIZE:
        objects -= 1
    return objects
