"""The 16 patches of "Swap-over-NBD without deadlocking" (V9): numbers, titles, dependencies, presets.

`enabled` turns "everything but these" into a checked set of patch numbers; `Switches` gives each patch the name
of what it changes, so that the model asks `switches.gfp_memalloc` and not `4 in patches`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from testbed.rules import LINUX_3_6, LINUX_6_1, V9, Rules


class PatchError(ValueError):
    """A set of patches that makes no sense; the message is one line for people."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch: its number in V9, its title as posted, the patches it builds on, and what limits it here."""

    number: int
    title: str
    depends_on: frozenset[int] = frozenset()
    acts_on: str = ""
    """What a client must have for this patch to change anything, if not every client has it; else empty."""


def _patch(number: int, title: str, *depends_on: int, acts_on: str = "") -> Patch:
    return Patch(number, title, frozenset(depends_on), acts_on)


PATCHES: dict[int, Patch] = {
    patch.number: patch
    for patch in (
        _patch(
            1,
            "mm: Serialize access to min_free_kbytes",
            acts_on="several zones, and two writers of min_free_kbytes at once",
        ),
        _patch(2, "mm: sl[au]b: Add knowledge of PFMEMALLOC reserve pages"),
        _patch(
            3, "mm: slub: Optimise the SLUB fast path to avoid pfmemalloc checks", 2, acts_on="the SLUB allocator"
        ),
        _patch(4, "mm: Introduce __GFP_MEMALLOC to allow access to emergency reserves"),
        _patch(5, "mm: allow PF_MEMALLOC from softirq context"),
        _patch(
            6,
            "mm: Ignore mempolicies when using ALLOC_NO_WATERMARK",
            acts_on="two memory nodes, and tasks with a memory policy",
        ),
        _patch(7, "net: Introduce sk_allocation() to allow addition of GFP flags depending on the individual socket"),
        _patch(8, "netvm: Allow the use of __GFP_MEMALLOC by specific sockets", 4, 7),
        _patch(9, "netvm: Allow skb allocation to use PFMEMALLOC reserves", 4, 8),
        _patch(10, "netvm: Propagate page->pfmemalloc to skb", 2, acts_on="a driver whose buffers have page fragments"),
        _patch(
            11,
            "netvm: Propagate page->pfmemalloc from netdev_alloc_page to skb",
            2,
            4,
            acts_on="a driver that receives into pages",
        ),
        _patch(12, "netvm: Set PF_MEMALLOC as appropriate during SKB processing", 5),
        _patch(13, "mm: Micro-optimise slab to avoid a function call", 2, 9, acts_on="the SLAB allocator"),
        _patch(14, "nbd: Set SOCK_MEMALLOC for access to PFMEMALLOC reserves", 4, 8),
        _patch(
            15, "mm: Throttle direct reclaimers if PF_MEMALLOC reserves are low and swap is backed by network storage"
        ),
        _patch(16, "mm: Account for the number of times direct reclaimers get throttled", 15),
    )
}


@dataclass(frozen=True, slots=True)
class Preset:
    """A kernel: its name for people, the patches that are on, and the rules of its version."""

    title: str
    patches: frozenset[int]
    rules: Rules


PRESETS: dict[str, Preset] = {
    "vanilla": Preset("3.4, before the series", frozenset(), V9),
    "v9": Preset("3.4 with the series as posted", frozenset(PATCHES), V9),
    "3.6": Preset("3.6, where the series was merged", frozenset(PATCHES), LINUX_3_6),
    "6.1": Preset("6.1, a kernel of today", frozenset(PATCHES), LINUX_6_1),
}
DEFAULT_PRESET = "v9"
KERNEL_PRESET = "6.1"
"""The one whose rules are those of the real kernel that can stand in a client's place."""

WITHOUT_BASE: dict[tuple[int, int], str] = {
    (3, 2): "no slab is marked, so the check it leaves out would never have refused anything",
    (8, 4): "sockets are SOCK_MEMALLOC and ask with __GFP_MEMALLOC, which the allocator ignores",
    (8, 7): "data carries __GFP_MEMALLOC through sk->sk_allocation; ACKs and other control packets do not",
    (9, 4): "__GFP_MEMALLOC is ignored: receive buffers end at half of min, since the first attempt is NOMEMALLOC",
    (9, 8): "no socket is SOCK_MEMALLOC, so receive buffers lack __GFP_MEMALLOC: they end at half of min",
    (10, 2): "page->pfmemalloc is never set, so there is nothing to copy to the skb",
    (11, 2): "page->pfmemalloc is never set, so there is nothing to copy to the skb",
    (11, 4): "the driver's pages are asked for with __GFP_MEMALLOC, which the allocator ignores",
    (12, 5): "taps and foreign protocols are still kept away, but the allocator ignores PF_MEMALLOC in a softirq",
    (13, 2): "no object is tagged, so neither the short nor the long path has anything to do",
    (13, 9): "sockets are counted all the same, so it does what it does with patch 9",
    (14, 4): "nbd_thread sends with PF_MEMALLOC; its socket's __GFP_MEMALLOC is ignored",
    (14, 8): "nbd_thread sends with PF_MEMALLOC; its socket cannot be made SOCK_MEMALLOC",
    (16, 15): "nobody is throttled, so there is nothing to count",
}
"""What a patch that is on does while one it depends on is off, by (patch, base)."""


ALWAYS_ACTING = frozenset(number for number, patch in PATCHES.items() if not patch.acts_on)
"""The patches that act on any client."""


def enabled(without: Iterable[int], force: bool = False) -> frozenset[int]:
    """The patches that are on when those in `without` are off, as far as that can be told without knowing the clients.

    With `force`, a patch whose base is off stays on and does what its code can do without the base.

    Raises:
        PatchError: a number outside 1..16; or (unless `force`) a patch that acts on any client and is on while one it
            depends on is off.
    """
    off = frozenset(without)
    for number in sorted(off):
        if number not in PATCHES:
            raise PatchError(f"there is no patch {number}: the series has patches 1 to {len(PATCHES)}")
    on = frozenset(PATCHES) - off
    if not force:
        _refuse_unmet(on & ALWAYS_ACTING, off)
    return on


def with_bases(on: Iterable[int]) -> frozenset[int]:
    """These patches and all that they build on, directly or not."""
    closure = frozenset(on)
    while grown := frozenset(base for number in closure for base in PATCHES[number].depends_on) - closure:
        closure |= grown
    return closure


def with_dependents(off: Iterable[int]) -> frozenset[int]:
    """These patches and all that build on them, directly or not."""
    closure = frozenset(off)
    while grown := frozenset(patch.number for patch in PATCHES.values() if patch.depends_on & closure) - closure:
        closure |= grown
    return closure


def without_base(on: frozenset[int], acting: frozenset[int] = frozenset(PATCHES)) -> list[str]:
    """One line for each patch that is on, and can act, although one it builds on is off: what it does then."""
    return [
        f"patch {number} is on without patch {base}, which it builds on: {what}"
        for (number, base), what in WITHOUT_BASE.items()
        if number in on & acting and base not in on
    ]


def check_acting(on: frozenset[int], acting: frozenset[int], force: bool = False) -> None:
    """Whether it makes sense to have only the patches `on` when those in `acting` can act on some client of the run.

    Raises:
        PatchError: a patch that cannot act, so that switching it off alone would show nothing; or (unless `force`) an
            acting patch that is on while one it depends on is off.
    """
    off = frozenset(PATCHES) - on
    idle = off - acting
    if on and idle:
        number = min(idle)
        raise PatchError(
            f"patch {number} acts only on {PATCHES[number].acts_on}, which no client here has: "
            "switching it off shows nothing"
        )
    if not force:
        _refuse_unmet(on & acting, off)


def _refuse_unmet(on: frozenset[int], off: frozenset[int]) -> None:
    """Refuse patches that are `on`, and can act, while their base is `off`."""
    orphans = {number for number in on if PATCHES[number].depends_on & off}
    if not orphans:
        return
    closure = set(off)
    while grown := {number for number in on - closure if PATCHES[number].depends_on & closure}:
        closure |= grown
    base = min(min(PATCHES[number].depends_on & off) for number in orphans)
    names = ", ".join(str(number) for number in sorted(orphans) if base in PATCHES[number].depends_on)
    wanted = ",".join(map(str, sorted(closure)))
    raise PatchError(
        f"patch {names} builds on patch {base}, which is off: use --without {wanted}, or --force to leave it on"
    )


@dataclass(frozen=True, slots=True)
class Switches:
    """One flag for each patch, in the order of the series, named after what the patch changes; then the `rules`."""

    serialize_min_free_kbytes: bool = True
    slab_pfmemalloc: bool = True
    slub_unchecked_fast_path: bool = True
    gfp_memalloc: bool = True
    softirq_pf_memalloc: bool = True
    ignore_mempolicies: bool = True
    sk_allocation: bool = True
    sock_memalloc: bool = True
    skb_pfmemalloc: bool = True
    skb_frag_pfmemalloc: bool = True
    netdev_page_pfmemalloc: bool = True
    receive_pf_memalloc: bool = True
    slab_inline: bool = True
    nbd_memalloc: bool = True
    throttle_direct_reclaim: bool = True
    count_throttle: bool = True
    rules: Rules = V9

    @classmethod
    def of(cls, patches: Iterable[int], rules: Rules = V9) -> Switches:
        """The switches for a set of patch numbers that are on, in a kernel with these rules."""
        on = frozenset(patches)
        flags: list[Any] = [number in on for number in PATCHES]
        return replace(cls(*flags), rules=rules)
