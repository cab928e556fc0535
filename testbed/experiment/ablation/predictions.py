"""What reading the series lets one expect of each patch taken away alone, on one memory node and with SLUB.

They are hypotheses, written down before anything was measured: an ablation says where its measurements differ, and
nothing here has a part in any outcome. Only three statements are its author's: that a machine without the series hangs
with SLUB, that it gets through, slower, with SLAB, and that it gets through with the series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Expected = Literal["survives", "hangs", "may hang"]
Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected: whether the host comes through, and which counters move against all patches on."""

    outcome: Expected
    why: str
    moves: dict[str, Direction]


WITHOUT_ANY = Prediction(
    "hangs",
    "the memory that swap needs is held by what waits for swap",
    {"alloc_rx_buff_failed": "up", "rx_missed": "up"},
)

WITHOUT: dict[int, Prediction] = {
    1: Prediction("survives", "only writers of min_free_kbytes that race can tell", {}),
    2: Prediction(
        "survives",
        "slab pages of the reserve are handed to anybody; a small reserve may not last",
        {"slab_pfmemalloc_pages": "down", "pgscan_direct_throttle": "up", "reserve_min_free": "down"},
    ),
    3: Prediction("survives", "SLUB asks each time: slower, and stricter", {"slab_pfmemalloc_leaked": "down"}),
    4: Prediction(
        "hangs", "receive buffers end at half of min", {"alloc_rx_buff_failed": "up", "gfp_memalloc_allocs": "down"}
    ),
    5: Prediction(
        "survives",
        "ACKs are covered by patch 7; routes, neighbours and clones in a softirq are not",
        {"softirq_pf_memalloc_allocs": "down"},
    ),
    6: Prediction("survives", "it acts on a second memory node", {}),
    7: Prediction(
        "survives",
        "patch 14 covers ACKs in nbd_thread and patch 12 those in a softirq; timers may fail to send",
        {"sk_allocation_memalloc": "down"},
    ),
    8: Prediction(
        "hangs",
        "no socket is SOCK_MEMALLOC: receive buffers cannot come from the reserve",
        {"sk_set_memalloc": "down", "alloc_rx_buff_failed": "up"},
    ),
    9: Prediction(
        "hangs",
        "receive buffers cannot come from the reserve",
        {"alloc_rx_buff_failed": "up", "PFMemallocDrop": "down"},
    ),
    10: Prediction("survives", "receive buffers are linear", {}),
    11: Prediction("survives", "receive buffers are linear", {}),
    12: Prediction("survives", "nobody listens with a packet socket", {"receive_pf_memalloc": "down"}),
    13: Prediction("survives", "it saves SLAB a function call", {}),
    14: Prediction(
        "hangs",
        "nbd_thread cannot send: it reclaims for ever with GFP_NOIO",
        {"pswpout": "down", "sk_set_memalloc": "down"},
    ),
    15: Prediction(
        "may hang",
        "with many reclaimers and a small reserve nothing is left to receive into",
        {"reserve_min_free": "down", "no_watermark_failures": "up", "pgscan_direct_throttle": "down"},
    ),
    16: Prediction("survives", "it only counts", {"pgscan_direct_throttle": "down"}),
}

MINIMAL_SET = frozenset({4, 8, 9, 14})
"""Predicted to survive without a flood. Patch 8 builds on patch 7, so that with bases it is 4, 7, 8, 9, 14."""
ROBUST_SET = frozenset({2, 4, 5, 7, 8, 9, 12, 14, 15})
"""Predicted to survive other traffic too, with a driver that receives into linear buffers."""
