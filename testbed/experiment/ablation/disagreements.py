"""Where a prediction and a measurement differ, and what the runs themselves say about it.

The explanation is put together from evidence only: what had no occasion, which counters moved or did not, which
patches stood there without their base, and what the check of progress saw.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from testbed.experiment.ablation.minimal_set import MinimalSet
from testbed.experiment.ablation.predictions import WITHOUT, WITHOUT_ANY, Direction, Prediction
from testbed.experiment.ablation.rows import Row, name, number
from testbed.patches import PATCHES, with_bases

SHOWN = 3
ON_THE_WAY_TO_A_HANG = {
    "no_watermark_slabs": "pages of the reserve became slabs",
    "slab_partial_leaked": "objects of the reserve's slabs went to callers without a right to them",
    "gfp_memalloc_refused": "requests with __GFP_MEMALLOC were kept out of the reserve",
    "no_watermark_failures": "requests found nothing even without watermarks",
}
"""What the counters say that tell where the reserve went, or who did not get to it."""


class Disagreement(msgspec.Struct, frozen=True):
    """A prediction that was not met. `patch` is the one that was off; None for sets of patches."""

    patch: int | None
    off: list[int]
    predicted: str
    measured: str
    explanation: str


def compare(row: Row, all_on: Row) -> Disagreement | None:
    """The row against its prediction; None if they agree, or if there is nothing to compare."""
    prediction = prediction_for(row)
    judged = row.runs - row.outcomes.get("error", 0)
    if prediction is None or not judged:
        return None
    unmoved = {
        counter: direction
        for counter, direction in prediction.moves.items()
        if counter in row.counters and not _moved(row, counter, direction)
    }
    if outcome_met(row, prediction) and not unmoved:
        return None
    predicted = [f"{prediction.outcome} ({prediction.why})", *(f"{key} {way}" for key, way in prediction.moves.items())]
    return Disagreement(
        row.off[0] if len(row.off) == 1 else None,
        row.off,
        "; ".join(predicted),
        measured(row, prediction),
        "; ".join(_explanation(row, all_on, unmoved)),
    )


def compare_minimal(found: MinimalSet, predicted: frozenset[int]) -> Disagreement | None:
    """The minimal set against the predicted one, both with their bases."""
    closed = with_bases(predicted)
    if found.patches == closed:
        return None
    parts = [
        f"{words} {', '.join(map(str, sorted(numbers)))}"
        for words, numbers in (
            ("survives without", closed - found.patches),
            ("needs, or was not seen to survive without,", found.patches - closed),
        )
        if numbers
    ]
    needed = "" if closed == predicted else f" (with the patches they build on: {_numbers(closed)})"
    return Disagreement(
        None,
        sorted(frozenset(PATCHES) - found.patches),
        f"{_numbers(predicted)}{needed} is the smallest set that survives",
        f"{_numbers(found.patches)} survives",
        "; ".join(parts),
    )


def prediction_for(row: Row) -> Prediction | None:
    """What was expected of this row."""
    if len(row.off) == len(PATCHES):
        return WITHOUT_ANY
    return WITHOUT[row.off[0]] if len(row.off) == 1 else None


def outcome_met(row: Row, prediction: Prediction) -> bool:
    """Whether all runs came out as predicted."""
    judged = row.runs - row.outcomes.get("error", 0)
    expected = {"survives": (judged,), "hangs": (0,), "may hang": range(judged + 1)}[prediction.outcome]
    return row.survived in expected


def measured(row: Row, prediction: Prediction) -> str:
    """What came out, in the words of the prediction."""
    outcomes = ", ".join(f"{outcome} {count}" for outcome, count in row.outcomes.items())
    counters = [_change(row, counter) for counter in prediction.moves if counter in row.counters]
    return "; ".join([f"survived {row.survived} of {row.runs} ({outcomes})", *counters])


def _explanation(row: Row, all_on: Row, unmoved: dict[str, Direction]) -> Iterator[str]:
    if row.witness is None:
        yield "nothing gave what is off an occasion to act: these runs do not test it"
    if row.witness is False:
        yield "a patch that is off was seen at work: its switch was ignored"
    for counter, direction in unmoved.items():
        before = all_on.counters.get(counter, 0)
        after = row.counters[counter]
        yield f"{counter} did not go {direction}: {number(before)} with all on, {number(after)} {name(row.off)}"
    if row.survived < row.runs:
        yield from _on_the_way(row)
    others = [counter for counter in row.moved if counter not in unmoved][:SHOWN]
    if others:
        yield f"what moved most: {', '.join(_change(row, counter) for counter in others)}"
    if lost := max(row.counters.get("tp_drops", 0), all_on.counters.get("tp_drops", 0)):
        yield f"{number(lost)} frames were lost before the emulated NIC saw them: this machine was too busy"
    yield from row.warnings
    if row.evidence:
        yield f"progress: {row.evidence}"


def _on_the_way(row: Row) -> Iterator[str]:
    for counter, text in ON_THE_WAY_TO_A_HANG.items():
        if _moved(row, counter, "up"):
            change = row.moved[counter]
            yield f"{number(change.median)} {text} ({counter}; {number(change.all_on)} with all on)"


def _moved(row: Row, counter: str, direction: Direction) -> bool:
    change = row.moved.get(counter)
    return change is not None and (change.median > change.all_on) == (direction == "up")


def _change(row: Row, counter: str) -> str:
    change = row.moved.get(counter)
    if change is None:
        return f"{counter} {number(row.counters[counter])} as with all on"
    return f"{counter} {number(change.all_on)} to {number(change.median)}"


def _numbers(patches: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(patches)))
