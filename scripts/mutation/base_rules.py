"""What the patches build on: floors, retries, slots, queues and buffers of the kernels they went into."""

from __future__ import annotations

from scripts.mutation.patches import broken

ALLOC = "tests/mm/test_page_alloc.py"
BIO = "tests/mm/test_bio.py"
RX_RING = "tests/net/test_rx_ring.py"
GFP = "tests/mm/test_gfp.py"
SLOWPATH = "tests/mm/test_slowpath.py"
MEMORY = "tests/test_vectors_memory.py"
ZONES = "tests/mm/test_zones.py"

ROUNDS = "tests/mm/test_kswapd_rounds.py"

BASE_RULES = (
    broken(
        0,
        "kswapd-order",
        "kswapd looks for the largest block that it was woken for",
        ("mm/kswapd.py", "pgdat.kswapd_order = max(pgdat.kswapd_order, order)\n        if", "if"),
        ROUNDS,
    ),
    broken(
        0,
        "compact-gap",
        "6.1: kswapd leaves a block to compaction once that has twice its pages to work with",
        ("mm/kswapd.py", "if sc.nr_reclaimed >= 2 << sc.order:", "if False:"),
        ROUNDS,
    ),
    broken(
        0,
        "compaction-suitable",
        "3.6: kswapd reclaims nothing for a block where compaction has enough to work with",
        ("mm/kswapd.py", "return 0 if suitable and", "return 0 if False and"),
        ROUNDS,
    ),
    broken(
        0,
        "slub-min-objects",
        "SLUB asks for slabs of eight objects, on one CPU",
        ("mm/slub.py", "4 * (nr_cpu_ids.bit_length() + 1)", "2 * (nr_cpu_ids.bit_length() + 1)"),
        "tests/mm/test_slub.py",
    ),
    broken(
        0,
        "slub-fallback",
        "a slab of one page where a larger block is not to be had",
        (
            "mm/slub.py",
            "        page = self.page_alloc.alloc_page_nowait(gfp_mask, current)\n",
            "        page = None if self.order else self.page_alloc.alloc_page_nowait(gfp_mask, current)\n",
        ),
        "tests/mm/test_slub.py",
    ),
    broken(
        0,
        "vector-driver",
        "what alloc_skb gives is a slab object in every version",
        ("net/skbuff.py", 'driver != "vector" and ', ""),
        "tests/net/test_rx_driver.py",
    ),
    broken(
        0,
        "vector-empty",
        "a frame that comes to a descriptor of the vector driver whose refill failed is lost",
        ("net/rx_ring.py", 'b"\\1" * count + bytes(self.used - count)', 'b"\\1" * self.used'),
        RX_RING,
    ),
    broken(
        0,
        "vector-refill",
        "the vector driver fills those descriptors only that frames have come to",
        ("net/rx_ring.py", "        return self.used\n", "        return self.size - len(self.data)\n"),
        RX_RING,
    ),
    broken(
        0,
        "vector-trim",
        "the page behind a vector driver's buffer goes when a frame comes",
        ("net/rx_ring.py", "        self.skb_memory.pskb_trim(taken)\n", ""),
        RX_RING,
    ),
    broken(
        0,
        "vector-page-marks",
        "the page behind a vector driver's buffer marks its skb",
        ("net/skbuff.py", "        self._attach(whole, frags, pages)\n", "        whole.frags = frags\n"),
        RX_RING,
    ),
    broken(
        0,
        "delack-two-segments",
        "two full segments are acknowledged at once",
        ("net/tcp_timer.py", "if self.unacked_bytes >= 2 * self.mss:", "if False:"),
        "tests/net/test_tcp_timer.py",
    ),
    broken(
        0,
        "delack-retry",
        "an acknowledgement that found no memory is tried again",
        ("net/tcp_timer.py", "        self.expires = now + TCP_DELACK_MAX\n", "        self.expires = None\n"),
        "tests/net/test_tcp_timer.py",
    ),
    broken(
        0,
        "write-cost",
        "a reclaimer that writes gives way sooner than one that only looks",
        ("mm/vmscan.py", "+ WRITE_COST * len(sc.writes)", ""),
        "tests/mm/test_reclaim.py",
    ),
    broken(
        0,
        "bio-nomemalloc",
        "a slab of bios never comes from the reserve",
        ("mm/bio.py", "GFP_MEMPOOL = GFP_NOMEMALLOC | ", "GFP_MEMPOOL = "),
        BIO,
    ),
    broken(
        0,
        "bio-wait",
        "whoever waits for a bio goes on when one is given back",
        ("mm/bio.py", "self._wait.wake_all()", "self._wait.wake(pooled)"),
        BIO,
    ),
    broken(
        0,
        "kswapd-first",
        "kswapd, once woken, runs before whoever needs memory",
        ("mm/page_alloc.py", "            await self._let_kswapd_run()\n", "            await asyncio.sleep(0)\n"),
        "tests/mm/test_kswapd.py",
    ),
    broken(
        0,
        "alloc-high",
        "ALLOC_HIGH halves the mark",
        (
            "mm/zone.py",
            "    if alloc_flags & ALLOC_HIGH:\n        mark -= mark // 2",
            "    if alloc_flags & ALLOC_HIGH:\n        mark -= 0",
        ),
        ZONES,
    ),
    broken(
        0,
        "alloc-harder",
        "ALLOC_HARDER takes a quarter off what is left",
        ("mm/zone.py", "mark -= mark // 4", "mark -= mark // 2"),
        ZONES,
    ),
    broken(
        0,
        "lowmem-reserve",
        "lower zones keep their lowmem_reserve",
        ("mm/zone.py", "mark + reserve for reserve in self.lowmem_reserve", "mark for reserve in self.lowmem_reserve"),
        ZONES,
    ),
    broken(
        0,
        "strict-watermark",
        "exactly the mark is not enough",
        ("mm/page_freelist.py", "enough = zone.free.nr_free > zone.floor", "enough = zone.free.nr_free >= zone.floor"),
        ALLOC,
    ),
    broken(
        0,
        "no-recursion",
        "a PF_MEMALLOC caller does not reclaim",
        ("mm/page_alloc.py", "return current.pf_memalloc or (current.memdie", "return (current.memdie"),
        SLOWPATH,
    ),
    broken(
        0,
        "no-oom-without-fs",
        "nobody is killed for a request without __GFP_FS",
        ("mm/page_alloc.py", "if not gfp_mask & GFP_FS or gfp_mask & GFP_NORETRY:", "if gfp_mask & GFP_NORETRY:"),
        SLOWPATH,
    ),
    broken(
        0,
        "harder-not-with-nomemalloc",
        "an atomic request with __GFP_NOMEMALLOC ends at half of min",
        ("mm/gfp.py", "if not gfp_mask & GFP_NOMEMALLOC:", "if True:"),
        GFP,
    ),
    broken(
        0,
        "costly-order",
        "a request for up to eight pages is never given up",
        ("mm/free_area.py", "PAGE_ALLOC_COSTLY_ORDER = 3", "PAGE_ALLOC_COSTLY_ORDER = 2"),
        MEMORY,
    ),
    broken(
        0,
        "lowest-zones",
        "nobody is killed for a request for the lowest zones",
        ("mm/page_alloc.py", "not request.costly and request.zonelist", "not request.costly or request.zonelist"),
        MEMORY,
    ),
    broken(
        0,
        "swap-cluster",
        "slots are handed out in runs of 256",
        ("mm/swapfile.py", "SWAPFILE_CLUSTER: Final = 256", "SWAPFILE_CLUSTER: Final = 128"),
        MEMORY,
    ),
    broken(
        0,
        "vm-swap-full",
        "swap is full when more than half of it is in use",
        ("mm/swapfile.py", "self.inuse_pages * 2 > self.pages", "self.inuse_pages * 2 >= self.pages"),
        MEMORY,
    ),
    broken(
        0,
        "congestion-on",
        "writes congest a queue of 128 from the 113th on",
        ("hosts/request_list.py", "nr_requests - nr_requests // 8 + 1", "nr_requests - nr_requests // 8"),
        MEMORY,
    ),
    broken(
        0,
        "congestion-off",
        "and no more below the 103rd",
        (
            "hosts/request_list.py",
            "self._count[write] < self.nr_congestion_off",
            "self._count[write] <= self.nr_congestion_off",
        ),
        MEMORY,
    ),
    broken(
        0,
        "rcvbuf",
        "a socket's buffer that is not full takes one more datagram",
        (
            "net/sock.py",
            "-((self.rmem_alloc - self.rcvbuf) // truesize)",
            "(self.rcvbuf - self.rmem_alloc) // truesize",
        ),
        "tests/net/test_dev.py",
    ),
    broken(
        0,
        "rcvbuf-tcp",
        "so does a stream's that is not exceeded",
        ("net/dev.py", "            if sk.rmem_alloc > sk.rcvbuf:", "            if sk.rmem_alloc >= sk.rcvbuf:"),
        "tests/net/test_tcp_memory.py",
    ),
    broken(
        0,
        "rcvbuf-backlog",
        "and a backlog",
        ("net/backlog.py", "self._sk.rmem_alloc > limit", "self._sk.rmem_alloc + skb.truesize > limit"),
        "tests/net/test_backlog.py",
    ),
    broken(
        0,
        "sk-page-frag-rewind",
        "a sender's page whose data is all acknowledged is filled again from its start",
        ("net/tcp_output.py", "            self.sk_page_frag.rewind()", "            pass"),
        "tests/net/test_sk_page_frag.py",
    ),
    broken(
        0,
        "sk-page-frag-shared",
        "and one that is not full is filled up by the next write",
        ("net/sk_page_frag.py", "            self.left = left", "            self.left = 0"),
        "tests/net/test_sk_page_frag.py",
    ),
    broken(
        0,
        "readahead-behind",
        "readahead goes backwards with whoever reads backwards",
        ("mm/readahead.py", "first = index - win + 1", "first = index"),
        MEMORY,
    ),
    broken(
        0,
        "radix-nodes",
        "the nodes of the swap cache stay out of the reserve",
        ("mm/swap_state.py", "GFP_HIGH | GFP_NOMEMALLOC | GFP_NOWARN", "GFP_HIGH | GFP_NOWARN"),
        "tests/mm/test_swap_cache.py",
    ),
    broken(
        0,
        "zero-page",
        "a read of memory that was never written allocates nothing",
        ("mm/memory.py", "if write else None", "if True else None"),
        "tests/mm/test_memory.py",
    ),
)
