"""Predictions against measurements: agreement is silent, a difference is explained from what was seen."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.experiment.ablation.disagreements import ON_THE_WAY_TO_A_HANG, compare, compare_minimal, outcome_met
from testbed.experiment.ablation.minimal_set import MinimalSet
from testbed.experiment.ablation.predictions import MINIMAL_SET, ROBUST_SET, WITHOUT, WITHOUT_ANY, Expected, Prediction
from testbed.experiment.ablation.rows import Moved, Row
from testbed.mm.vmstat import VmStat
from testbed.net.snmp import NetStat
from testbed.patches import PATCHES, with_bases


def row(off: list[int], survived: int = 5, runs: int = 5, **changes: Any) -> Row:
    outcomes = {"pass": survived, "deadlock": runs - survived}
    plain: dict[str, Any] = {
        "outcomes": {outcome: count for outcome, count in outcomes.items() if count},
        "witness": True,
        "finished_after_s": 10.0,
        "stalled_after_s": None,
        "slowdown": 1.0,
        "reserve_min_free": 9.0,
        "counters": {},
        "moved": {},
        "evidence": "",
        "warnings": [],
    }
    return Row(off=off, runs=runs, survived=survived, **(plain | changes))


ALL_ON = row([], counters={"pgscan_direct_throttle": 40.0})


def throttle(value: float) -> dict[str, Any]:
    return {
        "counters": {"pgscan_direct_throttle": value},
        "moved": {"pgscan_direct_throttle": Moved(value, 40, 30, 50)} if not 30 <= value <= 50 else {},
    }


@pytest.mark.parametrize(("survived", "told"), [(5, False), (3, True), (0, True)])
def test_a_hang_is_explained_by_where_the_reserve_went(survived: int, told: bool) -> None:
    moved = {"no_watermark_slabs": Moved(5913, 184, 150, 200), "no_watermark_failures": Moved(1, 9, 5, 12)}
    counters = {"slab_pfmemalloc_pages": 50.0, "no_watermark_slabs": 5913.0, "no_watermark_failures": 1.0}
    found = compare(row([2], survived=survived, counters=counters, moved=moved), ALL_ON)
    assert found is not None
    line = "5,913 pages of the reserve became slabs (no_watermark_slabs; 184 with all on)"
    assert (line in found.explanation) == told
    assert "found nothing" not in found.explanation, "they became fewer"


def test_the_counters_that_explain_a_hang_exist() -> None:
    assert set(ON_THE_WAY_TO_A_HANG) <= set(VmStat.__slots__)


def test_there_is_a_prediction_for_each_patch() -> None:
    assert set(WITHOUT) == set(PATCHES)
    assert with_bases(MINIMAL_SET) == MINIMAL_SET | {7}
    assert with_bases(ROBUST_SET) == ROBUST_SET


def test_agreement_is_silent() -> None:
    assert compare(row([16], **throttle(0)), ALL_ON) is None
    assert compare(row([4], survived=0), ALL_ON) is None
    assert compare(row([*PATCHES], survived=0), ALL_ON) is None
    assert compare(row([4, 8, 9, 14], survived=5), ALL_ON) is None, "nothing was predicted for a set"
    assert compare(row([4], survived=0, outcomes={"error": 5}), ALL_ON) is None, "nothing was measured"


@pytest.mark.parametrize(
    ("expected", "met"),
    [("survives", [5]), ("hangs", [0]), ("may hang", [0, 1, 2, 3, 4, 5])],
)
def test_an_outcome_is_met_by_all_seeds_or_not(expected: Expected, met: list[int]) -> None:
    prediction = Prediction(expected, "", {})
    assert [count for count in range(6) if outcome_met(row([4], survived=count), prediction)] == met


def test_a_host_that_lived_though_it_should_have_hung() -> None:
    found = compare(row([9], witness=None, warnings=["patch 13 is on without patch 9"]), ALL_ON)
    assert found is not None
    assert (found.patch, found.off) == (9, [9])
    assert found.predicted.startswith("hangs")
    assert found.measured == "survived 5 of 5 (pass 5)"
    assert "an occasion to act: these runs do not test it" in found.explanation
    assert "patch 13 is on without patch 9" in found.explanation


def test_a_host_that_hung_though_it_should_have_lived() -> None:
    line = "deadlock: no swap completion for 10 s; pswpout flat at 90"
    found = compare(row([1], survived=3, evidence=line), ALL_ON)
    assert found is not None
    assert found.measured == "survived 3 of 5 (pass 3, deadlock 2)"
    assert line in found.explanation


def test_a_counter_that_stayed_where_it_was() -> None:
    found = compare(row([16], **throttle(35)), ALL_ON)
    assert found is not None
    assert "pgscan_direct_throttle did not go down: 40 with all on, 35 without 16" in found.explanation
    assert "pgscan_direct_throttle 35 as with all on" in found.measured
    up = compare(row([16], **throttle(90)), ALL_ON)
    assert up is not None, "it moved, but the other way"


def test_a_switch_that_was_ignored_and_a_machine_that_was_too_busy_are_named() -> None:
    found = compare(row([8], witness=False, counters={"tp_drops": 12.0}), ALL_ON)
    assert found is not None
    assert "its switch was ignored" in found.explanation
    assert "12 frames were lost before the emulated NIC saw them" in found.explanation


def test_the_minimal_set_against_the_predicted_one() -> None:
    assert compare_minimal(MinimalSet(frozenset({4, 7, 8, 9, 14}), "smallest", 9), MINIMAL_SET) is None
    found = compare_minimal(MinimalSet(frozenset({2, 4, 7, 8, 9}), "no part", 9), MINIMAL_SET)
    assert found is not None
    assert "with the patches they build on: 4, 7, 8, 9, 14" in found.predicted
    assert found.measured == "2, 4, 7, 8, 9 survives"
    assert "survives without 14" in found.explanation
    assert found.explanation.endswith("without, 2")


def test_all_off_is_expected_to_hang() -> None:
    assert WITHOUT_ANY.outcome == "hangs"
    assert compare(row([*PATCHES], survived=5), ALL_ON) is not None


def test_predicted_counters_are_counters() -> None:
    names = NetStat().snapshot().keys() | VmStat().snapshot().keys() | {"reserve_min_free"}
    for prediction in [*WITHOUT.values(), WITHOUT_ANY]:
        assert prediction.moves.keys() <= names
