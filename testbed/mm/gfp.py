"""GFP flags, allocation flags, and who may use the emergency reserve (include/linux/gfp.h, mm/internal.h).

Flags are plain integers with the values of Linux 3.6: this is the innermost loop of the model. The kernel's
`__GFP_X` is `GFP_X` here where no composite has that name, and `X` otherwise keeps its leading underscores off.
"""

from __future__ import annotations

from typing import Final

from testbed.mm.sched import Task
from testbed.patches import Switches

GFP_WAIT: Final = 0x10
GFP_HIGH: Final = 0x20
GFP_IO: Final = 0x40
GFP_FS: Final = 0x80
GFP_NOWARN: Final = 0x200
GFP_NOFAIL: Final = 0x800
GFP_NORETRY: Final = 0x1000
GFP_MEMALLOC: Final = 0x2000
GFP_NOMEMALLOC: Final = 0x10000

GFP_ATOMIC: Final = GFP_HIGH
GFP_NOIO: Final = GFP_WAIT
GFP_NOFS: Final = GFP_WAIT | GFP_IO
GFP_KERNEL: Final = GFP_WAIT | GFP_IO | GFP_FS
GFP_HIGHUSER_MOVABLE: Final = GFP_KERNEL

ALLOC_WMARK_MIN: Final = 0x00
ALLOC_WMARK_LOW: Final = 0x01
ALLOC_WMARK_HIGH: Final = 0x02
ALLOC_WMARK_MASK: Final = 0x03
ALLOC_NO_WATERMARKS: Final = 0x04
ALLOC_HARDER: Final = 0x10
ALLOC_HIGH: Final = 0x20
ALLOC_CPUSET: Final = 0x40


def gfp_pfmemalloc_allowed(gfp_mask: int, current: Task, switches: Switches) -> bool:
    """May this request dip into the reserve below the min watermark? (`gfp_pfmemalloc_allowed`, 3.6)

    `__GFP_NOMEMALLOC` wins over everything. Patch 04 adds `__GFP_MEMALLOC` in any context; patch 05 makes
    PF_MEMALLOC count while a softirq is being served.
    """
    if gfp_mask & GFP_NOMEMALLOC:
        return False
    if gfp_mask & GFP_MEMALLOC and switches.gfp_memalloc:
        return True
    if current.serving_softirq and current.pf_memalloc and switches.softirq_pf_memalloc:
        return True
    return not current.in_interrupt and (current.pf_memalloc or current.memdie)


def gfp_to_alloc_flags(gfp_mask: int, current: Task, switches: Switches) -> int:
    """The slow path's allocation flags for a request (`gfp_to_alloc_flags`, mm/page_alloc.c, 3.6)."""
    flags = ALLOC_WMARK_MIN | ALLOC_CPUSET
    if gfp_mask & GFP_HIGH:
        flags |= ALLOC_HIGH
    if not gfp_mask & GFP_WAIT:
        if not gfp_mask & GFP_NOMEMALLOC:
            flags |= ALLOC_HARDER
        flags &= ~ALLOC_CPUSET
    if gfp_pfmemalloc_allowed(gfp_mask, current, switches):
        flags |= ALLOC_NO_WATERMARKS
    return flags
