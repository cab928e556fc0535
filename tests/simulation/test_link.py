"""A simulated link takes the time its bandwidth says, keeps the order, and loses what its queue has no room for."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.simulation.datagrams import Datagrams
from testbed.simulation.link import FRAME_OVERHEAD, LARGEST_FRAME, Frames, LinkSpeed, Port
from tests.virtual_time import now, simulate

FRAME = 1000


class Listener:
    def __init__(self, speed: LinkSpeed) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self.port = Port(speed, self._receive)

    def _receive(self, group: Frames) -> None:
        self.arrivals.append((now(), group.frames))

    def datagrams(self, count: int) -> Datagrams:
        return Datagrams(self.port, self.port, FRAME, np.zeros(count, np.intp), ())


def test_a_group_takes_the_time_of_all_its_frames() -> None:
    async def main() -> None:
        listener = Listener(LinkSpeed(bandwidth=1e6, delay=0.01))
        listener.port.down.send(listener.datagrams(10))
        listener.port.down.send(listener.datagrams(5))
        await asyncio.sleep(1)
        each = (FRAME + FRAME_OVERHEAD) / 1e6
        assert [frames for _, frames in listener.arrivals] == [10, 5]
        assert [time for time, _ in listener.arrivals] == pytest.approx([10 * each + 0.01, 15 * each + 0.01])

    simulate(main())


def test_frames_go_up_and_then_down() -> None:
    async def main() -> None:
        near, far = Listener(LinkSpeed(delay=0.5)), Listener(LinkSpeed(delay=0.25))
        near.port.up.send(far.datagrams(1))
        await asyncio.sleep(1)
        assert [frames for _, frames in far.arrivals] == [1]
        assert far.arrivals[0][0] == pytest.approx(0.75, abs=0.001)
        assert near.arrivals == []

    simulate(main())


@settings(deadline=None)
@given(sends=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 0.02)), max_size=30), queue=st.integers(1, 50))
def test_every_frame_is_delivered_or_lost_and_the_queue_is_never_longer_than_its_limit(
    sends: list[tuple[int, float]], queue: int
) -> None:
    async def main() -> None:
        listener = Listener(LinkSpeed(bandwidth=1e6, delay=0, queue=queue))
        link = listener.port.down
        for count, pause in sends:
            link.send(listener.datagrams(count))
            assert link.waiting_bytes <= queue * (LARGEST_FRAME + FRAME_OVERHEAD) + 1e-3
            await asyncio.sleep(pause)
        await asyncio.sleep(10)
        assert link.delivered == sum(frames for _, frames in listener.arrivals)
        assert link.delivered + link.lost == sum(count for count, _ in sends)
        assert listener.arrivals == sorted(listener.arrivals, key=lambda arrival: arrival[0])

    simulate(main())


def test_an_overfull_queue_loses_the_end_of_a_group() -> None:
    async def main() -> None:
        listener = Listener(LinkSpeed(bandwidth=1e6, delay=0, queue=10))
        listener.port.down.send(listener.datagrams(30))
        await asyncio.sleep(1)
        assert [frames for _, frames in listener.arrivals] == [15]
        assert listener.port.down.lost == 15

    simulate(main())
