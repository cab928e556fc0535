"""The table of an ablation as a picture: outcomes, time, and the lowest number of free pages, a bar for each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.experiment.ablation.rows import name
from testbed.experiment.ablation.study import Ablation
from testbed.experiment.drawing import new_figure, save
from testbed.experiment.result import OUTCOMES

COLOURS = {"pass": "#2a9d4a", "fail": "#d9822b", "deadlock": "#b5179e", "error": "#777777"}
ROW_INCHES = 0.34


def draw(ablation: Ablation, directory: Path) -> list[Path]:
    """Write the figure into `directory`, in each format; returns the paths. Raises NoFigure without matplotlib."""
    figure = new_figure(11, 2.2 + ROW_INCHES * len(ablation.rows))
    outcomes, times, memory = figure.subplots(1, 3, sharey=True)
    _outcomes(outcomes, ablation)
    _times(times, ablation)
    _bars(memory, [each.reserve_min_free for each in ablation.rows], "#4063d8", "{:,.0f}")
    memory.set_xlabel("lowest number of free pages")
    outcomes.set_yticks(range(len(ablation.rows)), [name(each.off) for each in ablation.rows])
    outcomes.invert_yaxis()
    how = "simulated" if ablation.simulated else "real sockets"
    seeds = len(ablation.seeds)
    figure.suptitle(f"{ablation.topology}: what each patch is worth ({seeds} run{'s' * (seeds > 1)} each, {how})")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    return save(figure, directory, "ablate")


def _outcomes(axes: Any, ablation: Ablation) -> None:
    left = [0] * len(ablation.rows)
    for outcome in OUTCOMES:
        counts = [each.outcomes.get(outcome, 0) for each in ablation.rows]
        axes.barh(range(len(counts)), counts, left=left, color=COLOURS[outcome], label=outcome)
        left = [start + count for start, count in zip(left, counts, strict=True)]
    for index, each in enumerate(ablation.rows):
        axes.annotate(f" survived {each.survived}", (left[index], index), va="center", fontsize=8)
    axes.set_xlim(0, 1.5 * max(left))
    axes.set_xticks(range(max(left) + 1))
    axes.set_xlabel("runs")


def _times(axes: Any, ablation: Ablation) -> None:
    _bars(axes, [each.finished_after_s for each in ablation.rows], "#7fc97f", "{:.1f}", "time to the end")
    _bars(axes, [each.stalled_after_s for each in ablation.rows], "#f27ed3", "{:.1f}", "time until stuck")
    axes.set_xlabel("seconds")


def _bars(axes: Any, values: Sequence[float | None], colour: str, form: str, label: str | None = None) -> None:
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    bars = axes.barh([index for index, _ in known], [value for _, value in known], color=colour, label=label, alpha=0.8)
    axes.bar_label(bars, fmt=form, fontsize=8, padding=2)
    axes.margins(x=0.15)
