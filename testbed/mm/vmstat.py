"""Event counters and gauges under the names of /proc/vmstat (3.6), plus the few that only a model can have.

Plain integer attributes, because they are bumped several times for every page.
"""

from __future__ import annotations

GAUGES = (
    "nr_active_anon",
    "nr_inactive_anon",
    "nr_slab_unreclaimable",
    "nr_isolated_anon",
    "nr_writeback",
    "nr_bdi_congested",
    "nr_throttled",
)
"""`nr_bdi_congested` is a variable of the kernel (3.6), 1 while the queue of writes is congested. `nr_throttled` is the
model's own: tasks asleep on pfmemalloc_wait.
"""

EVENTS = (
    "pgalloc",
    "pgfree",
    "pgfault",
    "pgmajfault",
    "pgactivate",
    "pgdeactivate",
    "pgrefill",
    "pgscan_anon",
    "pgsteal_anon",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "pgscan_direct_throttle",
    "pgpgin",
    "pgpgout",
    "pswpin",
    "pswpout",
    "swap_ra",
    "swap_ra_hit",
    "allocstall",
    "pageoutrun",
    "kswapd_wake",
    "kswapd_low_wmark_hit_quickly",
    "kswapd_high_wmark_hit_quickly",
    "kswapd_skip_congestion_wait",
    "nr_vmscan_write",
    "nr_throttled_written",
    "oom_kill",
    "page_allocation_failure",
    "sigbus",
)

RESERVE_EVENTS = (
    "no_watermark_allocs",
    "no_watermark_failures",
    "gfp_memalloc_allocs",
    "gfp_memalloc_refused",
    "softirq_pf_memalloc_allocs",
    "softirq_pf_memalloc_refused",
    "slab_pfmemalloc_pages",
    "slab_pfmemalloc_leaked",
    "slab_fast_path_refused",
    "no_watermark_slabs",
    "slab_pfmemalloc_mismatch",
    "mempolicy_ignored",
    "mempolicy_kept",
    "wmark_setups_mixed",
    "wmark_setups_serialized",
    "wmark_setups_torn",
    "slab_partial_leaked",
    "slab_pfmemalloc_cleared",
    "slab_untagged_leaked",
    "slab_misaligned_objects",
    "slab_inlined",
    "slab_not_inlined",
    "throttle_low_reserve",
    "throttle_waits",
    "throttle_uncounted",
)
"""What the patches do to the reserve; not in any kernel's vmstat."""


class VmStat:
    """All memory counters of one host."""

    __slots__ = GAUGES + EVENTS + RESERVE_EVENTS

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    nr_active_anon: int
    nr_inactive_anon: int
    nr_slab_unreclaimable: int
    nr_isolated_anon: int
    nr_writeback: int
    nr_bdi_congested: int
    nr_throttled: int
    pgalloc: int
    pgfree: int
    pgfault: int
    pgmajfault: int
    pgactivate: int
    pgdeactivate: int
    pgrefill: int
    pgscan_anon: int
    pgsteal_anon: int
    pgscan_kswapd: int
    pgscan_direct: int
    pgsteal_kswapd: int
    pgsteal_direct: int
    pgscan_direct_throttle: int
    pgpgin: int
    pgpgout: int
    pswpin: int
    pswpout: int
    swap_ra: int
    swap_ra_hit: int
    allocstall: int
    pageoutrun: int
    kswapd_wake: int
    kswapd_low_wmark_hit_quickly: int
    kswapd_high_wmark_hit_quickly: int
    kswapd_skip_congestion_wait: int
    nr_vmscan_write: int
    nr_throttled_written: int
    oom_kill: int
    page_allocation_failure: int
    sigbus: int
    no_watermark_allocs: int
    no_watermark_failures: int
    gfp_memalloc_allocs: int
    gfp_memalloc_refused: int
    softirq_pf_memalloc_allocs: int
    softirq_pf_memalloc_refused: int
    slab_pfmemalloc_pages: int
    slab_pfmemalloc_leaked: int
    slab_fast_path_refused: int
    no_watermark_slabs: int
    slab_pfmemalloc_mismatch: int
    mempolicy_ignored: int
    mempolicy_kept: int
    wmark_setups_mixed: int
    wmark_setups_serialized: int
    wmark_setups_torn: int
    slab_partial_leaked: int
    slab_pfmemalloc_cleared: int
    slab_untagged_leaked: int
    slab_misaligned_objects: int
    slab_inlined: int
    slab_not_inlined: int
    throttle_low_reserve: int
    throttle_waits: int
    throttle_uncounted: int

    def snapshot(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}
