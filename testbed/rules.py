"""What a kernel version does in the places the series touches, beside the 16 patches: one table, a row for each rule.

A preset is a set of patches together with the rules of the kernel they run in. The columns are 3.4 before the
series, 3.4 with the series as posted (V9), 3.6 where it was merged, and 6.1. Model code asks `rules.NAME`.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal


def _rule(default: Any, why: str) -> Any:
    return field(default=default, metadata={"why": why})


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one kernel; the defaults are those of 3.4 with V9 applied. `why(name)` says what a rule is about."""

    # --- page allocator ---
    pfmemalloc_marking: Literal["slow path", "no watermarks"] = _rule(
        "slow path",
        "which pages of an entitled caller are marked: all that the slow path found, or (V10 on) those below min",
    )
    reclaim_retry_no_watermarks: bool = _rule(
        True, "the attempt after direct reclaim keeps ALLOC_NO_WATERMARKS (V10 masked it out)"
    )
    watermark_scale_factor: int = _rule(
        0, "least gap between watermarks, in 1/10000 of the zone (4.6: watermarks grow with memory)"
    )
    min_free_kbytes_ceiling: int = _rule(65536, "largest default min_free_kbytes, KiB")
    harder_needs_high: bool = _rule(
        False, "only a __GFP_HIGH request may go a quarter further for not sleeping (6.3 and its backports)"
    )
    order_checks_free_area: bool = _rule(
        False, "above order 0 one free block that is large enough will do, instead of a mark for each order (4.4)"
    )
    oom_victim_reserve: Literal["all", "half"] = _rule(
        "all", "how much of the reserve a victim of the OOM killer may use (4.14: ALLOC_OOM, and not marked)"
    )
    max_reclaim_retries: int | None = _rule(
        None, "rounds of direct reclaim without progress until the OOM killer is called (None: it is at once)"
    )
    wq_worker_sleeps: bool = _rule(
        False, "a workqueue's worker that found no memory sleeps for a jiffy before it tries again (4.7)"
    )
    no_watermarks_ignores_nodemask: bool = _rule(
        False, "patch 06 ignores the nodes that a policy binds to, not only the order it prefers (4.19)"
    )
    pcp_batch_ceiling: int = _rule(128, "pages that limit the batch of a per-cpu list: 512 KiB, or (4.20) 1 MiB")
    pcp_high_batches: int = _rule(6, "batches on a per-cpu list until some of it goes back (5.14: 4 at least)")
    pcp_high_is_low_watermark: bool = _rule(
        False, "a per-cpu list grows to the low watermark unless kswapd is at work, and gives back more at once (5.14)"
    )
    # --- slab allocators ---
    slub_get_partial_match: bool = _rule(
        True,
        "a partial slab of the reserve is passed over for an ordinary request (3.6-rc; V9 as posted gave one object "
        "of it each time, and so lost its reserve to sockets that nobody reads: it is taken with the fix here)",
    )
    slub_high_order_nomemalloc: bool = _rule(
        False,
        "a caller that may wait asks for a larger slab outside the reserve and without reclaim",
    )
    slab_pfmemalloc: Literal["tags", "lists"] = _rule(
        "tags", "how SLAB keeps reserve objects apart: bit 0 of the pointer, or (4.6) never in the array cache"
    )
    # --- reclaim ---
    anon_starts_active: bool = _rule(True, "a new anonymous page goes to the active list (until 5.9)")
    cache_trim_mode: bool = _rule(
        False, "page cache that nobody uses goes before any anonymous page, while there is enough of it (5.5)"
    )
    kswapd_sleeps_with_waiters: bool = _rule(
        False, "kswapd may sleep once it has woken the throttled (3.19: a killed waiter made it spin)"
    )
    throttle_spares_dying: bool = _rule(
        False, "a task with a fatal signal is not throttled, and only a throttled one skips reclaim for it (3.8, 6.1)"
    )
    max_kswapd_failures: int | None = _rule(
        None, "kswapd runs without progress after which nobody is throttled and kswapd gives up (4.12)"
    )
    throttle_ignores_unreclaimable: bool = _rule(
        False, "zones with nothing to reclaim do not count in the test of the reserve (4.2)"
    )
    reclaim_throttle: bool = _rule(
        False, "reclaimers wait for writeback and progress by name and time instead of for congestion (5.16)"
    )
    too_many_isolated: Literal["inactive", "eighth"] = _rule(
        "inactive", "a direct reclaimer waits when more pages are isolated than inactive, or than 1/8 of them"
    )
    writeback_activates: bool = _rule(
        False, "a page found under writeback is kept on the active list until its write ends (4.11)"
    )
    anon_is_dirtyable: bool = _rule(
        True, "anonymous memory counts as memory that page cache may come to fill, in the limit of dirty pages (3.14)"
    )
    # --- swap and block layer ---
    swap_readahead: Literal["cluster", "vma"] = _rule(
        "cluster", "slots in an aligned window of 8, or neighbours in the mapping by how often that helped"
    )
    nr_requests: int = _rule(
        128, "requests of each direction until the submitter sleeps (mq-deadline: twice a queue's depth of 128, shared)"
    )
    nbd_sends_from: Literal["kthread", "workqueue"] = _rule(
        "kthread", "who sends nbd's requests: a thread of its own, or (4.10, blk-mq) a worker of kblockd"
    )
    shared_tags: bool = _rule(False, "reads and writes share the requests (blk-mq) instead of having so many each")
    max_sectors_kb: float = _rule(127.5, "the largest request, KiB (3.10: nbd makes it a whole number of pages)")
    # --- network ---
    sendmsg_waits_locked: bool = _rule(
        False,
        "a socket stays locked while its sender waits for a page, so that acknowledgements and replies wait too (every "
        "kernel does that; of 3.4 it is told that without the series small receive buffers let it finish, which it "
        "does here only without this; 6.1 was seen to hang)",
    )
    sk_page_frag_order: int = _rule(0, "order of the pages that a TCP sender copies into, tried first (3.7: 32 KiB)")
    rx_buffer: Literal["kmalloc", "fragment"] = _rule(
        "kmalloc", "a linear receive buffer is a slab object, or (3.5) cut from a page"
    )
    build_skb_pfmemalloc: bool = _rule(
        False, "an skb built around a fragment is marked when its page is from the reserve (4.1)"
    )
    page_frag_order: int = _rule(0, "order of the pages that receive fragments are cut from, tried first")
    page_frag_recovery: bool = _rule(
        False, "a fragment page from the reserve is given back when it is used up, not recycled (5.11)"
    )
    receive_needs_memalloc_socks: bool = _rule(
        False, "packets are treated as pfmemalloc only while there is a SOCK_MEMALLOC socket (3.6)"
    )
    sk_add_backlog_filter: bool = _rule(
        False, "a reserve packet for a busy ordinary socket is dropped, not put on its backlog (4.3; a BUG before)"
    )
    udp_backlog: bool = _rule(
        True, "a datagram for a socket that a task owns waits in its backlog (4.10: it is queued at once)"
    )
    sk_rmem_schedule_pfmemalloc: bool = _rule(
        False, "a reserve packet for the swap socket may exceed tcp_mem (with the swap-over-NFS series, 3.6)"
    )
    tcp_mem_share: int = _rule(8, "tcp_mem's second limit is one part in so many of low memory (16 from 4.2)")
    protocol_8021ad: bool = _rule(False, "802.1AD is on the list of protocols that may use the reserve")
    pfmemalloc_drop_is_rcvbuf_error: bool = _rule(
        True, "a dropped reserve datagram also counts as RcvbufErrors (no counter of its own until 4.11)"
    )
    # --- what can be read ---
    names: Literal["3.6", "6.1"] = _rule("3.6", "the version whose names and formats /proc and the tracepoints have")


NAMES = tuple(item.name for item in fields(Rules))

V9 = Rules()
LINUX_3_6 = Rules(
    pfmemalloc_marking="no watermarks",
    reclaim_retry_no_watermarks=False,
    rx_buffer="fragment",
    receive_needs_memalloc_socks=True,
    sk_rmem_schedule_pfmemalloc=True,
)
LINUX_6_1 = Rules(
    pfmemalloc_marking="no watermarks",
    reclaim_retry_no_watermarks=False,
    watermark_scale_factor=10,
    min_free_kbytes_ceiling=262144,
    harder_needs_high=True,
    order_checks_free_area=True,
    oom_victim_reserve="half",
    max_reclaim_retries=16,
    wq_worker_sleeps=True,
    no_watermarks_ignores_nodemask=True,
    pcp_batch_ceiling=256,
    pcp_high_batches=4,
    pcp_high_is_low_watermark=True,
    slub_high_order_nomemalloc=True,
    slab_pfmemalloc="lists",
    anon_starts_active=False,
    cache_trim_mode=True,
    kswapd_sleeps_with_waiters=True,
    throttle_spares_dying=True,
    max_kswapd_failures=16,
    throttle_ignores_unreclaimable=True,
    reclaim_throttle=True,
    anon_is_dirtyable=False,
    too_many_isolated="eighth",
    writeback_activates=True,
    swap_readahead="vma",
    nbd_sends_from="workqueue",
    nr_requests=256,
    shared_tags=True,
    max_sectors_kb=128,
    sendmsg_waits_locked=True,
    sk_page_frag_order=3,
    rx_buffer="fragment",
    build_skb_pfmemalloc=True,
    page_frag_order=3,
    page_frag_recovery=True,
    receive_needs_memalloc_socks=True,
    sk_add_backlog_filter=True,
    udp_backlog=False,
    sk_rmem_schedule_pfmemalloc=True,
    tcp_mem_share=16,
    protocol_8021ad=True,
    pfmemalloc_drop_is_rcvbuf_error=False,
    names="6.1",
)


def why(name: str) -> str:
    """What the rule `name` is about, in one line. Raises KeyError for an unknown name."""
    row: Field[Any] = {item.name: item for item in fields(Rules)}[name]
    return str(row.metadata["why"])


def differences(one: Rules, other: Rules) -> list[str]:
    """The names of the rules in which two kernels differ, in the order of the table."""
    return [name for name in NAMES if getattr(one, name) != getattr(other, name)]
