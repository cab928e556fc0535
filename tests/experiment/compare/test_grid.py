"""The grid: all of it, samples that cover it, cells that cannot exist."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from testbed.experiment.arguments import RunOptions
from testbed.experiment.compare.grid import DIMENSIONS, VALUES, Point, cell, choose, sample, whole_grid
from testbed.experiment.plan import Overrides, resolve
from testbed.patches import PATCHES

COMMON = RunOptions(frozenset(PATCHES), Overrides(preset="6.1"), 1)


def taken(seed: int, number: int) -> list[Point]:
    return list(islice(sample(whole_grid(), seed), number))


def test_the_grid_has_every_combination_once() -> None:
    points = whole_grid()
    assert len(points) == len(set(points)) == 3 * 3 * 4 * 3 * 3 * 3 * 2
    assert len({point.name for point in points}) == len(points)


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_a_sample_is_the_same_for_the_same_seed_and_grows_at_its_end(seed: int) -> None:
    assert taken(seed, 12) == taken(seed, 12) == taken(seed, 40)[:12]
    assert taken(seed, 12) != taken(seed + 1, 12)
    assert len(set(taken(seed, 60))) == 60


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [4, 12, 60])
def test_a_sample_takes_every_value_as_often_as_any_other(seed: int, number: int) -> None:
    points = taken(seed, number)
    for name in DIMENSIONS:
        counts = Counter(getattr(point, name) for point in points)
        assert set(counts) == set(VALUES[name])
        assert max(counts.values()) - min(counts.values()) <= 2


def test_a_cells_run_has_the_points_conditions() -> None:
    point = Point(64 << 20, "double", 2000, 9000, 16, 4 << 20, False)
    default = Point(64 << 20, "default", 2000, 1400, 16, 4 << 20, True)
    made, plain = (cell(each, COMMON) for each in (point, default))
    (client,) = resolve(made.topology, made.options.overrides).clients
    (other,) = resolve(plain.topology, plain.options.overrides).clients
    assert client.min_free_kbytes == pytest.approx(2 * other.min_free_kbytes, abs=1)
    assert (client.interface.mtu, other.interface.mtu) == (9000, 1500)
    assert (client.workload.pages * 4096, client.workload.processes) == (192 << 20, 16)
    assert {each.buffer for each in client.bystanders} == {4 << 20}
    assert (made.options.patches, plain.options.patches) == (frozenset(), frozenset(PATCHES))
    assert made.arguments["flood_size"] == 9000


def test_in_every_cell_the_reserve_is_raised_now_and_then() -> None:
    for min_free in ("half", "default", "double"):
        made = cell(Point(64 << 20, min_free, 2000, 1400, 16, 4 << 20, True), COMMON)
        plan = resolve(made.topology, made.options.overrides)
        raised = [each for each in plan.schedule if each.arguments]
        assert {each.arguments["kbytes"] for each in raised} == {4 * plan.clients[0].min_free_kbytes}
        assert (plan.faults_start, min(each.time for each in raised)) == ("steady", 1), "hosts fill memory at two rates"


def test_in_every_cell_the_flood_comes_once_the_client_swaps_steadily() -> None:
    made = cell(Point(64 << 20, "default", 2000, 1400, 16, 4 << 20, True), COMMON)
    (noise,) = (each for each in resolve(made.topology, made.options.overrides).neighbours if each.floods)
    assert {flood.start for flood in noise.floods} == {"steady"}


def test_half_of_the_sample_is_not_patched() -> None:
    cells, _ = choose(COMMON, 8, 3)
    assert Counter(bool(each.options.patches) for each in cells) == {True: 4, False: 4}


def test_a_cell_that_cannot_exist_is_refused_and_another_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VALUES, "memory", (1 << 20, 64 << 20))
    cells, refused = choose(COMMON, 6, 1)
    assert len(cells) == 6
    assert {each.arguments["memory"] for each in cells} == {64 << 20}
    assert {each.arguments["memory"] for each in refused} == {1 << 20}
    assert all("too small for a receive ring" in each.reason for each in refused)


def test_every_point_is_either_a_cell_or_refused() -> None:
    cells, refused = choose(COMMON, None, 1)
    assert {each.name for each in cells} | {each.name for each in refused} == {point.name for point in whole_grid()}
