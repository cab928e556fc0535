"""In what order frames find buffers, what a failed refill costs, and the page that a vector driver's skbs have more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.gfp import GFP_ATOMIC
from testbed.net.drop_reason import DropReason
from testbed.net.rx_ring import RxRing, VectorQueue, rx_ring
from testbed.net.skbuff import Driver, SkbColumns, SkbMemory
from testbed.net.sock import Sock
from testbed.rules import LINUX_6_1
from tests.mm.machine import SERIES, without
from tests.net.host import Host

DELIVERED, PFMEMALLOC, RX_MISSED = DropReason.DELIVERED, DropReason.PFMEMALLOC, DropReason.RX_MISSED
SIZE = 8


def vector_host(switches: Any = SERIES, **more: Any) -> Host:
    return Host(switches, **{"driver": "vector", "ring": SIZE, **more})


def numbered(count: int, serial: Iterator[int], memory: SkbMemory) -> SkbColumns:
    """Skbs that are told apart by what stands in their column of data."""
    skbs = memory.no_rx_skbs()
    skbs.data = [next(serial) for _ in range(count)]
    skbs.heads = [None] * count  # type: ignore[list-item]
    skbs.pfmemalloc = bytearray(count)
    return skbs


def test_a_ring_takes_what_waited_longest() -> None:
    host = Host(ring=SIZE)
    host.device.alloc_rx_buffers()
    before = list(host.device.ring.data)
    host.receive(host.udp, 3)
    assert host.device.ring.data[: SIZE - 3] == before[3:]


def test_a_vector_takes_what_came_last() -> None:
    """The buffers behind those that a poll uses stay where they are: they wait for a longer one."""
    host = vector_host()
    host.device.alloc_rx_buffers()
    behind = host.device.ring.data[3:]
    for _ in range(5):
        host.receive(host.udp, 3)
    assert host.device.ring.data[3:] == behind
    host.receive(host.udp, 4)
    assert host.device.ring.data[4:] == behind[1:]


def test_marked_buffers_of_a_burst_drop_the_next_burst() -> None:
    host = vector_host()
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.device.alloc_rx_buffers()
    host.machine.drain(80)
    host.receive(host.udp, SIZE)
    host.machine.give_back()
    assert host.receive(host.udp, 2) == [PFMEMALLOC] * 2, "what the burst left"
    for _ in range(10):
        assert host.receive(host.udp, 2) == [DELIVERED] * 2, "refilled since"
    assert host.receive(host.udp, 4) == [DELIVERED] * 2 + [PFMEMALLOC] * 2


@pytest.mark.parametrize(("driver", "weight"), [("linear", 64), ("vector", 100)])
def test_a_vector_is_read_whole_before_it_is_filled_again(driver: Driver, weight: int) -> None:
    host = vector_host(driver=driver, ring=100)
    refills: list[int] = []
    alloc = host.skb_memory.alloc_rx_skbs
    host.skb_memory.alloc_rx_skbs = lambda count, *more: refills.append(count) or alloc(count, *more)  # type: ignore
    host.device.alloc_rx_buffers()
    host.receive(host.udp, 100)
    assert refills == [100, weight] + [100 - weight] * (weight < 100)


# --- a failed refill ---


def test_a_frame_that_comes_to_an_empty_descriptor_is_lost_though_others_have_buffers() -> None:
    host = vector_host(without(skb_pfmemalloc=False))
    host.device.alloc_rx_buffers()
    host.machine.drain(80)
    kept = host.udp
    assert host.receive(kept, 4) == [DELIVERED] * 4
    assert host.receive(kept, 6) == [RX_MISSED] * 4 + [DELIVERED] * 2
    assert host.netstat.rx_missed == 4
    host.machine.give_back()
    assert host.receive(kept, 6) == [RX_MISSED] * 6, "the refill before failed, too"
    assert host.receive(kept, 6) == [DELIVERED] * 6


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=30))
def test_a_vector_against_its_descriptors_one_by_one(polls: list[tuple[int, int]]) -> None:
    """`polls`: how many frames come, and for how many of the used descriptors there is memory afterwards."""
    memory = vector_host().skb_memory
    serial, oracle_serial = iter(range(1 << 20)), iter(range(1 << 20))
    queue = VectorQueue(memory, SIZE)
    queue.refill(numbered(SIZE, serial, memory))
    slots: list[int | None] = [next(oracle_serial) for _ in range(SIZE)]
    for frames, memory_for in polls:
        frames = min(frames, SIZE)
        expected = slots[:frames]
        got: list[int | None] = []
        while len(got) < frames:
            assert not queue.is_short_of(frames - len(got))
            if ready := min(queue.ready, frames - len(got)):
                got += queue.take(ready).data
            else:
                got += [None] * queue.skip(frames - len(got))
        assert got == expected
        assert queue.missing == frames
        assert queue.poll_ended(last=True)
        assert queue.poll_ended(last=False) == (frames == SIZE)
        found = min(frames, memory_for)
        queue.refill(numbered(found, serial, memory))
        slots[:frames] = [next(oracle_serial) for _ in range(found)] + [None] * (frames - found)
        assert queue.data == [slot for slot in slots if slot is not None]


# --- the page behind the linear data ---


@pytest.mark.parametrize("frames", [1, 3, SIZE])
def test_the_page_behind_goes_when_a_frame_comes(frames: int) -> None:
    host = vector_host()
    host.device.alloc_rx_buffers()
    pages = host.skb_memory.frag_pages
    assert pages is not None
    assert pages.inuse == SIZE
    host.receive(host.udp, frames)
    assert pages.inuse == SIZE, "of those in the vector only"
    assert host.udp.rmem_alloc == frames * (2048 + 256), "nobody pays for it"
    assert not any(skb.frags for skb in host.udp.receive_queue)


def short_of_pages(switches: Any = SERIES) -> Host:
    """A host whose slabs have room for a whole vector, so that only the pages behind it come from the reserve."""
    host = vector_host(switches)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    spare = host.skb_memory.alloc_rx_skbs(SIZE, GFP_ATOMIC, host.softirq, 0)
    host.skb_memory.kfree_columns(spare)
    host.machine.drain(96)
    return host


def test_a_page_in_the_reserve_marks_what_has_its_data_elsewhere() -> None:
    host = short_of_pages()
    assert host.receive(host.udp, SIZE) == [PFMEMALLOC] * SIZE
    assert host.netstat.skb_frag_pfmemalloc >= SIZE
    assert not any(slab.page.pfmemalloc for slab in host.device.ring.data)


def test_without_patch_10_that_page_marks_nothing() -> None:
    host = short_of_pages(without(skb_frag_pfmemalloc=False))
    assert host.receive(host.udp, SIZE) == [DELIVERED] * SIZE
    assert host.netstat.skb_frag_unmarked >= SIZE


def test_a_buffer_without_that_page_is_given_back() -> None:
    host = vector_host(ring=16)
    spare = host.skb_memory.alloc_rx_skbs(16, GFP_ATOMIC, host.softirq, 0)
    host.skb_memory.kfree_columns(spare)
    host.machine.drain(100)
    host.device.alloc_rx_buffers()
    filled = len(host.device.ring)
    assert 0 < filled < 16
    assert host.skb_memory.rx_cache.inuse == host.skb_memory.skbuff_head_cache.inuse == filled
    assert host.netstat.alloc_rx_buff_failed == 16 - filled


@pytest.mark.parametrize("rules", [SERIES.rules, LINUX_6_1])
def test_close_gives_everything_back(rules: Any) -> None:
    host = vector_host(replace(SERIES, rules=rules))
    host.device.ptype_all.append(Sock("tap", 1 << 20))
    host.receive(host.udp, 50)
    host.device.read_datagrams(host.udp, 50)
    host.device.close()
    assert len(host.device.ring) == 0
    assert host.machine.node.pages_leaked() == 0


def test_segments_of_one_frame_that_meet_an_empty_descriptor_are_lost_one_by_one() -> None:
    host = vector_host(without(skb_pfmemalloc=False))
    host.device.alloc_rx_buffers()
    host.machine.drain(80)
    host.receive(host.udp, 2)
    verdicts = host.receive(host.swap, 5, end_seq=[1000 * (number + 1) for number in range(5)])
    assert verdicts == [RX_MISSED] * 2 + [DELIVERED] * 3


def test_only_the_vector_driver_has_a_vector() -> None:
    for driver in ("linear", "frag", "page", "vector"):
        memory = Host(driver=driver).skb_memory
        assert type(rx_ring(memory, 4)) is (VectorQueue if driver == "vector" else RxRing)
