"""What is called certain is right as often as it says, whatever is tried and whenever it stops."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import exp

import pytest

from testbed.experiment.search.evidence import Evidence
from testbed.experiment.search.finder import Finder

CONFIDENCE = 0.9
SEEDS = 400
EASIEST, HARDEST = -60, 90


def noisy_step(boundary: float, width: float) -> Callable[[int], float]:
    """The chance of survival at each point: one half at the boundary, and a logistic step about it."""

    def chance(position: int) -> float:
        if width == 0:
            return float(position < boundary)
        return 1 / (1 + exp(min(700.0, (position - boundary) / width)))

    return chance


def search(chance: Callable[[int], float], seed: int, confidence: float = CONFIDENCE) -> Evidence:
    draw = random.Random(seed).random
    evidence = Evidence(confidence)
    finder = Finder(evidence, (0, 30), EASIEST, HARDEST, repetitions=14)
    while positions := finder.next():
        for position in positions:
            evidence.add(position, draw() < chance(position))
        assert evidence.runs < 1000, "it does not come to an end"
    return evidence


def contains(evidence: Evidence, boundary: float) -> bool:
    easy, hard = evidence.survived, evidence.failed
    return (easy is None or easy < boundary) and (hard is None or hard > boundary)


@pytest.mark.parametrize("width", [0, 0.5, 2, 5])
@pytest.mark.parametrize("boundary", [-31.5, 12.5, 48.5])
def test_the_interval_contains_the_boundary_at_the_stated_rate(boundary: float, width: float) -> None:
    found = [search(noisy_step(boundary, width), seed) for seed in range(SEEDS)]
    assert sum(contains(each, boundary) for each in found) >= CONFIDENCE * SEEDS


@pytest.mark.parametrize("side", ["survived", "failed"])
def test_a_gambler_against_a_fair_coin_is_rarely_ever_rich(side: str) -> None:
    """Ville's inequality where it is tight: looked at after every run, each side errs with half of 1 - confidence."""
    rich = 0
    for seed in range(1000):
        draw = random.Random(seed).random
        evidence = Evidence(CONFIDENCE)
        for _ in range(100):
            evidence.add(0, draw() < 0.5)
            if getattr(evidence, side) is not None:
                rich += 1
                break
    assert 0 < rich <= (1 - CONFIDENCE) / 2 * 1000 + 20


def test_choosing_where_to_look_by_what_came_out_is_no_way_to_be_certain_of_more() -> None:
    """An adversary who repeats a point until it looks survived, then goes to a harder one, gains nothing."""
    wrong = 0
    for seed in range(SEEDS):
        draw = random.Random(seed).random
        evidence, position = Evidence(CONFIDENCE), 0
        for _ in range(150):
            lived = draw() < 0.5
            evidence.add(position, lived)
            position += lived
        wrong += evidence.survived is not None
    assert wrong <= (1 - CONFIDENCE) / 2 * SEEDS + 10


@pytest.mark.parametrize(("width", "points", "runs"), [(0, 1, 25), (0.5, 4, 60)])
def test_a_clear_boundary_takes_few_runs(width: float, points: int, runs: int) -> None:
    found = [search(noisy_step(12.5, width), seed, 0.95) for seed in range(100)]
    widths = sorted((each.failed or HARDEST) - (each.survived or EASIEST) for each in found)
    assert widths[50] <= points
    assert sorted(each.runs for each in found)[50] <= runs


def test_more_confidence_takes_more_runs() -> None:
    runs = [search(noisy_step(12.5, 0), 1, confidence).runs for confidence in (0.5, 0.9, 0.99, 0.999)]
    assert runs == sorted(set(runs))


def test_where_everything_is_survived_that_is_what_is_certain() -> None:
    evidence = search(lambda _: 1.0, 1)
    assert (evidence.survived, evidence.failed) == (HARDEST, None)


def test_where_nothing_is_survived_that_is_what_is_certain() -> None:
    evidence = search(lambda _: 0.0, 1)
    assert (evidence.survived, evidence.failed) == (None, EASIEST)


def test_a_limit_that_shows_itself_on_the_way_is_kept() -> None:
    evidence = Evidence(CONFIDENCE)
    finder = Finder(evidence, (0, 30), EASIEST, HARDEST, repetitions=14)
    while positions := finder.next():
        if max(positions) > 20:
            finder.limit(max(positions) - 1)
            continue
        evidence.add(positions[0], True)
    assert evidence.survived == 20


def test_a_coin_is_never_certain_and_comes_to_an_end() -> None:
    for seed in range(50):
        assert search(lambda _: 0.5, seed).runs < 400
