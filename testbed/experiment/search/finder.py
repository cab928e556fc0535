"""Which points to try next: first find the boundary, then make sure of it on both sides.

Two ends are tried first, and moved outwards in growing steps as long as they agree. Then the gap is halved, one run
at a time, down to neighbouring points. Then runs are repeated: at the harder side's nearest point until it is certain
to be beyond the boundary, and the same on the easier side; a point that shows itself to be in doubt is given up for
one further away. What is certain is for `Evidence` to say, so that no mistake made here can make it wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

from testbed.experiment.search.evidence import Evidence

FIRST_STEP = 4
"""Points by which an end moves outwards first."""
IN_DOUBT = 4
"""A point is given up when two runs, and every so many'th, came out the wrong way."""


class Finder:
    """Chooses points between `easiest` and `hardest`, of which it makes up its mind as runs are added to `evidence`.

    Args:
        ends: the two points to begin with, easy and hard.
        repetitions: the most runs at one point.
    """

    def __init__(self, evidence: Evidence, ends: tuple[int, int], easiest: int, hardest: int, repetitions: int) -> None:
        self.evidence = evidence
        self.easiest = easiest
        self.hardest = hardest
        self._ends = max(easiest, min(ends)), min(hardest, max(ends))
        self._repetitions = repetitions

    def limit(self, hardest: int) -> None:
        """Nothing harder than this can be tried after all."""
        self.hardest = hardest
        self._ends = min(self._ends[0], hardest), min(self._ends[1], hardest)

    def next(self) -> list[int]:
        """The points to try now, one run each; none if nothing more is to be found out."""
        if untried := [end for end in dict.fromkeys(self._ends) if not self.evidence.at(end).runs]:
            return untried
        easy, hard = self.evidence.best_cut()
        if hard is None and easy is not None and easy < self.hardest:
            return [self._outwards(easy, self.hardest)]
        if easy is None and hard is not None and hard > self.easiest:
            return [self._outwards(hard, self.easiest)]
        if easy is not None and hard is not None and hard - easy > 1:
            return [(easy + hard) // 2]
        return [*self._make_sure_of_survival(easy), *self._make_sure_of_failure(hard)]

    def _outwards(self, end: int, limit: int) -> int:
        """The next point towards a limit: each step doubles how far it is from where the search began."""
        step = max(FIRST_STEP, abs(end - sum(self._ends) // 2))
        return min(end + step, limit) if limit > end else max(end - step, limit)

    def _make_sure_of_survival(self, easy: int | None) -> Iterator[int]:
        if easy is None:
            return
        for position in _away(easy, self.easiest):
            certain = self.evidence.survived
            if certain is not None and certain >= position:
                return
            point = self.evidence.at(position)
            if not self._given_up(point.runs, point.failed):
                yield position
                return

    def _make_sure_of_failure(self, hard: int | None) -> Iterator[int]:
        if hard is None:
            return
        for position in _away(hard, self.hardest):
            certain = self.evidence.failed
            if certain is not None and certain <= position:
                return
            point = self.evidence.at(position)
            if not self._given_up(point.runs, point.survived):
                yield position
                return

    def _given_up(self, runs: int, wrong: int) -> bool:
        return runs >= self._repetitions or (wrong >= 2 and wrong * IN_DOUBT >= runs)


def _away(position: int, limit: int) -> Iterator[int]:
    """A point and others further and further away from it, up to the limit."""
    step = 1 if limit > position else -1
    while (limit - position) * step > 0:
        yield position
        position, step = position + step, 2 * step
    yield limit
