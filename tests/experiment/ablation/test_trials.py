"""Which runs were survived, and that no run is made twice."""

from __future__ import annotations

import pytest

from testbed.experiment.ablation.trials import survived, trial
from testbed.experiment.result import Check, Outcome
from tests.experiment.ablation.planted import ALL, needing, result, trials


@pytest.mark.parametrize(
    ("outcome", "came_through"), [("pass", True), ("fail", True), ("deadlock", False), ("error", None)]
)
def test_a_host_survives_if_its_work_is_done_whatever_the_verdict(outcome: Outcome, came_through: bool | None) -> None:
    assert survived(result(outcome=outcome)) is came_through


@pytest.mark.parametrize(
    ("name", "came_through"),
    [
        ("drops happen", True),
        ("canary after", True),
        ("progress", False),
        ("integrity", False),
        ("conservation", None),
        ("canary before", None),
    ],
)
@pytest.mark.parametrize("ok", [False, None])
def test_what_each_check_has_to_do_with_survival(name: str, ok: bool | None, came_through: bool | None) -> None:
    spoiled = result()
    spoiled.checks = [Check(each.name, ok if each.name == name else each.ok, "") for each in spoiled.checks]
    assert survived(spoiled) is came_through


def test_a_workload_that_ended_only_after_a_stall_has_no_time() -> None:
    late = result()
    late.stalled_after_s = 4.5
    assert (trial(ALL, late).finished_after_s, trial(ALL, late).stalled_after_s) == (None, 4.5)
    assert trial(ALL, result()).finished_after_s == 11.0


def test_what_is_kept_of_a_run() -> None:
    kept = trial(ALL - {15}, result(ALL - {15}, seed=7, pgfault=3))
    assert (kept.off, kept.seed, kept.counters["pgfault"], kept.counters["reserve_min_free"]) == ([15], 7, 3, 83)
    assert kept.evidence == "progress seen"
    assert "patch 16 is on without patch 15" in kept.warnings[0]
    assert trial(ALL, result(outcome="error")).evidence == "the rig broke"


def test_a_run_is_made_once() -> None:
    study, made = trials(needing(frozenset({4})))
    study.make([(ALL, 1), (ALL, 1), (ALL, 2)])
    study.make([(ALL, 1), (ALL, 3)])
    assert made == [(ALL, 1), (ALL, 2), (ALL, 3)]
    assert [each.seed for each in study.of(ALL)] == [1, 2, 3]


def test_a_set_is_given_up_at_the_first_seed_it_does_not_survive() -> None:
    study, made = trials(
        lambda patches, seed: "deadlock" if 4 not in patches or (seed == 2 and len(patches) < 16) else "pass"
    )
    assert study.survivors([ALL, ALL - {4}, ALL - {16}]) == [ALL]
    assert [seed for patches, seed in made if patches == ALL - {4}] == [1]
    assert [seed for patches, seed in made if patches == ALL - {16}] == [1, 2]
    assert study.dies(ALL - {4})
    assert not study.dies(ALL)
    assert not study.dies(ALL - {1}), "a set that was never run is not known to die"


def test_seeds_are_tried_together_so_that_nobody_who_makes_runs_is_idle() -> None:
    study, made = trials(lambda patches, seed: "deadlock" if seed == 2 and len(patches) < 16 else "pass", at_once=2)
    assert study.survivors([ALL - {4}]) == []
    assert [seed for _, seed in made] == [1, 2]
    assert study.survivors([ALL, ALL - {16}]) == [ALL]
    assert [seed for patches, seed in made if patches == ALL - {16}] == [1, 2]
    assert [seed for patches, seed in made if patches == ALL] == [1, 2, 3]


def test_a_run_that_broke_down_shows_neither_life_nor_death() -> None:
    study, _ = trials(lambda patches, seed: "error" if seed == 2 else "pass")
    assert study.survivors([ALL]) == []
    assert not study.dies(ALL)
    assert [each.seed for each in study.undecided()] == [2]
