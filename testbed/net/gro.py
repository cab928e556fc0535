"""Generic receive offload (skb_gro_receive): the segments of a flow that arrive together go up as one skb.

The merged skb keeps the mark of its first segment: fragments are moved, not attached again, so that a segment in
reserve memory behind an ordinary one passes for ordinary, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable

from testbed.net.skbuff import SharedInfo, SkbMemory, SkBuff


def merge(skb_memory: SkbMemory, segments: Iterable[SkBuff]) -> SkBuff:
    """One skb for all segments, of which there must be at least one.

    Linear data stays where it is: the whole skb hangs on the first one's `frag_list`.
    """
    first, *rest = segments
    shared = first.shared = first.shared or SharedInfo()
    shared.gso_segs += len(rest)
    for skb in rest:
        if skb.frags:
            _move_frags(skb_memory, first, skb)
        else:
            shared.frag_list.append(skb)
            first.truesize += skb.truesize
    return first


def _move_frags(skb_memory: SkbMemory, first: SkBuff, skb: SkBuff) -> None:
    """Data in fragments changes hands. What is left is freed: the kernel reuses it (`napi_reuse_skb`), but never one in
    the reserve.
    """
    first.frags = (*first.frags, *skb.frags)
    first.truesize += sum(frag.cache.object_size for frag in skb.frags)
    skb.frags = ()
    skb_memory.kfree_skb(skb)
