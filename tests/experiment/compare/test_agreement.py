"""When hosts agree: ratios and bounds, the commonest outcome, what is compared and what is not."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from testbed.experiment.compare import comparison as module
from testbed.experiment.compare.agreement import (
    BOUNDS,
    CounterAgreement,
    Measured,
    in_bounds,
    measure,
    outcomes_agree,
    ratio,
    repeatability,
    self_agreement,
)
from testbed.experiment.compare.comparison import Comparison, reference_of
from testbed.experiment.compare.explanations import KNOWN, Known, blocks_too_small, drops_by_chance, explain
from testbed.experiment.compare.runs import HOSTS, Host, Run
from testbed.experiment.result import Outcome
from tests.experiment.compare.planted import cell, runs


def compared(*made: list[Run], hosts: tuple[Host, ...] = ("emulated", "kernel")) -> Comparison:
    found = Comparison(topology="t", hosts=list(hosts), reference=reference_of(hosts), seed=1, repetitions=len(made[0]))
    found.conclude([cell()], [each for some in made for each in some], sum(map(len, made)))
    return found


@pytest.mark.parametrize(
    ("values", "median", "spread"),
    [([5], 5, (5, 5)), ([9, 1, 2], 2, (1, 9)), ([1, 2, 3, 10], 2.5, (1, 10)), ([0, 0], 0, (0, 0))],
)
def test_a_counter_is_told_by_its_median_and_its_range(
    values: list[int], median: float, spread: tuple[int, int]
) -> None:
    assert measure(values) == Measured(median, spread)


@pytest.mark.parametrize(
    ("value", "reference", "expected"), [(30, 20, 1.5), (0, 0, 1.0), (3, 0, None), (0, 3, 0.0), (7, 7, 1.0)]
)
def test_ratio(value: float, reference: float, expected: float | None) -> None:
    assert ratio(value, reference) == expected


@pytest.mark.parametrize("counter", BOUNDS)
def test_each_bound_holds_up_to_its_edges_and_no_further(counter: str) -> None:
    lowest, highest = BOUNDS[counter]
    assert in_bounds(counter, lowest)
    assert in_bounds(counter, highest)
    assert not in_bounds(counter, lowest - 0.001)
    assert not in_bounds(counter, highest + 0.001)
    assert not in_bounds(counter, None)


def test_the_bounds_are_those_that_were_asked_for() -> None:
    assert BOUNDS["pswpin"] == BOUNDS["pswpout"] == (0.85, 1.15)
    for counter in ("PFMemallocDrop", "pgscan_direct_throttle", "allocstall"):
        assert BOUNDS[counter] == (0.5, 2.0)
    assert in_bounds("pgfault", 100.0), "what has no bound cannot be out of bounds"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"pass": 3}, {"pass": 1}, True),
        ({"pass": 19, "deadlock": 1}, {"pass": 12, "fail": 3}, True),
        ({"pass": 1}, {"deadlock": 1}, False),
        ({"pass": 1, "deadlock": 1}, {"pass": 2}, False),
        ({"error": 5, "pass": 1}, {"pass": 2}, True),
        ({"error": 2}, {"pass": 2}, None),
        ({}, {"pass": 2}, None),
    ],
)
def test_outcomes_agree_if_the_commonest_are_the_same(
    one: dict[Outcome, int], other: dict[Outcome, int], expected: bool | None
) -> None:
    assert outcomes_agree(one, other) is expected


def test_the_reference_is_the_most_real_host() -> None:
    assert HOSTS == ("kernel", "emulated", "simulated")
    assert reference_of(("simulated", "emulated")) == "emulated"
    assert reference_of(("simulated", "emulated", "kernel")) == "kernel"


def test_counters_are_held_against_the_reference() -> None:
    found = compared(
        runs("emulated", "ppp", pswpin=[1100, 1000, 1050], allocstall=[14, 15, 16]),
        runs("kernel", "ppp", pswpin=[900, 1000, 1040], allocstall=[7, 5, 9]),
    )
    (only,) = found.cells
    assert only.counters["pswpin"] == {
        "emulated": Measured(1050, (1000, 1100), 1.05, False),
        "kernel": Measured(1000, (900, 1040)),
    }
    assert only.agree
    assert "nr_writeback" not in only.counters, "a gauge"
    assert only.counters["reserve_min_free"]["emulated"].within
    (differs,) = found.disagreements
    assert (differs.what, differs.host, differs.measured, differs.reference) == (
        "allocstall",
        "emulated",
        "15 (14 to 16)",
        "7 (5 to 9)",
    )
    assert differs.explanation is None


def test_a_median_within_the_references_own_spread_explains_itself() -> None:
    found = compared(
        runs("emulated", "ppp", PFMemallocDrop=[500, 500, 500]),
        runs("kernel", "ppp", PFMemallocDrop=[20, 100, 900]),
    )
    (differs,) = found.disagreements
    assert differs.what == "PFMemallocDrop"
    assert differs.explanation is not None
    assert "spread" in differs.explanation


def test_how_far_a_host_came_before_it_hung_is_not_compared() -> None:
    hung = compared(runs("emulated", "dd", pswpin=[1, 2]), runs("kernel", "dd", pswpin=[500, 600]))
    assert hung.outcome_agreement == 1.0
    assert hung.disagreements == []
    differs = compared(runs("emulated", "pp", pswpin=[1, 2]), runs("kernel", "dd"))
    assert [each.what for each in differs.disagreements] == ["outcome"]
    assert differs.outcome_agreement == 0.0


def test_only_counters_that_all_hosts_have_are_compared() -> None:
    found = compared(runs("emulated", "p", ours=[1], both=[2]), runs("kernel", "p", both=[2], theirs=[3]))
    assert {"both", "pswpin"} <= set(found.cells[0].counters)
    assert not {"ours", "theirs"} & set(found.cells[0].counters)


def test_a_run_that_broke_down_counts_for_nothing_but_is_told() -> None:
    found = compared(runs("emulated", "pe", pswpin=[1000, 9]), runs("kernel", "pp", pswpin=[1000, 1000]))
    assert found.cells[0].counters["pswpin"]["emulated"].spread == (1000, 1000)
    assert found.errors == ["cell, emulated, 1: the rig broke"]
    broken = compared(runs("emulated", "ee"), runs("kernel", "pp"))
    assert (broken.outcome_agreement, broken.cells[0].agree, broken.cells[0].counters) == (None, None, {})


def test_three_hosts_agree_only_all_together() -> None:
    hosts: tuple[Host, ...] = ("emulated", "simulated", "kernel")
    found = compared(runs("emulated", "p"), runs("simulated", "d"), runs("kernel", "p"), hosts=hosts)
    assert found.cells[0].agree is False
    assert [(each.host, each.what) for each in found.disagreements] == [("simulated", "outcome")]


def test_what_is_missing_is_not_complete() -> None:
    found = Comparison(topology="t", hosts=["emulated", "kernel"], reference="kernel", seed=1, repetitions=1)
    found.conclude([cell("a"), cell("b")], runs("emulated", "p", "a") + runs("kernel", "p", "a"), 4)
    assert not found.complete
    assert [each.name for each in found.cells] == ["a"]
    assert found.outcome_agreement == 1.0


def test_a_known_difference_explains_where_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known("allocstall", "emulated", "kernel", True, lambda given, *_: given["name"] == "cell", "it is known")
    assert explain("allocstall", "emulated", "kernel", {"name": "cell"}, {}, less=True, known=[known]) == "it is known"
    assert explain("allocstall", "emulated", "kernel", {"name": "cell"}, {}, less=False, known=[known]) is None
    others: list[tuple[str, Host, str]] = [
        ("pswpin", "emulated", "cell"),
        ("allocstall", "simulated", "cell"),
        ("allocstall", "emulated", "x"),
    ]
    for what, host, name in others:
        assert explain(what, host, "kernel", {"name": name}, {}, less=True, known=[known]) is None
    monkeypatch.setattr(module, "explain", partial(explain, known=[known]))
    found = compared(runs("emulated", "p", allocstall=[1]), runs("kernel", "p"))
    assert [each.explanation for each in found.disagreements] == ["it is known"]
    found = compared(runs("emulated", "p", allocstall=[70]), runs("kernel", "p"))
    assert [each.explanation for each in found.disagreements] == [None]


@pytest.mark.parametrize(
    ("ours", "theirs", "less", "explained"),
    [
        ({"pgscan_direct": 100_000}, {"pgscan_direct": 4_000_000}, True, True),
        ({"pgscan_direct": 100_000}, {"pgscan_direct": 900_000}, True, False),
        ({"pgscan_direct": 0}, {"pgscan_direct": 900_000}, True, False),
        ({"pgscan_direct": 100_000}, {"pgscan_direct": 4_000_000}, False, False),
        ({}, {}, True, False),
        ({"pgsteal_kswapd": 60, "pgsteal_direct": 40}, {"pgsteal_kswapd": 900, "pgsteal_direct": 100}, False, True),
        ({"pgsteal_kswapd": 60, "pgsteal_direct": 40}, {"pgsteal_kswapd": 50, "pgsteal_direct": 50}, False, False),
        ({"pgsteal_kswapd": 60, "pgsteal_direct": 40}, {"pgsteal_kswapd": 0, "pgsteal_direct": 0}, False, False),
        ({}, {}, False, False),
    ],
)
def test_why_stalls_differ_has_to_show_in_what_else_was_counted(
    ours: dict[str, float], theirs: dict[str, float], less: bool, explained: bool
) -> None:
    medians: dict[Host, dict[str, float]] = {"emulated": ours, "kernel": theirs}
    assert (explain("allocstall", "emulated", "kernel", {}, medians, less=less) is not None) == explained


def test_known_differences_are_about_what_can_differ() -> None:
    for each in KNOWN:
        assert each.counter in BOUNDS
        assert HOSTS.index(each.reference) < HOSTS.index(each.host)
        assert each.why


@pytest.mark.parametrize(
    ("failed", "dropped", "explained"),
    [
        (("drops happen",), 336, True),
        (("drops happen",), 3360, False),
        (("drops happen", "integrity"), 336, False),
        ((), 336, False),
    ],
)
def test_a_flood_that_hardly_reached_the_reserve_explains_that_nothing_was_dropped(
    failed: tuple[str, ...], dropped: int, explained: bool
) -> None:
    (ours,) = runs("emulated", "f", PFMemallocDrop=[0], InDatagrams=[4_000], RcvbufErrors=[200_000])
    theirs = runs("kernel", "p", PFMemallocDrop=[dropped], InDatagrams=[4_000], RcvbufErrors=[200_000])
    ours = msgspec.structs.replace(ours, failed=failed)
    found = compared([ours], theirs)
    (differs,) = [each for each in found.disagreements if each.what == "outcome"]
    assert (differs.explanation is not None) == explained
    assert (drops_by_chance([ours, *theirs]) is not None) == explained
    assert found.outcome_agreement == 0.0, "explained or not, it is a disagreement"


BLOCK = "deadlock: nothing moved; its largest free block has 2 pages, fewer than the 4 of a receive buffer"


@pytest.mark.parametrize(
    ("ours", "theirs", "evidence", "explained"),
    [
        ("p", "d", BLOCK, True),
        ("p", "ddp", BLOCK, True),
        ("p", "d", "deadlock: nothing moved; its kernel sleeps", False),
        ("f", "d", BLOCK, False),
        ("d", "p", BLOCK, False),
    ],
)
def test_a_kernel_that_hung_for_want_of_a_block_explains_that_the_model_came_through(
    ours: str, theirs: str, evidence: str, explained: bool
) -> None:
    """Only if it says so itself, of every run that hung."""
    made = [
        msgspec.structs.replace(run, evidence=evidence) if run.outcome == "deadlock" else run
        for run in (*runs("emulated", ours), *runs("kernel", theirs))
    ]
    assert (blocks_too_small(made) is not None) == explained


def test_hosts_that_complete_may_differ_in_what_else_they_found() -> None:
    (ours,) = runs("emulated", "f", PFMemallocDrop=[0], InDatagrams=[10], RcvbufErrors=[0])
    ours = msgspec.structs.replace(ours, failed=("drops happen",))
    found = compared([ours], runs("kernel", "p", PFMemallocDrop=[1], InDatagrams=[9], RcvbufErrors=[0]))
    assert found.cells[0].completed == {"emulated": 1, "kernel": 1}
    assert (found.outcome_agreement, found.completion_agreement) == (0.0, 1.0)
    stalled = compared([msgspec.structs.replace(ours, failed=("progress",))], runs("kernel", "p"))
    assert (stalled.outcome_agreement, stalled.completion_agreement) == (0.0, 0.0)
    assert compared(runs("emulated", "e"), runs("kernel", "p")).completion_agreement is None


def test_a_reference_that_is_not_sure_itself_is_told() -> None:
    found = compared(runs("emulated", "ppp"), runs("kernel", "ppd"))
    assert found.repeatability == {"emulated": 1.0, "kernel": pytest.approx(1 / 3)}
    once = compared(runs("emulated", "p"), runs("kernel", "pe"))
    assert once.repeatability == {"emulated": None, "kernel": None}


def test_every_cell_weighs_the_same_in_how_well_runs_repeat() -> None:
    assert repeatability([{"pass": 4}, {"pass": 1, "deadlock": 1}, {"fail": 1}]) == 0.5
    assert repeatability([{"pass": 1}]) is None
    assert repeatability([]) is None


def test_a_counter_over_all_cells_is_its_median_ratio_beside_how_well_the_reference_repeats() -> None:
    names = ("a", "b", "c", "hung")
    found = Comparison(topology="t", hosts=["emulated", "kernel"], reference="kernel", seed=1, repetitions=2)
    made = runs("emulated", "pp", "a", allocstall=[10, 10]) + runs("kernel", "pp", "a", allocstall=[10, 10])
    made += runs("emulated", "pp", "b", allocstall=[30, 30]) + runs("kernel", "pp", "b", allocstall=[5, 15])
    made += runs("emulated", "pp", "c", allocstall=[15, 15]) + runs("kernel", "pp", "c", allocstall=[10, 10])
    made += runs("emulated", "dd", "hung", allocstall=[900, 1]) + runs("kernel", "dd", "hung", allocstall=[1, 900])
    found.conclude([cell(name) for name in names], made, len(made))
    (agreement,) = [each for each in found.counters if each.counter == "allocstall"]
    assert agreement == CounterAgreement("allocstall", "emulated", 3, 2, 1.5, 2 / 3)


def test_a_counter_that_the_reference_mostly_does_not_count_has_no_ratio() -> None:
    found = compared(runs("emulated", "p", allocstall=[10]), runs("kernel", "p", allocstall=[0]))
    (agreement,) = [each for each in found.counters if each.counter == "allocstall"]
    assert agreement == CounterAgreement("allocstall", "emulated", 1, 0, None, None)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [([], None), ([[1]], None), ([[1], [4, 4]], 1.0), ([[4, 9]], 0.0), ([[4, 9], [4, 8]], 0.5), ([[4, 4, 9]], 1 / 3)],
)
def test_self_agreement(cells: list[list[int]], expected: float | None) -> None:
    assert self_agreement("allocstall", cells) == pytest.approx(expected)
