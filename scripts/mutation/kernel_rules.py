"""Every row of testbed/rules.py, stuck at what the earlier kernels do and at what the later ones do."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.mutation.mutation import Mutation
from testbed.rules import why

BACKLOG = "tests/net/test_backlog.py"
DEV = "tests/net/test_receive_rules.py"
DRIVER = "tests/net/test_rx_driver.py"
FRAG = "tests/net/test_page_frag.py"
GFP = "tests/mm/test_gfp.py"
NBD = "tests/hosts/test_nbd_device.py"
NUMA = "tests/mm/test_numa.py"
PCP = "tests/mm/test_per_cpu_pages.py"
RECLAIM = "tests/mm/test_reclaim.py"
SK_MEM = "tests/net/test_sk_mem.py"
SLUB = "tests/mm/test_slub.py"
SLOWPATH = "tests/mm/test_slowpath.py"
ORACLES = "tests/mm/test_oracles.py"
TCP = "tests/net/test_tcp_memory.py"
PLAN = "tests/experiment/test_plan.py"
PROC = "tests/hosts/test_proc_files.py"
TRACE = "tests/hosts/test_tracepoints.py"
VECTORS = "tests/test_vectors.py"
WATERMARKS = "tests/mm/test_watermarks.py"
ZONES = "tests/mm/test_zones.py"


def _stuck(name: str, file: str, reads: str, values: tuple[str, str], *tests: str, at: str = "") -> Iterator[Mutation]:
    """The place in `file` (below testbed/) that reads the rule `name`, with the earlier and the later of `values`.

    `at` tells two places in one file apart.
    """
    place = at or file.removesuffix(".py").rpartition("/")[2]
    for which, value in zip(("earlier", "later"), values, strict=True):
        yield Mutation(f"{name}-{place}-{which}", why(name), f"testbed/{file}", reads, value, tests)


OFF_ON = ("False", "True")
ON_OFF = ("True", "False")
RT_TASK = ("        if False:", "        if True:")

KERNEL_RULES = (
    *_stuck(
        "pfmemalloc_marking",
        "mm/page_alloc.py",
        'switches.rules.pfmemalloc_marking == "slow path"',
        ON_OFF,
        "tests/mm/test_page_alloc.py",
    ),
    *_stuck("pfmemalloc_marking", "mm/gfp.py", 'switches.rules.pfmemalloc_marking == "slow path"', ON_OFF, GFP),
    *_stuck(
        "reclaim_retry_no_watermarks",
        "mm/page_alloc.py",
        "self.switches.rules.reclaim_retry_no_watermarks",
        ON_OFF,
        SLOWPATH,
    ),
    *_stuck(
        "watermark_scale_factor",
        "mm/watermarks.py",
        "if not rules.watermark_scale_factor:",
        ("if True:", "if False:"),
        WATERMARKS,
    ),
    *_stuck(
        "min_free_kbytes_ceiling", "mm/watermarks.py", "rules.min_free_kbytes_ceiling", ("65536", "262144"), WATERMARKS
    ),
    *_stuck("harder_needs_high", "mm/zone.py", "rules.harder_needs_high", OFF_ON, ZONES),
    *_stuck("harder_needs_high", "mm/gfp.py", "        if switches.rules.harder_needs_high:", RT_TASK, GFP),
    *_stuck("harder_needs_high", "mm/gfp.py", "not switches.rules.harder_needs_high", ON_OFF, ORACLES, at="cpuset"),
    *_stuck("order_checks_free_area", "mm/zone.py", "self.rules.order_checks_free_area", OFF_ON, ZONES),
    *_stuck("oom_victim_reserve", "mm/gfp.py", 'switches.rules.oom_victim_reserve == "all"', ON_OFF, GFP),
    *_stuck(
        "oom_victim_reserve",
        "mm/page_alloc.py",
        'self.switches.rules.oom_victim_reserve == "all"',
        ON_OFF,
        SLOWPATH,
    ),
    *_stuck(
        "max_reclaim_retries",
        "mm/page_alloc.py",
        "(self.switches.rules.max_reclaim_retries or 0)",
        ("0", "16"),
        SLOWPATH,
    ),
    *_stuck("wq_worker_sleeps", "mm/page_alloc.py", "self.switches.rules.wq_worker_sleeps", OFF_ON, SLOWPATH),
    *_stuck(
        "no_watermarks_ignores_nodemask",
        "mm/page_alloc.py",
        "self.switches.rules.no_watermarks_ignores_nodemask",
        OFF_ON,
        NUMA,
    ),
    *_stuck("pcp_batch_ceiling", "mm/per_cpu_pages.py", "rules.pcp_batch_ceiling", ("128", "256"), PCP),
    *_stuck(
        "pcp_high_is_low_watermark",
        "mm/per_cpu_pages.py",
        "= rules.pcp_high_is_low_watermark",
        ("= False", "= True"),
        PCP,
    ),
    *_stuck("pcp_high_batches", "mm/per_cpu_pages.py", "rules.pcp_high_batches", ("6", "4"), PCP),
    *_stuck("anon_starts_active", "mm/memory.py", "rules.anon_starts_active", ON_OFF, VECTORS),
    *_stuck("anon_starts_active", "mm/vmscan.py", "self.rules.anon_starts_active", ON_OFF, VECTORS),
    *_stuck("cache_trim_mode", "mm/vmscan.py", "self.rules.cache_trim_mode", OFF_ON, RECLAIM),
    *_stuck(
        "kswapd_sleeps_with_waiters",
        "mm/kswapd.py",
        "self.rules.kswapd_sleeps_with_waiters",
        OFF_ON,
        VECTORS,
    ),
    *_stuck("throttle_spares_dying", "mm/throttle.py", "self.switches.rules.throttle_spares_dying", OFF_ON, VECTORS),
    *_stuck("throttle_spares_dying", "mm/vmscan.py", "self.rules.throttle_spares_dying", OFF_ON, VECTORS),
    *_stuck("max_kswapd_failures", "mm/pgdat.py", "= rules.max_kswapd_failures", ("= None", "= 16"), VECTORS),
    *_stuck("max_kswapd_failures", "mm/vmscan.py", "self.rules.max_kswapd_failures is not None", OFF_ON, VECTORS),
    *_stuck("max_kswapd_failures", "mm/kswapd.py", "self.rules.max_kswapd_failures is not None", OFF_ON, VECTORS),
    *_stuck(
        "throttle_ignores_unreclaimable",
        "mm/throttle.py",
        "self.switches.rules.throttle_ignores_unreclaimable",
        OFF_ON,
        ORACLES,
    ),
    *_stuck("reclaim_throttle", "mm/vmscan.py", "if rules.reclaim_throttle:", ("if False:", "if True:"), VECTORS),
    *_stuck("too_many_isolated", "mm/vmscan.py", 'rules.too_many_isolated == "eighth"', OFF_ON, VECTORS),
    *_stuck("writeback_activates", "mm/vmscan.py", "self.rules.writeback_activates", OFF_ON, VECTORS),
    *_stuck("writeback_activates", "mm/page_io.py", "page_alloc.switches.rules.writeback_activates", OFF_ON, VECTORS),
    *_stuck(
        "anon_is_dirtyable",
        "mm/filemap.py",
        "node.switches.rules.anon_is_dirtyable",
        ON_OFF,
        "tests/mm/test_filemap.py",
    ),
    *_stuck("swap_readahead", "mm/memory.py", 'rules.swap_readahead == "vma"', OFF_ON, VECTORS),
    *_stuck("nr_requests", "hosts/nbd_device.py", "rules.nr_requests", ("64", "256"), NBD),
    *_stuck("nbd_sends_from", "hosts/nbd_device.py", 'rules.nbd_sends_from == "workqueue"', OFF_ON, NBD),
    *_stuck("shared_tags", "hosts/nbd_device.py", "rules.shared_tags", OFF_ON, VECTORS),
    *_stuck("max_sectors_kb", "hosts/nbd_device.py", "rules.max_sectors_kb", ("127.5", "128"), VECTORS),
    *_stuck("sendmsg_waits_locked", "net/tcp_output.py", "skb_memory.switches.rules.sendmsg_waits_locked", OFF_ON, TCP),
    *_stuck(
        "sk_page_frag_order",
        "net/sk_page_frag.py",
        "page_alloc.switches.rules.sk_page_frag_order",
        ("0", "3"),
        "tests/net/test_sk_page_frag.py",
    ),
    *_stuck("rx_buffer", "net/skbuff.py", 'rules.rx_buffer == "fragment"', OFF_ON, DRIVER),
    *_stuck("build_skb_pfmemalloc", "net/skbuff.py", "self.switches.rules.build_skb_pfmemalloc", OFF_ON, DRIVER),
    *_stuck("page_frag_order", "net/page_frag.py", "self.switches.rules.page_frag_order", ("0", "3"), FRAG),
    *_stuck("page_frag_recovery", "net/page_frag.py", "self.switches.rules.page_frag_recovery", OFF_ON, FRAG),
    *_stuck(
        "receive_needs_memalloc_socks", "net/dev.py", "= rules.receive_needs_memalloc_socks", ("= False", "= True"), DEV
    ),
    *_stuck(
        "receive_needs_memalloc_socks",
        "net/sock.py",
        "not self.switches.rules.receive_needs_memalloc_socks",
        ("True", "False"),
        BACKLOG,
    ),
    *_stuck(
        "sk_add_backlog_filter",
        "net/backlog.py",
        "socket_memory.switches.rules.sk_add_backlog_filter",
        OFF_ON,
        BACKLOG,
    ),
    *_stuck("udp_backlog", "net/dev.py", "rules.udp_backlog", ON_OFF, BACKLOG),
    *_stuck("sk_rmem_schedule_pfmemalloc", "net/sk_mem.py", "rules.sk_rmem_schedule_pfmemalloc", OFF_ON, SK_MEM),
    *_stuck("tcp_mem_share", "net/sk_mem.py", "rules.tcp_mem_share", ("8", "16"), SK_MEM),
    *_stuck("names", "hosts/proc_files.py", 'node.switches.rules.names == "6.1"', OFF_ON, PROC),
    *_stuck("names", "hosts/tracepoints.py", 'rules.names == "6.1"', OFF_ON, TRACE),
    *_stuck("protocol_8021ad", "net/dev.py", "rules.protocol_8021ad", OFF_ON, DEV),
    *_stuck(
        "pfmemalloc_drop_is_rcvbuf_error",
        "net/dev.py",
        "rules.pfmemalloc_drop_is_rcvbuf_error",
        ON_OFF,
        DEV,
    ),
    *_stuck("slub_get_partial_match", "mm/slub.py", "self._switches.rules.slub_get_partial_match", OFF_ON, SLUB),
    *_stuck(
        "slub_high_order_nomemalloc", "mm/slub.py", "self._switches.rules.slub_high_order_nomemalloc", OFF_ON, SLUB
    ),
    *_stuck("slub_high_order_nomemalloc", "experiment/plan.py", "rules.slub_high_order_nomemalloc", OFF_ON, PLAN),
    *_stuck(
        "slab_pfmemalloc",
        "mm/node.py",
        'self.switches.rules.slab_pfmemalloc == "tags"',
        ON_OFF,
        "tests/mm/test_slab_lists.py",
    ),
)
