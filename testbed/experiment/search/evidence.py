"""How certain it is that a boundary lies between two points, whatever was tried, in whatever order, however often.

Points are numbered from easy to hard, and all that is assumed is that a harder point is survived no more often than an
easier one, and that runs with different seeds are independent. The boundary is where half of the runs survive. For
each place where it might be, two gamblers bet on each run before it is made: one that harder points are survived more
often than the place allows, one that easier points fail more often. Neither can expect to win if the boundary is
there, so that the chance that one of them ever has 2 / alpha times the stake is at most alpha / 2 (Ville's
inequality): a place that made somebody so rich is excluded. What is left is a confidence set at every moment, with
any rule for stopping and for choosing what to try next (testing by betting: Shafer 2021; Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", 2024); its hull is the interval.

Stakes follow Krichevsky and Trofimov (1981), from those earlier runs whose outcome says something about this point:
survivals at least as hard, failures at most as hard.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Point:
    """Runs at one point, and what each gambler's stake has been multiplied by in them."""

    survived: int = 0
    failed: int = 0
    on_survival: float = 1.0
    on_failure: float = 1.0

    @property
    def runs(self) -> int:
        """Runs that could be judged."""
        return self.survived + self.failed


class Evidence:
    """What runs have shown, at a `confidence` of, say, 0.95."""

    def __init__(self, confidence: float) -> None:
        self._rich = 2 / (1 - confidence)
        self.points: dict[int, Point] = {}

    def add(self, position: int, survived: bool) -> None:
        """A run at a point has ended."""
        chance = self._chance(position)
        point = self.points.setdefault(position, Point())
        won = 2 * (chance if survived else 1 - chance)
        if chance > 0.5:
            point.on_survival *= won
        elif chance < 0.5:
            point.on_failure *= won
        point.survived += survived
        point.failed += not survived

    def at(self, position: int) -> Point:
        """The runs at a point, also if there are none."""
        return self.points.get(position) or Point()

    def _chance(self, position: int) -> float:
        """The chance of survival that a gambler sees in a run before it is made."""
        survived = sum(point.survived for at, point in self.points.items() if at >= position)
        failed = sum(point.failed for at, point in self.points.items() if at <= position)
        return (survived + 0.5) / (survived + failed + 1)

    @property
    def survived(self) -> int | None:
        """The hardest point of which it is certain that the boundary lies beyond it."""
        certain, left = None, self._stakes("on_survival")
        for position in sorted(self.points):
            if left < self._rich:
                break
            certain = position
            left /= self.points[position].on_survival
        return certain

    @property
    def failed(self) -> int | None:
        """The easiest point of which it is certain that the boundary lies before it."""
        certain, left = None, self._stakes("on_failure")
        for position in sorted(self.points, reverse=True):
            if left < self._rich:
                break
            certain = position
            left /= self.points[position].on_failure
        return certain

    def _stakes(self, gambler: str) -> float:
        product = 1.0
        for point in self.points.values():
            product *= getattr(point, gambler)
        return product

    @property
    def runs(self) -> int:
        """Runs at all points."""
        return sum(point.runs for point in self.points.values())

    def best_cut(self) -> tuple[int | None, int | None]:
        """The neighbouring points between which the boundary is most likely: fewest runs came out the other way.

        None on a side where nothing was tried; of equally good cuts the one in the middle.
        """
        tried = sorted(self.points)
        wrong = [sum(point.survived for point in self.points.values())]
        for position in tried:
            wrong.append(wrong[-1] + self.points[position].failed - self.points[position].survived)
        best = [cut for cut, errors in enumerate(wrong) if errors == min(wrong)]
        cut = best[len(best) // 2]
        return (tried[cut - 1] if cut else None), (tried[cut] if cut < len(tried) else None)
