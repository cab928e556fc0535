"""The values that a search tries: preferred numbers (IEC 60063, series E24), each a tenth more than the one before.

Two significant digits are what people say, and noise leaves no more than that to be found.
"""

from __future__ import annotations

from bisect import bisect_left

E24 = (10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 27, 30, 33, 36, 39, 43, 47, 51, 56, 62, 68, 75, 82, 91)


def rung(number: int) -> float:
    """A preferred number: 0 is 1, 24 is 10."""
    decade, step = divmod(number, len(E24))
    return round(E24[step] * 10.0 ** (decade - 1), 12)


def nearest_rung(value: float) -> int:
    """The number of the first preferred number that is no less than a value above 0."""
    decade = 0
    while value > 9.1:
        value, decade = value / 10, decade + 1
    while value <= 0.91:
        value, decade = value * 10, decade - 1
    return decade * len(E24) + bisect_left(E24, round(value * 10, 9))


class Ladder:
    """Rungs from easy to hard: a position is the number of a rung, negative if more of it makes things easier."""

    def __init__(self, more_is_harder: bool) -> None:
        self._sign = 1 if more_is_harder else -1

    def value(self, position: int) -> float:
        """The value at a position."""
        return rung(self._sign * position)

    def position(self, value: float) -> int:
        """The position of a value above 0, rounded up to a preferred number."""
        return self._sign * nearest_rung(value)
