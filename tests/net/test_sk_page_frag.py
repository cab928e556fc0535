"""What a socket's data lies in: pages that are filled up one after the other, and go when nothing in them is needed."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.gfp import GFP_KERNEL, GFP_MEMALLOC, GFP_NOIO
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.sk_page_frag import Copied, SkPageFrag
from testbed.net.tcp_output import TcpSendQueue
from testbed.patches import Switches
from tests.mm.machine import SERIES, Machine, with_rules
from tests.net.host import Host
from tests.virtual_time import is_blocked, simulate

ORDER_3 = with_rules(sk_page_frag_order=3)
SENDER = Task("nbd0")


def fragments(machine: Machine) -> SkPageFrag:
    return SkPageFrag(machine.node.page_alloc)


def send(queue: TcpSendQueue, *sizes: int) -> None:
    async def main() -> None:
        for size in sizes:
            await queue.tcp_sendmsg(size, SENDER, lambda: None)

    simulate(main())


@given(st.lists(st.tuples(st.integers(1, 5 * PAGE_SIZE), st.integers(0, 8)), max_size=20))
def test_a_page_is_held_until_all_that_lies_in_it_is_acknowledged(steps: list[tuple[int, int]]) -> None:
    """The stream has no gaps, so its pages are counted by its offsets; a page that is not full yet stays."""
    machine = Machine(256, swap_pages=16)
    frag, page_alloc, managed = fragments(machine), machine.node.page_alloc, machine.free
    queue: deque[Copied] = deque()
    sent = acked = 0
    for size, acknowledged in steps:
        queue.append(frag.copy(size, GFP_KERNEL, SENDER))
        sent += size
        for _ in range(min(acknowledged, len(queue))):
            acked += queue[0].size
            queue.popleft().free(page_alloc)
        assert sent - acked == sum(copied.size for copied in queue)
        assert managed - machine.free == -(-sent // PAGE_SIZE) - acked // PAGE_SIZE
    while queue:
        queue.popleft().free(page_alloc)
    frag.free()
    assert machine.node.pages_leaked() == 0


def test_writes_share_the_page_that_is_not_full() -> None:
    host = Host()
    queue = TcpSendQueue(host.swap.sk, host.skb_memory, 1 << 20)
    send(queue, 28)
    held = host.machine.free
    send(queue, *[28] * 7)
    assert host.machine.free == held
    overhead = queue.linear_cache.object_size + host.skb_memory.skbuff_fclone_cache.object_size
    assert queue.sk.wmem_queued == 8 * (28 + overhead)
    queue.tcp_clean_rtx_queue(8 * 28)
    assert (queue.sk.wmem_queued, host.machine.node.pages_leaked()) == (0, 1)
    queue.purge()
    assert host.machine.node.pages_leaked() == 0


@pytest.mark.parametrize(("switches", "pages"), [(SERIES, 3), (ORDER_3, 8)])
def test_how_much_is_taken_at_a_time(switches: Switches, pages: int) -> None:
    machine = Machine(256, switches)
    managed = machine.free
    assert fragments(machine).copy(2 * PAGE_SIZE + 1, GFP_KERNEL, SENDER).size == 2 * PAGE_SIZE + 1
    assert managed - machine.free == pages


@pytest.mark.parametrize("switches", [SERIES, ORDER_3])
def test_what_is_all_acknowledged_is_filled_again_from_its_start(switches: Switches) -> None:
    host = Host(switches)
    queue = TcpSendQueue(host.swap.sk, host.skb_memory, 1 << 20)
    send(queue, 6 * PAGE_SIZE + 1)
    queue.tcp_clean_rtx_queue(queue.write_seq)
    held = host.machine.free
    send(queue, PAGE_SIZE)
    assert host.machine.free == held
    queue.purge()
    assert host.machine.node.pages_leaked() == 0


def test_a_block_that_is_full_goes_back_as_one() -> None:
    machine = Machine(256, ORDER_3)
    copied = fragments(machine).copy(8 * PAGE_SIZE, GFP_KERNEL, SENDER)
    assert (copied.pages, [len(block) for block in copied.blocks]) == ([], [8])
    copied.free(machine.node.page_alloc)
    assert machine.node.pages_leaked() == 0


def test_without_a_large_block_single_pages_do() -> None:
    machine = Machine(256, ORDER_3)
    machine.drain(0)
    for page in machine.held[::2]:
        machine.node.page_alloc.free_page(page)
    copied = fragments(machine).copy(3 * PAGE_SIZE, GFP_NOIO | GFP_MEMALLOC, SENDER)
    assert (copied.size, len(copied.pages), copied.blocks) == (3 * PAGE_SIZE, 3, [])


@pytest.mark.parametrize(("gfp_mask", "size"), [(GFP_NOIO, 0), (GFP_NOIO | GFP_MEMALLOC, 2 * PAGE_SIZE)])
def test_a_swap_sockets_block_may_come_from_the_reserve(gfp_mask: int, size: int) -> None:
    machine = Machine(4096, ORDER_3)
    machine.drain(machine.node.zone.watermarks.min // 2)
    copied = fragments(machine).copy(2 * PAGE_SIZE, gfp_mask, SENDER)
    assert (copied.size, copied.pfmemalloc) == (size, size > 0)


def test_a_page_that_is_not_full_marks_what_shares_it() -> None:
    machine = Machine(4096)
    frag = fragments(machine)
    machine.drain(machine.node.zone.watermarks.min // 2)
    assert frag.copy(100, GFP_NOIO | GFP_MEMALLOC, SENDER).pfmemalloc
    for page in machine.held:
        machine.node.page_alloc.free_page(page)
    later = frag.copy(PAGE_SIZE, GFP_NOIO, SENDER)
    assert (later.size, later.pfmemalloc) == (PAGE_SIZE, True)
    assert not frag.copy(100, GFP_NOIO, SENDER).pfmemalloc


def test_who_waited_uses_the_page_that_another_sender_has_begun() -> None:
    async def main() -> None:
        machine = Machine(4096)
        frag = fragments(machine)
        machine.drain(0)
        waiting = [asyncio.create_task(frag.wait_for_page(GFP_NOIO, Task(name))) for name in ("one", "other")]
        assert await is_blocked(waiting[0], 10)
        for page in machine.held:
            machine.node.page_alloc.free_page(page)
        assert await asyncio.gather(*waiting) == [True, True]
        assert machine.node.pages_leaked() == 1
        frag.free()
        assert machine.node.pages_leaked() == 0

    simulate(main())
