"""The buddy allocator: every free page in one block, no two buddies both free, and every block where it belongs."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from testbed.mm.free_area import MAX_ORDER, FreeArea
from testbed.mm.page import Page
from testbed.mm.watermarks import PAGE_SIZE, Watermarks
from testbed.mm.zone import Zone
from testbed.mm.zone_layout import ZoneSpan, ZoneType


def pages_of(start: int, count: int) -> list[Page]:
    ram = memoryview(bytearray((start + count) * PAGE_SIZE))
    return Zone(ram, Watermarks(0, 0, 0, 0), ZoneSpan(ZoneType.NORMAL, 0, start, count)).pages


def largest_blocks(free: set[int]) -> list[int]:
    """How many blocks of each order the free page frames make up, by trying the largest first."""
    left, counts = set(free), [0] * MAX_ORDER
    for order in reversed(range(MAX_ORDER)):
        for pfn in sorted(pfn for pfn in left if not pfn % (1 << order)):
            block = set(range(pfn, pfn + (1 << order)))
            if block <= left:
                left -= block
                counts[order] += 1
    return counts


@pytest.mark.parametrize(
    ("start", "count", "blocks"),
    [(0, 2048, {10: 2}), (0, 1, {0: 1}), (0, 7, {2: 1, 1: 1, 0: 1}), (3, 6, {0: 2, 2: 1}), (1024, 1536, {10: 1, 9: 1})],
)
def test_memory_begins_as_the_largest_blocks_there_are(start: int, count: int, blocks: dict[int, int]) -> None:
    area = FreeArea(pages_of(start, count))
    assert {order: number for order, number in enumerate(area.counts()) if number} == blocks


def test_one_page_splits_a_block_into_one_of_each_lower_order_and_its_return_merges_them_again() -> None:
    area = FreeArea(pages_of(0, 1024))
    (page,) = area.take(1)
    assert area.counts() == [1] * 10 + [0]
    area.give([page])
    assert area.counts() == [0] * 10 + [1]


def test_a_block_is_aligned_contiguous_and_from_the_smallest_that_will_do() -> None:
    area = FreeArea(pages_of(0, 1024 + 8))
    first, second = area.take_block(3), area.take_block(3)
    assert first is not None
    assert second is not None
    assert [page.pfn for page in first] == list(range(1024, 1032))
    assert second[0].pfn % 8 == 0
    assert area.take_block(10) is None


class FreeAreaMachine(RuleBasedStateMachine):
    @initialize(start=st.integers(0, 40), count=st.integers(1, 300))
    def begin(self, start: int, count: int) -> None:
        self.pages = pages_of(start, count)
        self.area = FreeArea(self.pages)
        self.singles: list[Page] = []
        self.blocks: list[list[Page]] = []

    @rule(count=st.integers(1, 40))
    def take(self, count: int) -> None:
        free = len(self.area)
        taken = self.area.take(count)
        assert len(taken) == min(count, free)
        self.singles += taken

    @rule(order=st.integers(0, MAX_ORDER - 1))
    def take_block(self, order: int) -> None:
        there = any(largest_blocks(self.free())[order:])
        block = self.area.take_block(order)
        assert (block is not None) == there
        if block is not None:
            assert [page.pfn for page in block] == list(range(block[0].pfn, block[0].pfn + (1 << order)))
            assert block[0].pfn % (1 << order) == 0
            self.blocks.append(list(block))

    @precondition(lambda self: self.singles)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        back = data.draw(st.lists(st.sampled_from(self.singles), unique_by=id, max_size=30))
        self.area.give(back)
        self.singles = [page for page in self.singles if page not in back]

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def give_block(self, data: st.DataObject) -> None:
        block = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
        self.area.give_block(block[0].pfn, len(block).bit_length() - 1)

    @rule()
    def count_blocks(self) -> None:
        assert self.area.counts() == largest_blocks(self.free())

    def free(self) -> set[int]:
        used = {page.pfn for page in self.singles} | {page.pfn for block in self.blocks for page in block}
        return {page.pfn for page in self.pages} - used

    @invariant()
    def nothing_is_lost_or_owned_twice(self) -> None:
        free = [page.pfn for page in self.area]
        assert len(free) == len(set(free)) == len(self.area) == self.area.nr_free
        assert set(free) == self.free()


TestFreeArea = FreeAreaMachine.TestCase
TestFreeArea.settings = settings(max_examples=60, stateful_step_count=40)
