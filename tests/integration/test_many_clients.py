"""Many clients on one server (scripts/load): the short form on real sockets, and what its judgement finds wrong."""

from __future__ import annotations

import json

import pytest

from scripts.loading import driver
from scripts.loading.judgement import MOST_GROWTH, PER_CLIENT, PROGRAM, Served, judge

MIB = 1 << 20
WELL = [Served(requests=100)] * 8
STEADY = [300 * MIB] * 100


def complaints(clients: list[Served], resident: list[int], export: int = 256 * MIB) -> str:
    return "\n".join(judge(clients, resident, export).complaints)


def test_a_server_that_served_well() -> None:
    judgement = judge(WELL, STEADY, 256 * MIB)
    assert judgement.complaints == []
    assert judgement.share == 1.0


@pytest.mark.parametrize(
    ("requests", "share"),
    [([100, 100, 100, 49], 0.562), ([100, 100, 100, 100, 100, 100, 100, 40], 0.432), ([0, 5], 0.0), ([0, 0], 0.0)],
)
def test_the_share_is_that_of_the_slowest(requests: list[int], share: float) -> None:
    judgement = judge([Served(number) for number in requests], STEADY, 256 * MIB)
    assert judgement.share == pytest.approx(share, abs=1e-3)
    assert bool(judgement.complaints) is (share < 0.5)


@pytest.mark.parametrize(
    ("wrong", "complaint"), [(Served(100, errors=1), "1 requests failed"), (Served(100, corrupt=1), "1 READs brought")]
)
def test_a_single_wrong_reply_is_one_too_many(wrong: Served, complaint: str) -> None:
    assert complaint in complaints([wrong, *WELL], STEADY)


def test_memory_may_grow_at_first_but_not_for_ever() -> None:
    beginning = [100 * MIB] * 10
    assert complaints(WELL, [*beginning, *[300 * MIB] * 90]) == ""
    assert complaints(WELL, [*beginning, *[300 * MIB] * 89, 300 * MIB + MOST_GROWTH]) == ""
    assert "grew by" in complaints(WELL, [*beginning, *[300 * MIB] * 89, 301 * MIB + MOST_GROWTH])


def test_memory_has_a_bound_at_any_time() -> None:
    most = 256 * MIB + PROGRAM + len(WELL) * PER_CLIENT
    assert complaints(WELL, [*STEADY, most, *STEADY]) == ""
    assert "the server took" in complaints(WELL, [*STEADY, most + 1, *STEADY])


@pytest.mark.root
@pytest.mark.parametrize("export", ["memory", "file"])
def test_eight_clients_for_two_seconds(export: str, capsys: pytest.CaptureFixture[str]) -> None:
    """So short a run on a busy machine says little of shares: here they only must not be nothing."""
    words = ["--clients", "8", "--seconds", "2", "--size", "32M", "--json", *["--file"] * (export == "file")]
    status = driver.main(words)
    report = json.loads(capsys.readouterr().out)
    assert (report["clients"], report["errors"], report["corrupt"]) == (8, 0, 0)
    assert report["requests_min"] > 8 * 4
    assert [complaint for complaint in report["complaints"] if "fair share" not in complaint] == []
    assert status == bool(report["complaints"])
