"""Simulated TCP: the stream arrives whole and in order whatever is lost, and loss costs the time that it costs."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.net.tcp_timer import TCP_RTO_MAX
from tests.simulation.wire import MSS, Pair, losses, read_all
from tests.virtual_time import now, simulate


def stream(size: int) -> bytes:
    return bytes(itertools.islice(itertools.cycle(range(251)), size))


@settings(deadline=None, max_examples=60)
@given(
    writes=st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    lost=st.lists(st.booleans(), max_size=200),
    acks=st.lists(st.booleans(), max_size=60),
)
def test_the_stream_arrives_exactly_whatever_is_lost(writes: list[int], lost: list[bool], acks: list[bool]) -> None:
    async def main() -> None:
        pair = Pair(losses(iter(lost)), ack_loss=losses(iter(acks)))
        sent = b""
        for size in writes:
            data = stream(len(sent) + size)[len(sent) :]
            pair.left.sendmsg([data[: size // 2], memoryview(data)[size // 2 :]])
            sent += data
            await asyncio.sleep(0.001)
        await asyncio.sleep(50_000)
        assert read_all(pair.right) == sent
        assert pair.left.unacknowledged == 0

    simulate(main())


def test_a_lost_segment_is_sent_again_at_once_when_others_follow_it() -> None:
    async def main() -> None:
        pair = Pair(losses(iter([True])))
        pair.left.send(stream(20 * MSS))
        await asyncio.sleep(0.15)
        assert read_all(pair.right) == stream(20 * MSS)
        assert (pair.left.sender.retransmitted, pair.left.sender.timeouts) == (1, 0)

    simulate(main())


def test_a_lost_last_segment_waits_for_the_timeout() -> None:
    async def main() -> None:
        pair = Pair(losses(iter([False, True])))
        pair.left.send(stream(2 * MSS))
        await asyncio.sleep(0.5)
        assert read_all(pair.right) == stream(MSS)
        await asyncio.sleep(1)
        assert read_all(pair.right) == stream(2 * MSS)[MSS:]
        assert pair.left.sender.timeouts == 1

    simulate(main())


def test_the_timeout_doubles_up_to_two_minutes_while_nothing_gets_through() -> None:
    async def main() -> None:
        pair = Pair(lambda: True)
        pair.left.send(stream(MSS))
        times = []
        for _ in range(11):
            before = pair.left.sender.timeouts
            while pair.left.sender.timeouts == before:
                await asyncio.sleep(0.05)
            times.append(now())
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert waits == pytest.approx([min(TCP_RTO_MAX, 2.0 ** (n + 1)) for n in range(10)], abs=0.1)

    simulate(main())


def test_nobody_sends_more_than_the_window_and_a_closed_one_is_probed() -> None:
    async def main() -> None:
        room = 5 * MSS
        pair = Pair(window=lambda: max(0, room - len(pair.right.receiver.readable)))
        pair.left.sender.window_edge = room
        pair.left.send(stream(12 * MSS))
        await asyncio.sleep(30)
        assert len(pair.right.receiver.readable) == room
        assert 6 <= pair.left.sender.timeouts <= 8
        got = read_all(pair.right)
        while len(got) < 12 * MSS:
            await asyncio.sleep(1)
            got += read_all(pair.right)
        assert got == stream(12 * MSS)
        assert now() < 40

    simulate(main())


def test_two_segments_are_acknowledged_at_once_and_one_a_little_later() -> None:
    async def main() -> None:
        pair = Pair()
        pair.left.send(stream(2 * MSS))
        await asyncio.sleep(0.01)
        assert pair.left.unacknowledged == 0
        pair.left.send(stream(MSS))
        await asyncio.sleep(0.02)
        assert pair.left.unacknowledged == MSS
        await asyncio.sleep(0.04)
        assert pair.left.unacknowledged == 0
        assert pair.left.sender.timeouts == 0

    simulate(main())


def test_a_host_without_memory_for_an_acknowledgement_tries_again_later() -> None:
    async def main() -> None:
        pair = Pair()
        refused = iter([False, False])
        pair.right._may_acknowledge = lambda _copies: next(refused, True)
        pair.left.send(stream(4 * MSS))
        await asyncio.sleep(0.1)
        assert pair.left.unacknowledged == 4 * MSS
        await asyncio.sleep(0.4)
        assert pair.left.unacknowledged == 0

    simulate(main())
