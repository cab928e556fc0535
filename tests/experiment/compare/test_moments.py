"""From how few moments a count comes, and what that says of a difference."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import mean, pstdev

import msgspec
import pytest

from testbed.experiment.compare.moments import by_chance, moments, moments_of_run
from tests.experiment.compare.planted import runs
from tests.experiment.compare.test_agreement import compared


@pytest.mark.parametrize(
    ("rises", "expected"),
    [([], 0), ([7], 1), ([5, 5, 5, 5], 4), ([1000, 1, 1], 1.004), ([3, 1], 1.6)],
)
def test_moments_are_rises_of_one_size(rises: list[int], expected: float) -> None:
    assert moments(rises) == pytest.approx(expected, abs=1e-3)


def test_they_say_how_widely_such_totals_scatter() -> None:
    """Totals of a random number of rises of random sizes: their relative variance is one over the moments."""
    chance = random.Random(1)
    runs_made = [[chance.choice((1, 10)) for _ in range(200) if chance.random() < 0.1] for _ in range(4000)]
    totals = [sum(each) for each in runs_made]
    seen = (pstdev(totals) / mean(totals)) ** 2
    assert mean(1 / moments(each) for each in runs_made if each) == pytest.approx(seen, rel=0.15)


@pytest.mark.parametrize(
    ("ratio", "ours", "theirs", "chance"),
    [
        (2.5, 8.0, 8.0, True),
        (0.4, 8.0, 8.0, True),
        (2.8, 8.0, 8.0, False),
        (2.5, 80.0, 80.0, False),
        (5.0, 1.0, 100.0, True),
        (0.0, 0.0, 2.9, True),
        (None, 2.9, 0.0, True),
        (None, 3.0, 0.0, False),
        (0.0, 0.0, 3.0, False),
    ],
)
def test_what_chance_can_do(ratio: float | None, ours: float, theirs: float, chance: bool) -> None:
    assert by_chance(ratio, ours, theirs) is chance


def write(directory: Path, counts: dict[str, list[dict[str, int]]]) -> None:
    lines = [
        {"time": at, "host": host, "counters": each} for host, some in counts.items() for at, each in enumerate(some)
    ]
    (directory / "counters.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_runs_moments_are_those_of_all_its_clients(tmp_path: Path) -> None:
    one = [{"PFMemallocDrop": count, "allocstall": 0, "pswpin": count} for count in (0, 0, 6, 6, 12)]
    other = [{"PFMemallocDrop": count, "allocstall": 0} for count in (4, 10, 10)]
    write(tmp_path, {"one": one, "server": [{"reads": 1}, {"reads": 5}], "other": other})
    assert moments_of_run(tmp_path) == {"PFMemallocDrop": 3.0, "allocstall": 0.0}


@pytest.mark.parametrize("text", [None, "{}\n", "nonsense"])
def test_samples_that_cannot_be_read_tell_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "counters.jsonl").write_text(text)
    assert moments_of_run(tmp_path) == {}


@pytest.mark.parametrize(
    ("ours", "theirs", "explained"), [(8.0, 8.0, True), (80.0, 80.0, False), (None, 8.0, False), (8.0, None, False)]
)
def test_a_difference_that_chance_makes_is_explained_and_any_other_is_not(
    ours: float | None, theirs: float | None, explained: bool
) -> None:
    (emulated,) = runs("emulated", "p", PFMemallocDrop=[250])
    (kernel,) = runs("kernel", "p", PFMemallocDrop=[100])
    known = [
        msgspec.structs.replace(run, moments={} if count is None else {"PFMemallocDrop": count})
        for run, count in ((emulated, ours), (kernel, theirs))
    ]
    (differs,) = compared([known[0]], [known[1]]).disagreements
    assert differs.what == "PFMemallocDrop"
    assert (differs.explanation is not None) == explained
