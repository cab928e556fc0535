"""Proof that each patch's switch took effect: how often the patch had an occasion to act, and how often it did.

With a patch on, occasions without action mean that the switch is broken; with it off, so does any action. Both sides
are counters taken where the patched code runs, none of which another patch produces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.net.snmp import NetStat
from testbed.patches import PATCHES


def witnesses(counters: Mapping[str, int], netstat: NetStat, nbd_sends: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Opportunities and witnesses by patch number (as text), for the patches that can act on this client.

    `nbd_sends` is how many requests nbd_thread sent with PF_MEMALLOC and how many without.
    """
    c = counters
    with_memalloc, without_memalloc = nbd_sends
    rows: dict[int, tuple[int, int, str]] = {
        1: (
            c["wmark_setups_serialized"] + c["wmark_setups_mixed"],
            c["wmark_setups_serialized"],
            "writers of min_free_kbytes that waited for another",
        ),
        2: (c["no_watermark_slabs"], c["slab_pfmemalloc_pages"], "slab pages from the reserve marked pfmemalloc"),
        3: (
            c["slab_pfmemalloc_leaked"] + c["slab_fast_path_refused"],
            c["slab_pfmemalloc_leaked"],
            "unentitled fast-path requests served from a pfmemalloc slab",
        ),
        4: (
            c["gfp_memalloc_allocs"] + c["gfp_memalloc_refused"],
            c["gfp_memalloc_allocs"],
            "pages that __GFP_MEMALLOC got from the reserve",
        ),
        5: (
            c["softirq_pf_memalloc_allocs"] + c["softirq_pf_memalloc_refused"],
            c["softirq_pf_memalloc_allocs"],
            "pages that a softirq with PF_MEMALLOC got from the reserve",
        ),
        6: (
            c["mempolicy_ignored"] + c["mempolicy_kept"],
            c["mempolicy_ignored"],
            "pages of the reserve taken near the CPU, whatever the task's memory policy",
        ),
        7: (
            netstat.sk_allocation_memalloc + netstat.sk_allocation_missing,
            netstat.sk_allocation_memalloc,
            "control packets of the swap socket asked for with __GFP_MEMALLOC",
        ),
        8: (
            netstat.sk_set_memalloc + netstat.sk_set_memalloc_missing,
            netstat.sk_set_memalloc,
            "sockets made SOCK_MEMALLOC",
        ),
        9: (
            netstat.rx_skb_pfmemalloc + netstat.rx_skb_reserve_refused,
            netstat.rx_skb_pfmemalloc,
            "receive buffers taken from the reserve",
        ),
        10: (
            netstat.skb_frag_pfmemalloc + netstat.skb_frag_unmarked,
            netstat.skb_frag_pfmemalloc,
            "skbs marked for a fragment in the reserve",
        ),
        11: (
            netstat.netdev_page_pfmemalloc + netstat.netdev_page_reserve_refused,
            netstat.netdev_page_pfmemalloc,
            "pages of the reserve that the driver received into",
        ),
        12: (
            netstat.receive_pf_memalloc + netstat.receive_pf_memalloc_skipped,
            netstat.receive_pf_memalloc,
            "skbs processed with PF_MEMALLOC",
        ),
        13: (
            c["slab_inlined"] + c["slab_not_inlined"],
            c["slab_inlined"],
            "SLAB objects moved without a look at their tags while there was no SOCK_MEMALLOC socket",
        ),
        14: (with_memalloc + without_memalloc, with_memalloc, "requests that nbd_thread sent with PF_MEMALLOC"),
        15: (c["throttle_low_reserve"], c["throttle_waits"], "direct reclaimers put to sleep"),
        16: (c["throttle_waits"], c["pgscan_direct_throttle"], "sleeps counted in pgscan_direct_throttle"),
    }
    return {
        str(number): {"opportunity": opportunity, "witness": witness, "what": what, "title": PATCHES[number].title}
        for number, (opportunity, witness, what) in rows.items()
    }
