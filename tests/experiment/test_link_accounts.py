"""A link's account is whole and adds up, or the run is red."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.experiment.evidence import Missing
from testbed.experiment.link_accounts import link_complaint, link_frames
from testbed.experiment.verdict import judge
from tests.experiment.witness import run


def account(**changes: Any) -> dict[str, dict[str, Any]]:
    """The account of a link with all sorts of losses, changed for the frames that go to the host."""
    sound = {
        "interface_packets": 100,
        "ring_packets": 95,
        "ring_drops": 5,
        "taken": 95,
        "duplicated": 10,
        "altered": 3,
        "held": 2,
        "dropped": {"loss": 7, "mtu": 1},
        "tx_packets": 94,
        "tx_dropped": 1,
    }
    return {"to": sound | changes, "from": sound}


def conservation(links: dict[str, Any]) -> tuple[bool | None, str]:
    (check,) = (check for check in judge(run(links=links)).checks if check.name == "conservation")
    return check.ok, check.evidence


def test_a_sound_account_is_no_complaint() -> None:
    assert link_complaint(("client", account())) is None
    assert conservation({"client": account()})[0] is True


COUNTS = ("interface_packets", "ring_packets", "ring_drops", "taken", "duplicated", "held", "tx_packets", "tx_dropped")


@pytest.mark.parametrize("name", COUNTS)
def test_one_frame_too_many_anywhere_turns_the_run_red(name: str) -> None:
    ok, evidence = conservation({"server": account(), "client": account(**{name: account()["to"][name] + 1})})
    assert ok is False
    assert evidence.startswith("the link of client, frames to it:")


def test_a_loss_without_its_frame_turns_the_run_red() -> None:
    assert conservation({"client": account(dropped={"loss": 8, "mtu": 1})})[0] is False


@pytest.mark.parametrize("report", [{}, {"to": account()["to"]}, {"to": {}, "from": {}}])
def test_a_missing_account_is_never_a_good_one(report: dict[str, Any]) -> None:
    with pytest.raises(Missing):
        link_complaint(("client", report))
    ok, evidence = conservation({"client": report})
    assert ok is False
    assert "could not be checked" in evidence


def test_the_result_says_where_all_frames_are() -> None:
    frames = link_frames(account())["to"]
    assert frames.dropped == {"loss": 7, "mtu": 1, "ring": 5, "interface": 1}
    assert frames.received + frames.duplicated == frames.sent + frames.held + sum(frames.dropped.values())
    assert link_frames({}) == {}
