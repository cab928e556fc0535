"""GFP flags, allocation flags, and who may use the emergency reserve (include/linux/gfp.h, mm/internal.h).

Flags are plain integers with the values of Linux 3.6: this is the innermost loop of the model. The kernel's
`__GFP_X` is `GFP_X` here where no composite has that name, and `X` otherwise keeps its leading underscores off.
"""

from __future__ import annotations

from typing import Final

from testbed.mm.sched import Task
from testbed.patches import Switches

GFP_DMA: Final = 0x01
GFP_HIGHMEM: Final = 0x02
GFP_DMA32: Final = 0x04
GFP_WAIT: Final = 0x10
GFP_HIGH: Final = 0x20
GFP_IO: Final = 0x40
GFP_FS: Final = 0x80
GFP_NOWARN: Final = 0x200
GFP_REPEAT: Final = 0x400
GFP_NOFAIL: Final = 0x800
GFP_NORETRY: Final = 0x1000
GFP_MEMALLOC: Final = 0x2000
GFP_NOMEMALLOC: Final = 0x10000

GFP_ATOMIC: Final = GFP_HIGH
GFP_NOIO: Final = GFP_WAIT
GFP_NOFS: Final = GFP_WAIT | GFP_IO
GFP_KERNEL: Final = GFP_WAIT | GFP_IO | GFP_FS
GFP_HIGHUSER_MOVABLE: Final = GFP_KERNEL | GFP_HIGHMEM
"""Without __GFP_HARDWALL and __GFP_MOVABLE, which mean nothing here."""
GFP_ZONEMASK: Final = GFP_DMA | GFP_HIGHMEM | GFP_DMA32

ALLOC_WMARK_MIN: Final = 0x00
ALLOC_WMARK_LOW: Final = 0x01
ALLOC_WMARK_HIGH: Final = 0x02
ALLOC_WMARK_MASK: Final = 0x03
ALLOC_NO_WATERMARKS: Final = 0x04
ALLOC_OOM: Final = 0x08
ALLOC_HARDER: Final = 0x10
ALLOC_HIGH: Final = 0x20
ALLOC_CPUSET: Final = 0x40


def reserve_flags(gfp_mask: int, current: Task, switches: Switches) -> int:
    """What lets this request below the watermarks: ALLOC_NO_WATERMARKS, a victim's ALLOC_OOM, or nothing.

    `__GFP_NOMEMALLOC` wins over everything. Patch 04 adds `__GFP_MEMALLOC` in any context; patch 05 makes PF_MEMALLOC
    count while a softirq is being served. (`__gfp_pfmemalloc_flags`, a part of `gfp_to_alloc_flags` until 4.14.)
    """
    if gfp_mask & GFP_NOMEMALLOC:
        return 0
    if gfp_mask & GFP_MEMALLOC and switches.gfp_memalloc:
        return ALLOC_NO_WATERMARKS
    if current.serving_softirq and current.pf_memalloc and switches.softirq_pf_memalloc:
        return ALLOC_NO_WATERMARKS
    if current.in_interrupt:
        return 0
    if current.pf_memalloc:
        return ALLOC_NO_WATERMARKS
    if current.memdie:
        return ALLOC_NO_WATERMARKS if switches.rules.oom_victim_reserve == "all" else ALLOC_OOM
    return 0


def gfp_pfmemalloc_allowed(gfp_mask: int, current: Task, switches: Switches) -> bool:
    """May this request use pages and objects of the reserve? (`gfp_pfmemalloc_allowed`)

    As V9's patch 02 introduced it, ALLOC_PFMEMALLOC asked only who is running; patches 04 and 05 turned it into the
    question whether the request may do without watermarks.
    """
    if not switches.gfp_memalloc and _alloc_pfmemalloc(switches):
        return current.pf_memalloc or current.memdie
    return bool(reserve_flags(gfp_mask, current, switches))


def _alloc_pfmemalloc(switches: Switches) -> bool:
    """Is patch 02 there as posted, and neither of the two that changed its rule?"""
    posted = switches.slab_pfmemalloc and switches.rules.pfmemalloc_marking == "slow path"
    return posted and not switches.gfp_memalloc and not switches.softirq_pf_memalloc


def gfp_to_alloc_flags(gfp_mask: int, current: Task, switches: Switches) -> int:
    """The slow path's allocation flags for a request (`gfp_to_alloc_flags`, mm/page_alloc.c)."""
    flags = ALLOC_WMARK_MIN | ALLOC_CPUSET
    if gfp_mask & GFP_HIGH:
        flags |= ALLOC_HIGH
    if not gfp_mask & GFP_WAIT:
        if not gfp_mask & GFP_NOMEMALLOC:
            flags |= ALLOC_HARDER
        if gfp_mask & GFP_HIGH or not switches.rules.harder_needs_high:
            flags &= ~ALLOC_CPUSET
    elif current.rt_task:
        if switches.rules.harder_needs_high:
            flags |= ALLOC_HIGH if current.in_task else 0
        elif not current.in_interrupt:
            flags |= ALLOC_HARDER
    return flags | reserve_flags(gfp_mask, current, switches)
