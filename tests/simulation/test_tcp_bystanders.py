"""Unrelated TCP connections on virtual time: what is dropped comes again, and a run with them is accounted for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from testbed import Bystander, TcpStream
from testbed.experiment.verdict import judge
from testbed.simulation.handshake import Opening, SimulatedListener
from testbed.simulation.link import LinkSpeed
from testbed.simulation.stream_socket import StreamSocket
from testbed.simulation.tcp_stream import NeighbourPort, OutgoingConnection, SimulatedTcpStream
from testbed.simulation.virtual_time import VirtualTimeLoop, simulate
from tests.simulation.test_simulate import ALL, FLOOD, plan, report, run

SPEED = LinkSpeed()
MSS = 1000


class FarEnd:
    """A host that lets its `refuse` first SYNs pass unanswered, and reads all that comes later."""

    def __init__(self, loop: VirtualTimeLoop, refuse: int = 0) -> None:
        self.loop, self.refuse = loop, refuse
        self.syns: list[float] = []
        self.received = 0
        self.port = NeighbourPort(SPEED)
        self.port.down.deliver = self._receive
        self.socket: StreamSocket | None = None

    def _receive(self, group: Any) -> None:
        if not isinstance(group, Opening):
            assert self.socket is not None
            self.socket.received(group, [(group.seq, group.data)] if group.data else [], group.frames)
            self.received += len(self.socket.recv(1 << 20)) if self.socket.ready_to_read() else 0
            return
        self.syns.append(self.loop.time())
        if len(self.syns) <= self.refuse:
            return
        if self.socket is None:
            self.socket = StreamSocket(
                self.loop, self.port.up.send, group.source, group.connection, mss=MSS, train=8 * MSS
            )
        self.port.up.send(group.answer(self.socket.receiver.advertise()))


def loop_now() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


def test_a_syn_is_sent_again_until_it_is_answered() -> None:
    async def main() -> None:
        loop = loop_now()
        far, source = FarEnd(loop, refuse=2), NeighbourPort(SPEED)
        connection = OutgoingConnection(loop, source, far.port, ("10.0.0.3", 40_000), 20_000, MSS, 8 * MSS)
        assert connection.send(b"early") == 0
        await asyncio.sleep(2.9)
        assert connection.socket is None
        await asyncio.sleep(0.5)
        assert [round(when) for when in far.syns] == [0, 1, 3]
        assert connection.send(bytes(5000)) == 5000
        await asyncio.sleep(0.1)
        assert far.received == 5000
        assert connection.segments == 3 + 5
        await asyncio.sleep(60)
        assert len(far.syns) == 3

    simulate(main())


def test_a_stream_keeps_to_its_rate_and_forgets_what_it_missed() -> None:
    async def main() -> None:
        loop = loop_now()
        far, source = FarEnd(loop, refuse=1), NeighbourPort(SPEED)
        stream = SimulatedTcpStream(
            source, far.port, "10.0.0.3", [20_000], bytes_per_second=1_000_000, mss=MSS, train=8 * MSS
        )
        stream.start()
        await asyncio.sleep(3)
        assert 1_900_000 < stream.sent < 2_030_000, "a second passed before the connection was there"
        stream.stop()
        await asyncio.sleep(1)
        assert far.received == stream.sent
        sent = stream.report()
        assert sent["retransmits"] == 0
        assert sent["segments"] > sent["sent"] / MSS

    simulate(main())


def test_a_listener_gives_connections_in_order() -> None:
    async def main() -> None:
        loop = loop_now()
        listener = SimulatedListener(loop)
        with pytest.raises(BlockingIOError):
            listener.accept()
        far = NeighbourPort(SPEED)
        ends = [StreamSocket(loop, far.up.send, far, number, mss=MSS, train=MSS) for number in range(2)]
        for number, end in enumerate(ends):
            listener.put(end, ("10.0.0.3", number))
        assert [listener.accept()[0] for _ in ends] == ends
        assert not listener.ready_to_read()

    simulate(main())


STREAM = TcpStream(bytes_per_second="4M", start="workload")


def tcp(reader: Any) -> Bystander:
    return Bystander(protocol="tcp", reader=reader, count=1)


@pytest.mark.parametrize("reader", ["prompt", "faulting", "never"])
def test_a_run_with_a_stream_passes(reader: Any) -> None:
    record = run(plan(STREAM, bystanders=[tcp(reader)]))
    checks = {check.name: check for check in judge(record.evidence).checks}
    for name in ("swap is spared", "progress", "integrity", "conservation", "canary after"):
        assert checks[name].ok, f"{name}: {checks[name].evidence}"
    (stream,) = report(record)["streams"].values()
    assert stream["connections"] == 1
    assert record.evidence.clients[0].flood_sent
    if reader == "prompt":
        assert stream["received"] > 1 << 20


def test_segments_in_the_reserve_are_dropped_and_come_again() -> None:
    record = run(plan(FLOOD, STREAM, bystanders=[Bystander(reader="never"), tcp("prompt")]))
    assert judge(record.evidence).outcome == "pass"
    made = report(record)
    assert made["frames"]["unrelated_pfmemalloc_delivered"] == 0
    dropped = [row for row in made["ledger"] if row["reason"] == "PFMEMALLOC" and row["socket"].startswith("prompt")]
    assert sum(row["frames"] for row in dropped) > 0
    assert made["workload"]["corrupt"] == 0


def test_the_same_seed_gives_the_same_streams() -> None:
    both = [Bystander(reader="never"), tcp("faulting")]
    again = [report(run(plan(FLOOD, STREAM, bystanders=both), ALL, seed=4)) for _ in range(2)]
    assert again[0] == again[1]
