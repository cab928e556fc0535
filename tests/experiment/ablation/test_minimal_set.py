"""The search finds what was planted, and claims no more than it has tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.experiment.ablation.minimal_set import MinimalSet, find
from testbed.experiment.ablation.trials import Trials
from testbed.experiment.result import Outcome
from testbed.patches import PATCHES, with_bases, with_dependents
from tests.experiment.ablation.planted import ALL, Fate, needing, trials

SOME = st.frozensets(st.sampled_from(sorted(ALL)))
FEW = st.frozensets(st.sampled_from(sorted(ALL)), max_size=4)


def searched(
    fate: Fate, candidates: frozenset[int] = ALL, needed: frozenset[int] = frozenset(), exhaustive: bool = False
) -> tuple[MinimalSet | None, Trials]:
    study, _ = trials(fate)
    return find(study, ALL, candidates, needed, exhaustive), study


def check_claim(found: MinimalSet, study: Trials, candidates: frozenset[int]) -> None:
    """What is claimed of a set must follow from runs that were made."""
    fixed = ALL - with_dependents(candidates)
    assert with_bases(found.patches) == found.patches
    assert all(each.survived for each in study.of(found.patches))
    assert len(study.of(found.patches)) == len(study.seeds)
    if found.established == "open":
        return
    for number in found.patches - fixed:
        assert study.dies(found.patches - with_dependents([number]))


@given(needed=SOME, guess=SOME)
def test_what_is_needed_is_found_with_its_bases_whatever_the_guess(
    needed: frozenset[int], guess: frozenset[int]
) -> None:
    found, study = searched(needing(needed), needed=guess)
    assert found is not None
    assert found.patches == with_bases(needed)
    check_claim(found, study, ALL)


@given(needed=SOME, seed=st.integers(1, 3))
def test_a_patch_that_only_one_seed_needs_is_needed(needed: frozenset[int], seed: int) -> None:
    found, _ = searched(lambda on, which: "deadlock" if which == seed and not needed <= on else "fail")
    assert found is not None
    assert found.patches == with_bases(needed)


@given(needed=SOME, candidates=FEW)
def test_patches_that_are_not_to_be_turned_off_stay_on(needed: frozenset[int], candidates: frozenset[int]) -> None:
    found, study = searched(needing(needed), candidates)
    assert found is not None
    assert ALL - found.patches <= with_dependents(candidates)
    assert needed <= found.patches
    check_claim(found, study, candidates)


SMALL = frozenset({3, 2, 5, 12, 15, 16})
"""Candidates with dependencies among them, few enough for every set to be tried."""


def every_closed_set(candidates: frozenset[int]) -> list[frozenset[int]]:
    sets = [ALL]
    for number in sorted(with_dependents(candidates), reverse=True):
        sets += [each - {number} for each in sets]
    return [each for each in sets if with_bases(each) == each]


@given(
    deadly=st.frozensets(st.sampled_from(every_closed_set(SMALL)), max_size=40),
    exhaustive=st.booleans(),
    guess=st.frozensets(st.sampled_from(sorted(SMALL))),
)
def test_where_taking_away_more_may_help_the_whole_search_still_finds_the_smallest(
    deadly: frozenset[frozenset[int]], exhaustive: bool, guess: frozenset[int]
) -> None:
    found, study = searched(lambda on, _: "deadlock" if on in deadly else "pass", SMALL, guess, exhaustive)
    alive = [each for each in every_closed_set(SMALL) if each not in deadly]
    if ALL in deadly:
        assert found is None
        return
    assert found is not None
    assert found.patches in alive
    check_claim(found, study, SMALL)
    smallest = min(map(len, alive))
    if exhaustive:
        assert found.established == "smallest"
    if found.established == "smallest":
        assert len(found.patches) == smallest
    if found.established == "no part":
        assert not any(each < found.patches for each in alive)


@given(
    needed=SOME,
    broken=st.frozensets(
        st.tuples(st.frozensets(st.sampled_from(sorted(ALL)), max_size=2), st.integers(1, 3)), max_size=6
    ),
)
def test_runs_that_break_down_never_prove_anything(
    needed: frozenset[int], broken: frozenset[tuple[frozenset[int], int]]
) -> None:
    def fate(on: frozenset[int], seed: int) -> Outcome:
        if (ALL - on, seed) in broken:
            return "error"
        return "pass" if needed <= on else "deadlock"

    found, study = searched(fate)
    if found is None:
        assert any(off == frozenset() for off, _ in broken)
        return
    assert needed <= found.patches
    check_claim(found, study, ALL)


def test_a_broken_run_leaves_the_claim_open() -> None:
    found, _ = searched(lambda on, _: "error" if 16 not in on else "pass" if ALL - {16} <= on else "deadlock")
    assert found is not None
    assert (found.patches, found.established) == (ALL, "open")


def test_nothing_is_needed() -> None:
    found, _ = searched(needing(frozenset()))
    assert found is not None
    assert (found.patches, found.established) == (frozenset(), "smallest")


def test_not_even_all_patches_survive() -> None:
    assert searched(lambda on, _: "deadlock")[0] is None


@pytest.mark.parametrize("exhaustive", [False, True])
def test_two_patches_that_harm_each_other_off_alone(exhaustive: bool) -> None:
    """Without 5 alone or 15 alone it dies; without both it lives: only trying parts can find that."""

    def fate(on: frozenset[int], _: int) -> Outcome:
        return "pass" if {4, 8} <= on and (5 in on) == (15 in on) else "deadlock"

    found, study = searched(fate, exhaustive=exhaustive)
    assert found is not None
    assert found.patches == {4, 7, 8}
    assert found.established == ("smallest" if exhaustive else "no part")
    check_claim(found, study, ALL)


def test_the_expected_set_of_the_series_costs_few_runs() -> None:
    needed = frozenset({4, 8, 9, 14})
    study, made = trials(needing(needed), seeds=(1,))
    found = find(study, ALL, frozenset(PATCHES), needed)
    assert found is not None
    assert found.patches == needed | {7}
    assert len(made) < 12
