"""Preferred numbers in both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.experiment.search.ladder import Ladder, nearest_rung, rung


@pytest.mark.parametrize(("number", "value"), [(0, 1), (1, 1.1), (24, 10), (71, 910), (-1, 0.91), (-24, 0.1)])
def test_rungs(number: int, value: float) -> None:
    assert rung(number) == value


@given(st.integers(-72, 200))
def test_a_rung_is_its_own_nearest(number: int) -> None:
    assert nearest_rung(rung(number)) == number


@given(st.floats(0.001, 1e9))
def test_the_nearest_rung_is_the_first_that_is_enough(value: float) -> None:
    number = nearest_rung(value)
    assert rung(number - 1) < value * (1 + 1e-9)
    assert rung(number) >= value * (1 - 1e-9)


@given(st.integers(-50, 50), st.booleans())
def test_positions_rise_with_what_is_hard(position: int, more_is_harder: bool) -> None:
    ladder = Ladder(more_is_harder)
    assert (ladder.value(position + 1) > ladder.value(position)) == more_is_harder
    assert ladder.position(ladder.value(position)) == position
