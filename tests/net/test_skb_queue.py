"""A socket's queue gives its skbs back in the order in which they came, however they came."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.gfp import GFP_ATOMIC
from testbed.net.skb_queue import SkbQueue
from testbed.net.skbuff import SkBuff
from tests.net.host import Host


@given(st.lists(st.tuples(st.sampled_from(["append", "extend", "popleft", "take"]), st.integers(0, 9)), max_size=30))
def test_first_in_first_out(steps: list[tuple[str, int]]) -> None:
    host = Host()
    memory = host.skb_memory
    queue, expected, removed = SkbQueue(), list[object](), list[SkBuff]()
    for step, count in steps:
        if step == "append":
            (skb,) = memory.alloc_rx_skbs(1, GFP_ATOMIC, host.softirq, 0)
            queue.append(skb)
            expected.append(skb.data)
        elif step == "extend":
            skbs = memory.alloc_rx_skbs(count, GFP_ATOMIC, host.softirq, 0)
            expected += skbs.data
            queue.extend(skbs)
        else:
            wanted = min(1 if step == "popleft" else count, len(queue))
            parts = [queue.popleft()] if step == "popleft" and wanted else queue.take(wanted)
            taken = list(chain.from_iterable([part] if isinstance(part, SkBuff) else part for part in parts))
            assert [skb.data for skb in taken] == expected[:wanted]
            del expected[:wanted]
            removed += taken
        assert [skb.data for skb in queue] == expected
        assert len(queue) == len(expected)
    memory.kfree_skbs([*queue.take(len(queue)), *removed])
    assert memory.skbuff_head_cache.inuse == memory.rx_cache.inuse == 0
