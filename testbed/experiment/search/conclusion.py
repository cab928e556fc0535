"""What a search has found, in numbers and in one sentence for an operator."""

from __future__ import annotations

from typing import Any

import msgspec

from testbed.experiment.search.evidence import Evidence
from testbed.experiment.search.ladder import Ladder
from testbed.experiment.search.quantities import Quantity


class Tried(msgspec.Struct, frozen=True):
    """One value, and how many of its runs were survived."""

    value: float
    survived: int
    failed: int


class Search(msgspec.Struct, kw_only=True):
    """The whole of `search.json`. The boundary lies between `low` and `high`, in `unit`, with this confidence; None
    where no such end was found. `not_judged` has a line for each run that did not count; `complete` is False if the
    search was interrupted."""

    find: str
    low: float | None = None
    high: float | None = None
    unit: str
    confidence: float
    runs: int = 0
    sentence: str = ""
    topology: str
    simulated: bool
    tried: list[Tried] = []
    remarks: list[str] = []
    not_judged: list[str] = []
    complete: bool = False
    arguments: dict[str, Any] = {}
    version: str = ""
    directory: str = ""


def conclude(search: Search, evidence: Evidence, ladder: Ladder, quantity: Quantity, subject: str) -> Search:
    """Fill in what the runs made so far have shown."""
    easy, hard = evidence.survived, evidence.failed
    ends = [None if end is None else ladder.value(end) for end in (easy, hard)]
    search.low, search.high = ends if quantity.more_is_harder else ends[::-1]
    search.runs = evidence.runs
    tried = [Tried(ladder.value(at), point.survived, point.failed) for at, point in evidence.points.items()]
    search.tried = sorted(tried, key=lambda each: each.value)
    certainty = f"{search.confidence:.4g} confidence, {search.runs} runs"
    search.sentence = f"{subject}{_bounds(evidence, ladder, quantity)} ({certainty})"
    return search


def _bounds(evidence: Evidence, ladder: Ladder, quantity: Quantity) -> str:
    """What comes after the words of what was searched for."""
    easy, hard = evidence.survived, evidence.failed
    up, most, least = ("up to", "most", "least") if quantity.more_is_harder else ("down to", "least", "most")
    tried = sorted(position for position, point in evidence.points.items())
    if easy is not None and hard is not None:
        too = "too much" if quantity.more_is_harder else "too little"
        return f" {up} {_say(quantity, ladder, easy)}; {_say(quantity, ladder, hard)} is {too}"
    if easy is not None:
        if easy == tried[-1]:
            return f": everything {up} {_say(quantity, ladder, easy)}, the {most} that was tried"
        return f" {up} {_say(quantity, ladder, easy)}; nothing that was tried is beyond it for certain"
    if hard is not None:
        if hard == tried[0]:
            return f": nothing, not even {_say(quantity, ladder, hard)}, the {least} that was tried"
        return f" only this side of {_say(quantity, ladder, hard)}; nothing that was tried is survived for certain"
    return ": nothing is certain yet, try more --repetitions"


def _say(quantity: Quantity, ladder: Ladder, position: int) -> str:
    return quantity.say(ladder.value(position))
