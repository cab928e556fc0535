"""The table of an ablation as a picture: outcomes, time, and the lowest number of free pages, a bar for each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.experiment.ablation.rows import name
from testbed.experiment.ablation.study import Ablation
from testbed.experiment.result import OUTCOMES

FILES = ("ablate.svg", "ablate.png")
COLOURS = {"pass": "#2a9d4a", "fail": "#d9822b", "deadlock": "#b5179e", "error": "#777777"}
ROW_INCHES = 0.34


class NoFigure(Exception):
    """The figure cannot be drawn; the message is one line."""


def draw(ablation: Ablation, directory: Path) -> list[Path]:
    """Write the figure into `directory`, in each format; returns the paths. Raises NoFigure without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoFigure("no figure: matplotlib is not installed (pip install 'swap-testbed[figures]')") from None
    figure = Figure(figsize=(11, 1.6 + ROW_INCHES * len(ablation.rows)), layout="constrained")
    outcomes, times, memory = figure.subplots(1, 3, sharey=True)
    _outcomes(outcomes, ablation)
    _times(times, ablation)
    _bars(memory, [each.reserve_min_free for each in ablation.rows], "#4063d8")
    memory.set_xlabel("lowest number of free pages")
    outcomes.set_yticks(range(len(ablation.rows)), [name(each.off) for each in ablation.rows])
    outcomes.invert_yaxis()
    how = "simulated" if ablation.simulated else "real sockets"
    figure.suptitle(f"{ablation.topology}: what each patch is worth ({len(ablation.seeds)} seeds, {how})")
    paths = [directory / file for file in FILES]
    for path in paths:
        figure.savefig(path, dpi=120)
    return paths


def _outcomes(axes: Any, ablation: Ablation) -> None:
    left = [0] * len(ablation.rows)
    for outcome in OUTCOMES:
        counts = [each.outcomes.get(outcome, 0) for each in ablation.rows]
        axes.barh(range(len(counts)), counts, left=left, color=COLOURS[outcome], label=outcome)
        left = [start + count for start, count in zip(left, counts, strict=True)]
    for index, each in enumerate(ablation.rows):
        axes.annotate(f" survived {each.survived}", (left[index], index), va="center", fontsize=8)
    axes.set_xlim(0, 1.5 * max(left))
    axes.set_xlabel("runs")
    axes.legend(loc="lower right", fontsize=7)


def _times(axes: Any, ablation: Ablation) -> None:
    _bars(axes, [each.finished_after_s for each in ablation.rows], COLOURS["pass"], "finished")
    _bars(axes, [each.stalled_after_s for each in ablation.rows], COLOURS["deadlock"], "stuck")
    axes.set_xlabel("seconds to the end, or until stuck")
    axes.legend(loc="lower right", fontsize=7)


def _bars(axes: Any, values: Sequence[float | None], colour: str, label: str | None = None) -> None:
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    axes.barh([index for index, _ in known], [value for _, value in known], color=colour, label=label, alpha=0.85)
