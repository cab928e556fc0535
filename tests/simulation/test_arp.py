"""A simulated client that has to ask for its server's address: what waits, what is lost, and a whole run with it."""

from __future__ import annotations

import asyncio

import pytest

from testbed.simulation.arp import ServerNeighbour
from testbed.simulation.link import Frames, LinkSpeed, Port
from testbed.simulation.segments import Segments
from testbed.simulation.virtual_time import simulate

SPEED = LinkSpeed()
MSS = 1000


class Server:
    """What is sent to it, the requests for its address among that; it answers as long as it `answers`."""

    def __init__(self, timeout: float, *, memory: bool = True, answers: bool = True) -> None:
        self.requests = 0
        self.sent: list[int] = []
        self.memory, self.answers = memory, answers
        self.port = Port(SPEED, lambda _group: None)
        self.entry = ServerNeighbour(timeout, self._take, self._ask)

    def _take(self, group: Frames) -> None:
        assert isinstance(group, Segments)
        self.sent.append(group.seq)

    def _ask(self) -> None:
        if self.memory:
            self.requests += 1
            if self.answers:
                asyncio.get_running_loop().call_later(0.001, self.entry.answered)

    def segments(self, seq: int, count: int = 1) -> Segments:
        return Segments(self.port, 0, seq, bytes(MSS * count), MSS, 0, 0)


def test_the_first_segments_wait_for_the_address() -> None:
    async def main() -> None:
        server = Server(30)
        for seq in range(3):
            server.entry.send(server.segments(seq))
        assert (server.sent, server.requests) == ([], 1)
        await asyncio.sleep(0.01)
        assert server.sent == [0, 1, 2]
        server.entry.send(server.segments(3))
        assert (server.sent, server.requests) == ([0, 1, 2, 3], 1)

    simulate(main())


@pytest.mark.parametrize(("progress", "fewest", "most"), [(False, 5, 11), (True, 1, 1)])
def test_an_address_is_asked_for_again_while_it_is_used_and_nothing_confirms_it(
    progress: bool, fewest: int, most: int
) -> None:
    async def main() -> None:
        server = Server(0.1)
        for seq in range(100):
            server.entry.send(server.segments(seq))
            await asyncio.sleep(0.01)
            if progress:
                server.entry.confirm()
        assert fewest <= server.requests <= most
        assert len(server.sent) == 100

    simulate(main())


@pytest.mark.parametrize("case", [{"memory": False}, {"answers": False}])
def test_without_an_answer_what_waits_is_lost_after_three_requests(case: dict[str, bool]) -> None:
    """Whether no request could be sent, or nobody answers: the host cannot tell."""

    async def main() -> None:
        server = Server(30, **case)
        server.entry.send(server.segments(0, 4))
        await asyncio.sleep(2.9)
        assert server.entry.discarded == 0
        await asyncio.sleep(0.2)
        assert (server.sent, server.entry.discarded) == ([], 4)
        assert server.requests == (3 if server.memory else 0)
        server.memory = server.answers = True
        server.entry.send(server.segments(4))
        await asyncio.sleep(0.01)
        assert server.sent == [4]

    simulate(main())


def test_no_more_than_64_kib_wait() -> None:
    async def main() -> None:
        server = Server(30, answers=False)
        for seq in range(100):
            server.entry.send(server.segments(seq))
        assert server.entry.discarded == 100 - 61
        server.entry.answered()
        assert server.sent == list(range(39, 100))
        server.entry.close()

    simulate(main())


def test_a_closed_entry_asks_no_more() -> None:
    async def main() -> None:
        server = Server(30, answers=False)
        server.entry.send(server.segments(0))
        server.entry.close()
        await asyncio.sleep(10)
        assert server.requests == 1

    simulate(main())


def test_a_run_asks_again_and_passes() -> None:
    from testbed.experiment.verdict import judge
    from tests.simulation.test_simulate import FLOOD, plan, report, run

    record = run(plan(FLOOD, neighbour_timeout=0.01))
    checks = {check.name: check for check in judge(record.evidence).checks}
    assert all(check.ok for check in checks.values()), [check.evidence for check in checks.values() if not check.ok]
    assert report(record)["counters"]["arp_solicits"] > 1
