"""SLUB's list of partial slabs: its order, and how many of it are pfmemalloc, whatever comes and goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.partial_list import PartialList
from testbed.mm.slab_common import Slab
from tests.mm.machine import Machine

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["head", "tail", "remove", "first", "pass over"]), st.integers(0, 6), st.booleans()),
    max_size=40,
)

MACHINE = Machine(pages=64)
CACHE = MACHINE.node.kmem_cache_create("test", 256)
PAGE = MACHINE.node.zone.pages[0]


@given(ACTIONS)
def test_it_is_in_order_and_knows_how_many_are_pfmemalloc(actions: list[tuple[str, int, bool]]) -> None:
    partial = PartialList()
    expected: list[Slab] = []
    for action, number, pfmemalloc in actions:
        made = [Slab(CACHE, PAGE, 16) for _ in range(number)]
        for slab in made:
            slab.pfmemalloc = pfmemalloc
        if action == "tail":
            partial.add_tail(made)
            expected += made
        elif action == "head" and made:
            partial.add_head(made[0])
            expected.insert(0, made[0])
        elif action == "remove" and expected:
            slab = expected.pop(number % len(expected))
            partial.remove(slab)
        elif action in {"first", "pass over"}:
            passing_over = action == "pass over"
            first = partial.first(number, passing_over=passing_over)
            assert first == [slab for slab in expected if not (passing_over and slab.pfmemalloc)][:number]
            partial.remove_first(first, passing_over=passing_over)
            expected = [slab for slab in expected if slab not in first]
        assert list(partial) == expected
        assert partial.nr_pfmemalloc == sum(slab.pfmemalloc for slab in expected)
