"""The changelog of the series, V2 to V9, item by item. Of "page flag instead of slab fields" (V9) there is the size of
`struct slab` to break, of "statistics instead of printk" (V2) the counter."""

from __future__ import annotations

from scripts.mutation.mutation import Mutation

GFP = "tests/mm/test_gfp.py"
THROTTLE = "tests/mm/test_vmscan_throttle.py"
VECTORS = "tests/test_vectors.py"
MEMORY = "tests/test_vectors_memory.py"
NETWORK = "tests/test_vectors_network.py"
RECEIVE = "tests/net/test_receive_rules.py"
DRIVER = "tests/net/test_rx_driver.py"

CHANGELOG = (
    Mutation(
        "v2-memalloc-socks-count",
        "memalloc_socks counts every SOCK_MEMALLOC socket",
        "testbed/net/sock.py",
        "self.memalloc_socks += 1",
        "self.memalloc_socks = 1",
        ("tests/net/test_sock.py",),
    ),
    Mutation(
        "v2-throttle-without-sockets",
        "throttling does not ask whether there are memalloc sockets",
        "testbed/mm/throttle.py",
        "if not self.switches.throttle_direct_reclaim:",
        "if not getattr(self.switches, 'memalloc_socks', 0):",
        (THROTTLE,),
    ),
    Mutation(
        "v2-test-after-queueing",
        "nothing can happen between the test of the reserve and the sleep",
        "testbed/mm/throttle.py",
        "                await self.pgdat.pfmemalloc_wait.wait()",
        "                await asyncio.sleep(0)\n                await self.pgdat.pfmemalloc_wait.wait()",
        (VECTORS,),
    ),
    Mutation(
        "v2-test-after-waking",
        "a sleeper that is woken looks at the reserve again",
        "testbed/mm/throttle.py",
        "while not current.fatal_signal and not self.pfmemalloc_watermark_ok():",
        "if not current.fatal_signal and not self.pfmemalloc_watermark_ok():",
        (THROTTLE,),
    ),
    Mutation(
        "v2-statistics",
        "a throttled reclaimer is counted",
        "testbed/mm/throttle.py",
        "vmstat.pgscan_direct_throttle += 1",
        "pass",
        (THROTTLE,),
    ),
    Mutation(
        "v3-nomemalloc-wins",
        "__GFP_NOMEMALLOC overrides __GFP_MEMALLOC and PF_MEMALLOC",
        "testbed/mm/gfp.py",
        "    if gfp_mask & GFP_NOMEMALLOC:\n",
        "    if gfp_mask & GFP_NOMEMALLOC and not gfp_mask & GFP_MEMALLOC:\n",
        (GFP,),
    ),
    Mutation(
        "v3-interruptible-without-fs",
        "a signal ends the sleep of a caller without __GFP_FS",
        "testbed/mm/throttle.py",
        " > 0 and not current.fatal_signal and not",
        " > 0 and not",
        (VECTORS,),
    ),
    Mutation(
        "v3-killable-with-fs",
        "a fatal signal ends the sleep of a caller with __GFP_FS",
        "testbed/mm/throttle.py",
        "while not current.fatal_signal and not",
        "while not",
        (VECTORS,),
    ),
    Mutation(
        "v3-cast-to-bool",
        "a flag becomes a bool by being compared with zero, not by being cut to a bit",
        "testbed/mm/gfp.py",
        "return bool(reserve_flags(gfp_mask, current, switches))",
        "return reserve_flags(gfp_mask, current, switches) & 1 == 1",
        (GFP,),
    ),
    Mutation(
        "v3-listed-protocols-pass",
        "an skb in the reserve is dropped only if its protocol is not listed",
        "testbed/net/dev.py",
        "if reserve and kind.protocol not in self._protocols:",
        "if reserve:",
        (RECEIVE,),
    ),
    Mutation(
        "v3-other-protocols-drop",
        "an skb in the reserve is dropped if its protocol is not listed",
        "testbed/net/dev.py",
        "if reserve and kind.protocol not in self._protocols:",
        "if False:",
        (RECEIVE, "tests/net/test_skb_copy.py"),
    ),
    Mutation(
        "v4-fragment-marks",
        "one fragment of the reserve marks its skb",
        "testbed/net/skbuff.py",
        "if frag.pfmemalloc and self._frags_mark(frag.cache, 1):",
        "if False:",
        (DRIVER,),
    ),
    Mutation(
        "v4-fragment-never-unmarks",
        "an ordinary fragment leaves the mark of its skb alone",
        "testbed/net/skbuff.py",
        "        if frag.pfmemalloc and self._frags_mark(frag.cache, 1):\n            skb.pfmemalloc = True",
        "        skb.pfmemalloc = frag.pfmemalloc and self._frags_mark(frag.cache, 1)",
        (DRIVER,),
    ),
    *(
        Mutation(
            f"v5-protocol-{protocol.removeprefix('ETH_P_').lower()}",
            f"{protocol} is on the list of protocols that may use the reserve",
            "testbed/net/dev.py",
            "SKB_PFMEMALLOC_PROTOCOLS = frozenset({ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q})",
            f"SKB_PFMEMALLOC_PROTOCOLS = frozenset({{ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q}} - {{{protocol}}})",
            ("tests/net/test_dev.py",),
        )
        for protocol in ("ETH_P_ARP", "ETH_P_IP", "ETH_P_IPV6", "ETH_P_8021Q")
    ),
    Mutation(
        "v7-wake-up-all-kinds",
        "kswapd wakes those in an uninterruptible sleep too, and all of them",
        "testbed/mm/kswapd.py",
        "if self.pgdat.pfmemalloc_wait and self.vmscan.throttle.pfmemalloc_watermark_ok():",
        "if False:",
        (VECTORS,),
    ),
    Mutation(
        "v7-wake-up-all",
        "kswapd wakes all of the throttled, not the first",
        "testbed/mm/kswapd.py",
        "            self.pgdat.pfmemalloc_wait.wake_all()",
        "            self.pgdat.pfmemalloc_wait.wake(1)",
        (VECTORS,),
    ),
    Mutation(
        "v7-kernel-threads",
        "a kernel thread is not throttled",
        "testbed/mm/throttle.py",
        "current.pf_kthread or (",
        "False or (",
        (THROTTLE,),
    ),
    Mutation(
        "v7-kswapd-sleep-race",
        "kswapd leaves nobody behind on pfmemalloc_wait when it goes to sleep",
        "testbed/mm/kswapd.py",
        "        if pgdat.pfmemalloc_wait:\n",
        "        if False:\n",
        ("tests/mm/test_kswapd.py",),
    ),
    Mutation(
        "v8-mapping",
        "a page with a mapping marks nothing: the bits are its index",
        "testbed/net/page_frag.py",
        "self.page.pfmemalloc and self.page.mapping is None",
        "self.page.pfmemalloc",
        (DRIVER, "tests/net/test_page_frag.py"),
    ),
    Mutation(
        "v8-netdev-page-marks",
        "a driver's page of the reserve marks its skb",
        "testbed/net/skbuff.py",
        "return isinstance(pages, NetdevPages) and self.switches.netdev_page_pfmemalloc",
        "return False",
        (DRIVER,),
    ),
    Mutation(
        "v8-netdev-page-reserve",
        "a driver's page is asked for with __GFP_MEMALLOC",
        "testbed/net/page_frag.py",
        "gfp_mask |= GFP_MEMALLOC",
        "pass",
        (NETWORK,),
    ),
    Mutation(
        "v8-one-way-out",
        "every way out of the receive path restores what was there at its entry",
        "testbed/net/dev.py",
        "self.softirq.pf_memalloc = pflags",
        "pass",
        (RECEIVE,),
    ),
    Mutation(
        "v9-page-flag",
        "the mark takes no room in `struct slab`, so that a slab holds as many objects as before",
        "testbed/mm/array_cache.py",
        "SLAB_HEADER, BUFCTL, OFF_SLAB = 48,",
        "SLAB_HEADER, BUFCTL, OFF_SLAB = 56,",
        (MEMORY,),
    ),
    Mutation(
        "v9-softirq-detection",
        "serving a softirq counts, having bottom halves disabled does not",
        "testbed/mm/gfp.py",
        "if current.serving_softirq and current.pf_memalloc and",
        "if (current.serving_softirq or current.bh_disabled) and current.pf_memalloc and",
        (GFP,),
    ),
    Mutation(
        "v9-kswapd-stays-awake",
        "kswapd does not sleep while a reclaimer is throttled",
        "testbed/mm/kswapd.py",
        "            if not self.rules.kswapd_sleeps_with_waiters:\n                return False",
        "            pass",
        ("tests/mm/test_kswapd.py",),
    ),
    Mutation(
        "v9-without-fs-not-for-ever",
        "a caller without __GFP_FS sleeps for HZ at most",
        "testbed/mm/throttle.py",
        "if not gfp_mask & GFP_FS:",
        "if False:",
        (THROTTLE,),
    ),
)
