"""min_free_kbytes and the three watermarks, as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.watermarks import SERIES, Watermarks, compute, default_min_free_kbytes

PAGES_PER_MIB = 256


@pytest.mark.parametrize(
    ("mib", "series", "expected"),
    [
        (64, "3.6", (1024, 256, 320, 384)),
        (128, "3.6", (1448, 362, 452, 543)),
        (128, "6.1", (1448, 362, 452, 542)),
        (512, "3.6", (2896, 724, 905, 1086)),
        (1024, "6.1", (4096, 1024, 1286, 1548)),
        (2048, "3.6", (5792, 1448, 1810, 2172)),
        (2048, "6.1", (5792, 1448, 1972, 2496)),
        (4096, "6.1", (8192, 2048, 3096, 4144)),
    ],
)
def test_defaults_by_memory_size(mib: int, series: str, expected: tuple[int, int, int, int]) -> None:
    assert compute(mib * PAGES_PER_MIB, rules=SERIES[series]) == Watermarks(*expected)


@pytest.mark.parametrize(
    ("lowmem_kbytes", "series", "expected"),
    [
        (4096, "3.6", 256),
        (512, "3.6", 128),
        (1 << 30, "3.6", 65536),
        (1 << 30, "6.1", 131072),
        (1 << 34, "6.1", 262144),
    ],
)
def test_min_free_kbytes_is_clamped(lowmem_kbytes: int, series: str, expected: int) -> None:
    assert default_min_free_kbytes(lowmem_kbytes, SERIES[series]) == expected


@pytest.mark.parametrize(("mib", "throttle", "atomic"), [(64, 128, 96), (128, 181, 136), (2048, 724, 543)])
def test_throttle_point_and_atomic_floor(mib: int, throttle: int, atomic: int) -> None:
    watermarks = compute(mib * PAGES_PER_MIB)
    assert (watermarks.throttle, watermarks.atomic_floor) == (throttle, atomic)


def test_an_administrators_value_replaces_the_default() -> None:
    assert compute(16384, 8192).min == 2048


@given(st.integers(512, 1 << 21), st.sampled_from(["3.6", "6.1"]))
def test_thresholds_are_in_order(pages: int, series: str) -> None:
    marks = compute(pages, rules=SERIES[series])
    assert 0 < marks.atomic_floor <= marks.throttle < marks.min < marks.low < marks.high < pages


@pytest.mark.parametrize(("pages", "kbytes"), [(1024, 0), (1024, -4), (1024, 4096), (16, None)])
def test_a_reserve_that_leaves_no_memory_is_refused(pages: int, kbytes: int | None) -> None:
    with pytest.raises(ValueError, match="min_free_kbytes"):
        compute(pages, kbytes)
