"""The rules of the 16 patches: what each changes, and that it changes nothing while it is off."""

from __future__ import annotations

from scripts.mutation.mutation import Mutation

ALLOC = "tests/mm/test_page_alloc.py"
BRIDGE = "tests/net/test_bridge.py"
DEV = "tests/net/test_dev.py"
DRIVER = "tests/net/test_rx_driver.py"
GFP = "tests/mm/test_gfp.py"
NBD = "tests/hosts/test_nbd_device.py"
NUMA = "tests/mm/test_numa.py"
ORACLES = "tests/mm/test_oracles.py"
RECEIVE = "tests/net/test_receive_rules.py"
SKB_COPY = "tests/net/test_skb_copy.py"
SLUB = "tests/mm/test_slub.py"
SOCK = "tests/net/test_sock.py"
THROTTLE = "tests/mm/test_vmscan_throttle.py"
VECTORS = "tests/test_vectors.py"
NETWORK = "tests/test_vectors_network.py"


def broken(patch: int, what: str, rule: str, place: tuple[str, str, str], *tests: str) -> Mutation:
    """One rule of a patch, or (0) of what they build on; `place` is the file below testbed/, its text, and another."""
    file, text, replacement = place
    return Mutation(f"p{patch:02}-{what}", rule, f"testbed/{file}", text, replacement, tests)


PATCHES = (
    broken(
        1,
        "on",
        "watermarks are set by one writer at a time",
        ("mm/min_free_kbytes.py", "if not self._switches.serialize_min_free_kbytes:", "if True:"),
        "tests/mm/test_min_free_kbytes.py",
    ),
    broken(
        1,
        "off",
        "without the patch writers mix",
        ("mm/min_free_kbytes.py", "if not self._switches.serialize_min_free_kbytes:", "if False:"),
        "tests/mm/test_min_free_kbytes.py",
    ),
    broken(
        2,
        "slab-flag",
        "a slab in reserve pages is marked",
        (
            "mm/slab_common.py",
            "            slab.pfmemalloc = page.pfmemalloc\n",
            "            slab.pfmemalloc = False\n",
        ),
        SLUB,
    ),
    broken(
        2,
        "page-flag-off",
        "without the patch no page is marked",
        ("mm/page_alloc.py", "        if self.switches.slab_pfmemalloc:\n", "        if True:\n"),
        ALLOC,
    ),
    broken(
        2,
        "fresh-page",
        "a freed slab page forgets the mark",
        ("mm/page_freelist.py", "page.pfmemalloc = page.from_reserve = False", "page.from_reserve = False"),
        ALLOC,
        SLUB,
    ),
    broken(
        2,
        "as-posted",
        "alone the patch asks only who is running",
        ("mm/gfp.py", "return current.pf_memalloc or current.memdie", "pass"),
        GFP,
    ),
    broken(
        2,
        "reserve-objects",
        "an ordinary caller gets no object of a marked partial slab",
        ("mm/slub.py", "return self._get_partial_match and", "return False and"),
        SLUB,
    ),
    broken(
        3,
        "on",
        "the fast path does not look at the mark",
        ("mm/slub.py", "= self._switches.slub_unchecked_fast_path", "= False"),
        SLUB,
    ),
    broken(
        3,
        "off",
        "without the patch it does",
        ("mm/slub.py", "= self._switches.slub_unchecked_fast_path", "= True"),
        SLUB,
    ),
    broken(
        4,
        "on",
        "__GFP_MEMALLOC is enough in any context",
        ("mm/gfp.py", "if gfp_mask & GFP_MEMALLOC and switches.gfp_memalloc:", "if False:"),
        GFP,
    ),
    broken(
        4,
        "off",
        "without the patch __GFP_MEMALLOC means nothing",
        ("mm/gfp.py", "if gfp_mask & GFP_MEMALLOC and switches.gfp_memalloc:", "if gfp_mask & GFP_MEMALLOC:"),
        GFP,
    ),
    broken(
        5,
        "on",
        "PF_MEMALLOC counts while a softirq is served",
        ("mm/gfp.py", "current.pf_memalloc and switches.softirq_pf_memalloc:", "False:"),
        GFP,
    ),
    broken(
        5,
        "off",
        "without the patch it does not",
        ("mm/gfp.py", "current.pf_memalloc and switches.softirq_pf_memalloc:", "current.pf_memalloc:"),
        GFP,
    ),
    broken(
        5,
        "hard-interrupt",
        "a hard interrupt gets nothing from PF_MEMALLOC",
        ("mm/gfp.py", "    if current.in_interrupt:\n        return 0\n", ""),
        GFP,
    ),
    broken(
        5,
        "entry",
        "a softirq does not inherit PF_MEMALLOC",
        (
            "mm/sched.py",
            "        current.pf_memalloc = False\n    current.serving",
            "        pass\n    current.serving",
        ),
        GFP,
    ),
    broken(
        5,
        "exit",
        "a softirq does not leave PF_MEMALLOC behind",
        ("mm/sched.py", "current.pf_memalloc = saved", "pass"),
        GFP,
    ),
    broken(
        6,
        "on",
        "without watermarks the reserve near the CPU comes first",
        ("mm/page_alloc.py", "if not self.switches.ignore_mempolicies:", "if True:"),
        NUMA,
    ),
    broken(
        6,
        "off",
        "without the patch the policy holds there too",
        ("mm/page_alloc.py", "if not self.switches.ignore_mempolicies:", "if False:"),
        NUMA,
    ),
    broken(
        7,
        "on",
        "sk_allocation() adds the socket's __GFP_MEMALLOC",
        ("net/sock.py", "return gfp_mask | added", "return gfp_mask"),
        SOCK,
    ),
    broken(
        7,
        "off",
        "without the patch it returns the mask",
        ("net/sock.py", "if not self.switches.sk_allocation:", "if False:"),
        SOCK,
    ),
    broken(
        8,
        "set",
        "a SOCK_MEMALLOC socket allocates with __GFP_MEMALLOC",
        ("net/sock.py", "sk.sk_allocation |= GFP_MEMALLOC", "pass"),
        SOCK,
    ),
    broken(
        8,
        "clear",
        "and no longer when the flag is cleared",
        ("net/sock.py", "sk.sk_allocation &= ~GFP_MEMALLOC", "pass"),
        SOCK,
    ),
    broken(
        8,
        "uncount",
        "clearing the flag is counted",
        ("net/sock.py", "self.memalloc_socks -= 1", "pass"),
        SOCK,
    ),
    broken(
        8,
        "off",
        "without the patch there is no such socket",
        (
            "net/sock.py",
            "        if not self.switches.sock_memalloc:\n            self.netstat.sk_set_memalloc_missing",
            "        if False:\n            self.netstat.sk_set_memalloc_missing",
        ),
        SOCK,
    ),
    broken(
        9,
        "off",
        "without the patch there is one attempt, with the caller's mask",
        (
            "net/skbuff.py",
            "        if not self.switches.skb_pfmemalloc:\n            return cache",
            "        if False:\n            return cache",
        ),
        NETWORK,
    ),
    broken(
        9,
        "filter-off",
        "without the patch the socket filter lets the reserve pass",
        (
            "net/sock.py",
            "return not skb.pfmemalloc or sk.memalloc or not self.switches.skb_pfmemalloc",
            "return not skb.pfmemalloc or sk.memalloc",
        ),
        NETWORK,
    ),
    broken(
        9,
        "rx-mask",
        "receive memory may use the reserve while there is a memalloc socket",
        ("net/skbuff.py", "if memalloc_socks and self.switches.skb_pfmemalloc else gfp_mask", "if False else gfp_mask"),
        "tests/net/test_skbuff.py",
    ),
    broken(
        9,
        "only-with-sockets",
        "and not while there is none",
        ("net/skbuff.py", "if memalloc_socks and self.switches.skb_pfmemalloc else", "if True else"),
        "tests/net/test_skbuff.py",
    ),
    broken(
        9,
        "first-attempt",
        "the first attempt at data stays out of the reserve",
        ("net/skbuff.py", "gfp_mask | GFP_NOMEMALLOC | GFP_NOWARN, current", "gfp_mask | GFP_NOWARN, current"),
        "tests/net/test_skbuff.py",
    ),
    broken(
        9,
        "second-attempt-marks",
        "data of the second attempt marks the skb",
        ("net/skbuff.py", "return objects, len(reserve)", "return objects, 0"),
        "tests/net/test_skbuff.py",
    ),
    broken(
        9,
        "sk-filter",
        "an ordinary socket gets no skb in the reserve",
        ("net/sock.py", "return not skb.pfmemalloc or sk.memalloc or", "return True or"),
        SOCK,
    ),
    broken(
        9,
        "sk-filter-many",
        "nor any of many at once",
        ("net/dev.py", "elif pfmemalloc and not receiver.memalloc and self.switches.skb_pfmemalloc:", "elif False:"),
        DEV,
    ),
    broken(
        9,
        "clone-mask",
        "a clone of an skb in the reserve may use the reserve",
        ("net/skbuff.py", "if skb.pfmemalloc and self.switches.skb_pfmemalloc:", "if False:"),
        SKB_COPY,
    ),
    broken(
        9,
        "expand-mask",
        "so may a larger head for it",
        ("net/skb_copy.py", "if skb.pfmemalloc and self.switches.skb_pfmemalloc:", "if False:"),
        SKB_COPY,
    ),
    broken(
        9,
        "clone-marked",
        "a clone is marked as its original",
        ("net/skbuff.py", "SkBuff(head, skb.data, skb.pfmemalloc,", "SkBuff(head, skb.data, False,"),
        SKB_COPY,
    ),
    broken(
        9,
        "copy-marked",
        "a copy is marked as its original",
        ("net/skb_copy.py", "copy.pfmemalloc = skb.pfmemalloc", "pass"),
        SKB_COPY,
    ),
    broken(
        10,
        "on",
        "a fragment of the reserve marks its skb",
        ("net/skbuff.py", "if self.switches.skb_frag_pfmemalloc:", "if False:"),
        DRIVER,
    ),
    broken(
        10,
        "off",
        "without the patch it does not",
        ("net/skbuff.py", "if self.switches.skb_frag_pfmemalloc:", "if True:"),
        DRIVER,
    ),
    broken(
        11,
        "on",
        "a driver's page may come from the reserve, whatever sockets there are",
        ("net/page_frag.py", "gfp_mask |= GFP_MEMALLOC", "pass"),
        DRIVER,
        "tests/net/test_page_frag.py",
    ),
    broken(
        11,
        "off",
        "without the patch a driver's page may not",
        ("net/page_frag.py", "if patched and not gfp_mask", "if not gfp_mask"),
        NETWORK,
    ),
    broken(
        12,
        "off",
        "without the patch an skb in the reserve is processed like any other",
        ("net/dev.py", "if self.switches.receive_pf_memalloc:", "if True:"),
        NETWORK,
    ),
    broken(
        12,
        "backlog-off",
        "also when it leaves the backlog",
        ("net/sock.py", "if not skb.pfmemalloc or not self.switches.receive_pf_memalloc:", "if not skb.pfmemalloc:"),
        "tests/net/test_backlog.py",
    ),
    broken(
        12,
        "pf-memalloc",
        "an skb in the reserve is processed with PF_MEMALLOC",
        ("net/dev.py", "self.softirq.pf_memalloc |= reserve", "pass"),
        RECEIVE,
    ),
    broken(
        12,
        "taps",
        "taps do not see the reserve",
        ("net/dev.py", "self._deliver_to_taps(skb, reserve)", "self._deliver_to_taps(skb, False)"),
        DEV,
    ),
    broken(
        13,
        "on",
        "without memalloc sockets SLAB neither sets nor tests tags",
        ("mm/slab.py", "self._inline = self._switches.slab_inline", "self._inline = False"),
        "tests/mm/test_slab.py",
    ),
    broken(
        13,
        "off",
        "without the patch it does both",
        ("mm/slab.py", "self._inline = self._switches.slab_inline", "self._inline = True"),
        "tests/mm/test_slab.py",
    ),
    broken(
        14,
        "pf-memalloc",
        "nbd_thread sends with PF_MEMALLOC",
        ("hosts/nbd_device.py", "thread.pf_memalloc = True", "pass"),
        VECTORS,
    ),
    broken(
        14,
        "restore",
        "and has it no longer when it has sent",
        ("hosts/nbd_device.py", "thread.pf_memalloc = saved", "pass"),
        VECTORS,
    ),
    broken(
        14,
        "sock-memalloc",
        "its socket is SOCK_MEMALLOC",
        ("hosts/nbd_device.py", "socket_memory.sk_set_memalloc(", "id("),
        NBD,
    ),
    broken(
        14,
        "sk-allocation",
        "its socket allocates with GFP_NOIO and __GFP_MEMALLOC",
        ("hosts/nbd_device.py", "sk_allocation = GFP_NOIO | GFP_MEMALLOC", "sk_allocation = GFP_NOIO"),
        NBD,
    ),
    broken(
        14,
        "off",
        "without the patch it has not, nor is the socket asked with __GFP_MEMALLOC",
        (
            "hosts/nbd_device.py",
            "if self.switches.nbd_memalloc:\n            self.pf_memalloc_sends",
            "if True:\n            self.pf_memalloc_sends",
        ),
        VECTORS,
    ),
    broken(
        14,
        "sock-off",
        "nor SOCK_MEMALLOC",
        (
            "hosts/nbd_device.py",
            "if self.switches.nbd_memalloc:\n            self.socket_memory",
            "if True:\n            self.socket_memory",
        ),
        NBD,
    ),
    broken(
        15,
        "half",
        "the limit is half of the reserve",
        ("mm/throttle.py", "if free > reserve // 2 or", "if free > reserve or"),
        THROTTLE,
    ),
    broken(
        15,
        "strict",
        "exactly half is not enough",
        ("mm/throttle.py", "if free > reserve // 2 or", "if free >= reserve // 2 or"),
        THROTTLE,
    ),
    broken(
        15,
        "wakes-kswapd",
        "whoever finds too little wakes kswapd",
        ("mm/throttle.py", "self.page_alloc.wakeup_kswapd(0)", "pass"),
        THROTTLE,
    ),
    broken(
        15,
        "high-memory",
        "high memory is no reserve",
        ("mm/throttle.py", "if zone.span.kind > ZoneType.NORMAL:", "if False:"),
        ORACLES,
    ),
    broken(
        15,
        "dying",
        "a dying task reports progress instead of reclaiming",
        ("mm/vmscan.py", "if current.fatal_signal and (throttled or", "if False and (throttled or"),
        THROTTLE,
    ),
    broken(
        15,
        "off",
        "without the patch nobody sleeps",
        ("mm/throttle.py", "if not self.switches.throttle_direct_reclaim:", "if False:"),
        THROTTLE,
    ),
    broken(
        16,
        "off",
        "without the patch nobody is counted",
        ("mm/throttle.py", "if self.switches.count_throttle:", "if True:"),
        THROTTLE,
    ),
    broken(
        0,
        "tap-filter",
        "a frame for a virtual machine meets no filter: it is no socket's",
        ("net/dev.py", "isinstance(kind.receiver, Tun) or (kind", "False or (kind"),
        BRIDGE,
    ),
    broken(
        0,
        "tap-room",
        "a tap whose queue is full drops",
        ("net/tun.py", "if len(self._queue) >= self.tx_queue_len:", "if False:"),
        BRIDGE,
    ),
    broken(
        0,
        "tap-holds",
        "what a tap holds is free once it has been read, not before",
        ("net/tun.py", "        self._queue.append(skb)\n", "        self._skb_memory.kfree_skb(skb)\n"),
        BRIDGE,
    ),
    broken(
        0,
        "bridge-clones",
        "what is for everybody is cloned for each virtual machine",
        ("net/bridge.py", "        if kind.broadcast:\n", "        if False:\n"),
        BRIDGE,
    ),
)
