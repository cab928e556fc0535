"""The patches of the series that a 6.1 kernel can undo, each by boot parameters of a kernel that we built.

A parameter is named after what it turns off, as the flags of `testbed.patches.Switches` are; the kernel announces it
in its boot log (`testbed: NAME is off`) and counts in /proc/testbed how often it made a difference. The other side of
this table is `linux-6.1-testbed.patch`.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError
from testbed.patches import PATCHES


@dataclass(frozen=True, slots=True)
class Switch:
    """One boot parameter, `testbed.NAME=0`; `patch` is None for what is no patch of the series."""

    name: str
    patch: int | None
    undoes: str
    where: str
    slab: SlabAllocator | None = None
    """The one slab allocator that has it; None: both."""

    @property
    def parameter(self) -> str:
        """What turns it off, for the kernel's command line."""
        return f"testbed.{self.name}=0"


SWITCHES = (
    Switch("slab_pfmemalloc", 2, "no page, and so no slab, is marked pfmemalloc", "mm/page_alloc.c prep_new_page"),
    Switch(
        "slub_unchecked_fast_path",
        3,
        "SLUB's fast path, too, refuses objects of a marked slab",
        "mm/slub.c slab_alloc_node",
        "slub",
    ),
    Switch("gfp_memalloc", 4, "__GFP_MEMALLOC gives no reserve", "mm/page_alloc.c __gfp_pfmemalloc_flags"),
    Switch(
        "softirq_pf_memalloc",
        5,
        "PF_MEMALLOC gives no reserve in a softirq, which neither clears nor restores it",
        "mm/page_alloc.c __gfp_pfmemalloc_flags, kernel/softirq.c handle_softirqs",
    ),
    Switch(
        "sk_allocation",
        7,
        "control packets are asked for without the socket's __GFP_MEMALLOC",
        "include/net/sock.h sk_gfp_mask",
    ),
    Switch("sock_memalloc", 8, "sockets never become SOCK_MEMALLOC", "net/core/sock.c sk_set_memalloc, sk_gfp_mask"),
    Switch(
        "skb_alloc_rx",
        9,
        "receive buffers are asked for without __GFP_MEMALLOC",
        "net/core/skbuff.c __alloc_skb, __netdev_alloc_skb, __napi_alloc_skb; the vector driver",
    ),
    Switch("kmalloc_reserve", 9, "an skb in reserve memory is not marked", "net/core/skbuff.c kmalloc_reserve"),
    Switch(
        "sk_filter_pfmemalloc",
        9,
        "the socket filter lets a marked skb through to any socket",
        "net/core/filter.c sk_filter_trim_cap",
    ),
    Switch(
        "skb_frag_pfmemalloc",
        10,
        "a marked page does not mark the skb it becomes a fragment of",
        "include/linux/skbuff.h __skb_fill_page_desc",
    ),
    Switch(
        "receive_pf_memalloc",
        12,
        "a marked skb is processed without PF_MEMALLOC, and shown to taps and any protocol",
        "net/core/dev.c __netif_receive_skb, include/net/sock.h sk_backlog_rcv",
    ),
    Switch("slab_inline", 13, "SLAB looks for marked slabs even while no socket is SOCK_MEMALLOC", "mm/slab.c", "slab"),
    Switch(
        "nbd_memalloc",
        14,
        "nbd sends and receives without PF_MEMALLOC and __GFP_MEMALLOC, its sockets are not SOCK_MEMALLOC",
        "drivers/block/nbd.c __sock_xmit, nbd_start_device, nbd_reconnect_socket",
    ),
    Switch("throttle_direct_reclaim", 15, "nobody is throttled", "mm/vmscan.c throttle_direct_reclaim"),
    Switch("count_throttle", 16, "pgscan_direct_throttle stays 0", "mm/vmscan.c throttle_direct_reclaim"),
    Switch(
        "vector_memalloc",
        None,
        "the vector driver takes no receive memory from the reserve, as Debian's does not",
        "arch/um/drivers/vector_kern.c prep_skb",
    ),
    Switch(
        "highatomic_reserve",
        None,
        "no page block is kept for high-order atomic requests",
        "mm/page_alloc.c reserve_highatomic_pageblock",
    ),
)

CANNOT_UNDO = {
    1: "with one processor the lock that it takes compiles to nothing",
    6: "User Mode Linux has one memory node, so there is no mempolicy to ignore",
    11: "no network driver of User Mode Linux receives into pages of netdev_alloc_page",
}
"""Why the kernel behaves the same with and without a patch, for each one that has no switch."""

ALWAYS_OFF = tuple(switch for switch in SWITCHES if switch.name == "highatomic_reserve")
"""What is off in every run. A kernel of 2012 let any request use its last blocks, and so does the model. 6.1 keeps one
for high-order atomic requests, at 128M almost three times the min watermark, and what is free in it is the one memory
that ALLOC_NO_WATERMARKS cannot have: receive buffers end with pages to spare."""


def boot_parameters(patches: frozenset[int], slab: SlabAllocator) -> tuple[str, ...]:
    """The kernel's command line words that undo every patch which is not in `patches`.

    With no patch on at all, those that make no difference on this kernel are passed over: it is the kernel before the
    series.

    Raises:
        LabError: a patch is off that this kernel cannot undo; says why.
    """
    off = frozenset(PATCHES) - patches
    wanted = [switch for switch in SWITCHES if switch.patch in off and switch.slab in (None, slab)]
    if patches and (unmet := off - {switch.patch for switch in wanted}):
        raise LabError(refusal(min(unmet)))
    return tuple(switch.parameter for switch in (*wanted, *ALWAYS_OFF))


def refusal(patch: int) -> str:
    """Why a real kernel cannot show what is lost without this patch, in one line."""
    for switch in SWITCHES:
        if switch.patch == patch and switch.slab:
            return f"patch {patch} acts only on {switch.slab.upper()}: use --slab {switch.slab}"
    return f"patch {patch} cannot be undone on a real kernel: {CANNOT_UNDO[patch]}; use --host emulated"


def refusals(slab: SlabAllocator) -> dict[int, str]:
    """The patches that a kernel with this slab allocator cannot undo, and why, in one line each."""
    undone = {switch.patch for switch in SWITCHES if switch.slab in (None, slab)}
    return {number: refusal(number) for number in PATCHES if number not in undone}
