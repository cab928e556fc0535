"""Faults on simulated links: what effects do to frames without bytes, and what becomes of swap under them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.experiment import simulate as simulation
from testbed.experiment.coordinator import RunRecord
from testbed.experiment.verdict import judge
from testbed.hosts.messages import ClearFault, Event, Failed, Finished, SetFault, Shutdown
from testbed.lab.errors import LabError
from testbed.simulation.fault_relay import SimulatedFaultRelay
from testbed.simulation.link import LinkSpeed
from testbed.simulation.segments import Segments
from tests.integration.saboteur import Faults, Saboteur
from tests.simulation.test_link import Listener
from tests.simulation.test_simulate import ALL, LIMITS, plan
from tests.virtual_time import simulate

SPEED = LinkSpeed(bandwidth=1e9, delay=0.0, queue=100_000)


class Relayed(Listener):
    """A listener behind a relay."""

    def __init__(self) -> None:
        super().__init__(SPEED)
        self.relay = SimulatedFaultRelay("relay", self.port, SPEED)

    def set(self, number: int, kind: str, /, **arguments: Any) -> None:
        self.relay.send(SetFault(number, kind, arguments, seed=number))

    def report(self) -> dict[str, Any]:
        """The account of the frames that came to the listener; conserved or the test fails."""
        self.relay.send(Shutdown())
        last = self.relay.messages()[-1]
        assert isinstance(last, Finished)
        way: dict[str, Any] = last.report["to"]
        assert way["taken"] == way["interface_packets"]
        ends = way["tx_packets"] + way["held"] + sum(way["dropped"].values())
        assert way["taken"] + way["duplicated"] == ends
        return way


def test_without_a_fault_groups_pass_whole() -> None:
    async def main() -> None:
        listener = Relayed()
        listener.port.down.send(listener.datagrams(40))
        await asyncio.sleep(1)
        assert [frames for _, frames in listener.arrivals] == [40]
        assert listener.report()["tx_packets"] == 40

    simulate(main())


def test_a_partition_and_its_end() -> None:
    async def main() -> None:
        listener = Relayed()
        listener.set(1, "partition", direction="to")
        listener.port.down.send(listener.datagrams(5))
        listener.relay.send(ClearFault(1))
        listener.port.down.send(listener.datagrams(7))
        await asyncio.sleep(1)
        assert [frames for _, frames in listener.arrivals] == [7]
        said = listener.relay.messages()
        assert [(each.name, each.fields) for each in said if isinstance(each, Event)] == [
            ("fault_set", {"number": 1}),
            ("fault_cleared", {"number": 1, "frames_lost": 5, "frames_altered": 0}),
        ]
        assert listener.report()["dropped"] == {"partition": 5}

    simulate(main())


def test_a_delay_is_exact_and_takes_groups_apart() -> None:
    async def main() -> None:
        listener = Relayed()
        listener.set(1, "delay", seconds=0.5)
        listener.port.down.send(listener.datagrams(3))
        await asyncio.sleep(0.1)
        assert listener.arrivals == []
        await asyncio.sleep(1)
        assert [frames for _, frames in listener.arrivals] == [1, 1, 1]
        assert [time for time, _ in listener.arrivals] == pytest.approx([0.5] * 3, abs=1e-4)

    simulate(main())


@given(
    groups=st.lists(st.integers(1, 30), max_size=10),
    probability=st.floats(0, 1),
    seconds=st.floats(0, 0.1),
    mtu=st.integers(68, 2000),
)
def test_frames_are_conserved(groups: list[int], probability: float, seconds: float, mtu: int) -> None:
    async def main() -> None:
        listener = Relayed()
        listener.set(1, "loss", probability=probability)
        listener.set(2, "duplicate", probability=1 - probability)
        listener.set(3, "delay", seconds=seconds, jitter=seconds)
        listener.set(4, "mtu", mtu=mtu)
        for count in groups:
            listener.port.down.send(listener.datagrams(count))
            await asyncio.sleep(0.01)
        listener.report()
        await asyncio.sleep(1)
        report = listener.report()
        assert report["held"] == 0
        assert report["taken"] == sum(groups)
        assert sum(frames for _, frames in listener.arrivals) == report["tx_packets"]

    simulate(main())


@pytest.mark.parametrize("kind", ["corrupt", "truncate", "match_loss"])
def test_what_needs_bytes_is_refused_in_one_line(kind: str) -> None:
    arguments = {"port": 9} if kind == "match_loss" else {"probability": 0.1}

    async def main() -> None:
        listener = Relayed()
        listener.set(1, kind, **arguments)
        (said,) = listener.relay.messages()
        assert said == Failed("relay", f"the simulator's frames have no bytes, which {kind} needs: run it for real")

    simulate(main())


def test_one_segment_of_a_train() -> None:
    async def main() -> None:
        port = Listener(SPEED).port
        train = Segments(port, 0, seq=1000, data=bytes(range(250)), mss=100, ack=5, window_edge=10)
        pieces = [train.one(number) for number in range(train.frames)]
        assert [(piece.seq, piece.data) for piece in pieces] == [
            (1000, bytes(range(100))),
            (1100, bytes(range(100, 200))),
            (1200, bytes(range(200, 250))),
        ]
        assert all(piece.frames == 1 for piece in pieces)
        assert sum(piece.size for piece in pieces) == train.size
        acks = replace(train, data=b"", copies=3)
        assert acks.one(2) == replace(acks, copies=1)

    simulate(main())


def run_with(faults: Faults, monkeypatch: pytest.MonkeyPatch, *links: str) -> RunRecord:
    what = replace(plan(total="20M"), fault_links=frozenset(links))
    return simulation.execute(what, ALL, 1, LIMITS, Saboteur(faults, monkeypatch))


def failed(record: RunRecord) -> list[str]:
    return [f"{check.name}: {check.evidence}" for check in judge(record.evidence).checks if check.ok is False]


FAULTS: Faults = [
    ("loss", {"probability": 0.01}),
    ("delay", {"seconds": 0.001, "jitter": 0.0005}),
    ("duplicate", {"probability": 0.05}),
]


def test_swap_survives_loss_delay_and_duplicates_and_does_so_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (run_with(FAULTS, monkeypatch, "client") for _ in range(2))
    assert failed(first) == []
    for way in ("to", "from"):
        account = first.evidence.links["client"][way]
        assert account["duplicated"] > 0
        assert account["dropped"]["loss"] > 0
    assert first.elapsed_s == second.elapsed_s
    assert first.evidence.links == second.evidence.links


def test_relays_without_faults_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_relays, without = run_with([], monkeypatch, "client", "server", "noise"), run_with([], monkeypatch, "noise")
    assert failed(with_relays) == []
    assert with_relays.elapsed_s == without.elapsed_s


def test_a_run_with_a_fault_that_cannot_be_simulated_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="link of client: the simulator's frames have no bytes"):
        run_with([("corrupt", {"probability": 0.1})], monkeypatch, "client")
