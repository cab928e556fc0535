"""Whole runs through links with faults: swap is slower, and every page and every frame is accounted for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.experiment.coordinator import RunRecord
from testbed.experiment.run import execute
from testbed.experiment.verdict import judge
from testbed.lab.effects.stack import Stack
from testbed.lab.packet_sender import PacketSender
from tests.integration.saboteur import Faults, Saboteur
from tests.integration.small_run import ALL_ON, LIMITS, small_plan

pytestmark = pytest.mark.root


def run_with(
    faults: Faults, monkeypatch: pytest.MonkeyPatch, links: frozenset[str], **plan: Any
) -> tuple[RunRecord, Saboteur]:
    """Run the small plan with relays in some links and faults on each of them."""
    saboteur = Saboteur(faults, monkeypatch)
    return execute(replace(small_plan(**plan), fault_links=links), ALL_ON, 1, LIMITS, saboteur), saboteur


def failed(record: RunRecord) -> list[str]:
    return [f"{check.name}: {check.evidence}" for check in judge(record.evidence).checks if check.ok is False]


def test_swap_survives_loss_delay_and_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: Faults = [
        ("loss", {"probability": 0.003}),
        ("delay", {"seconds": 0.001}),
        ("duplicate", {"probability": 0.05}),
    ]
    record, saboteur = run_with(faults, monkeypatch, frozenset({"client"}))
    assert failed(record) == []
    report = record.evidence.clients[0].report
    assert report is not None
    assert report["swap"]["corrupt"] == report["workload"]["corrupt"] == 0
    account = record.evidence.links["client"]
    for way in ("to", "from"):
        assert account[way]["duplicated"] > 0
        assert account[way]["dropped"]["loss"] > 0
    names = [event.name for event in saboteur.events if event.host == "link of client"]
    assert names == ["fault_set"] * 3 + ["fault_cleared"] * 3


def test_corruption_on_the_wire_never_reaches_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: Faults = [("corrupt", {"probability": 0.003, "keep_headers": True})]
    record, _ = run_with(faults, monkeypatch, frozenset({"server"}))
    assert failed(record) == []
    assert record.evidence.links["server"]["from"]["altered"] > 0


def test_relays_in_several_links_without_faults_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    record, _ = run_with([], monkeypatch, frozenset({"client", "server", "noise"}))
    assert failed(record) == []
    assert set(record.evidence.links) == {"client", "server", "noise"}


@pytest.mark.parametrize("blinded", ["taken", "sent"])
def test_a_relay_that_loses_a_frame_in_silence_turns_the_run_red(monkeypatch: pytest.MonkeyPatch, blinded: str) -> None:
    if blinded == "taken":
        monkeypatch.setattr(Stack, "passed", lambda self, frames: None)
    else:
        send = PacketSender.send
        monkeypatch.setattr(PacketSender, "send", lambda self, block, *more: _forgetful(send, self, block, *more))
    record, _ = run_with([], monkeypatch, frozenset({"client"}))
    assert judge(record.evidence).outcome == "fail"
    assert any("the link of client" in line for line in failed(record))


def _forgetful(send: Any, sender: PacketSender, block: Any, *more: Any) -> int:
    """Send a block, but not say so."""
    before = sender.tx_packets
    sent: int = send(sender, block, *more)
    sender.tx_packets = before
    return sent
