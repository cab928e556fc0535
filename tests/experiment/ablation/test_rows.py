"""What is said of several runs together: medians, what moved, what was seen to be off."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.experiment.ablation.rows import GAUGES, moved, name, row, witness
from testbed.experiment.ablation.trials import Trial, trial
from testbed.experiment.result import Outcome, Witness
from tests.experiment.ablation.planted import ALL, result

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=7)


def runs(values: Sequence[int], off: frozenset[int] = frozenset(), outcome: Outcome = "pass") -> list[Trial]:
    return [
        trial(ALL - off, result(ALL - off, seed, outcome, pgfault=value)) for seed, value in enumerate(values, start=1)
    ]


@given(here=COUNTS, there=COUNTS)
def test_a_counter_has_moved_when_its_median_is_beyond_all_that_was_seen_there(
    here: list[int], there: list[int]
) -> None:
    found = row(runs(here, frozenset({4})), runs(there))
    middle = sorted(here)
    median = (middle[(len(here) - 1) // 2] + middle[len(here) // 2]) / 2
    assert found.counters["pgfault"] == median
    assert ("pgfault" in found.moved) == (median < min(there) or median > max(there))
    if "pgfault" in found.moved:
        change = found.moved["pgfault"]
        assert (change.lowest, change.highest) == (min(there), max(there))
        assert (change.factor > 0) == (median > max(there))


def test_what_moved_most_comes_first_and_gauges_do_not_count() -> None:
    reference = [trial(ALL, result(a=100, b=100, c=100, nr_writeback=0))]
    changes = moved({"a": 150, "b": 1, "c": 100, "nr_writeback": 900}, reference)
    assert list(changes) == ["b", "a"]
    assert "nr_writeback" in GAUGES


def test_runs_that_broke_down_are_counted_and_otherwise_left_out() -> None:
    mixed = [*runs([5, 7], frozenset({4})), *runs([900], frozenset({4}), "error")]
    found = row(mixed, runs([6]))
    assert (found.runs, found.survived, found.outcomes) == (3, 2, {"pass": 2, "error": 1})
    assert found.counters["pgfault"] == 6
    assert found.evidence == "the rig broke"
    only_broken = row(runs([1], frozenset({4}), "error"), runs([6]))
    assert (only_broken.counters, only_broken.witness, only_broken.reserve_min_free) == ({}, None, None)


def test_times_are_beside_those_of_all_on() -> None:
    stuck = row(runs([1, 1], frozenset({9}), "deadlock"), runs([1]))
    assert (stuck.stalled_after_s, stuck.finished_after_s, stuck.slowdown) == (3.0, None, None)
    slow = row(runs([1, 1, 1], frozenset({3})), runs([1]))
    assert slow.finished_after_s == 12.0
    assert slow.slowdown == pytest.approx(12 / 11)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], None),
        ([(0, 0)], None),
        ([(5, 0)], True),
        ([(0, 0), (5, 0)], True),
        ([(5, 0), (5, 2)], False),
        ([(0, 0), (3, 3)], False),
    ],
)
def test_whether_it_was_seen_to_be_off(seen: list[tuple[int, int]], expected: bool | None) -> None:
    made = []
    for opportunity, acts in seen:
        one = result(ALL - {4})
        one.witnesses = {"4": Witness(opportunity, acts, "x"), "9": Witness(7, 7, "on, and none of its business")}
        made.append(trial(ALL - {4}, one))
    assert witness(made) is expected


@pytest.mark.parametrize(
    ("on", "words"),
    [(ALL, "all on"), (frozenset(), "all off"), (ALL - {4, 9}, "without 4, 9"), ({4, 8}, "only 4, 8")],
)
def test_names(on: frozenset[int], words: str) -> None:
    assert name(sorted(ALL - on)) == words
