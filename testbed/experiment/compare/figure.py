"""Two hosts side by side as time goes by: free memory against the watermarks, swap, and drops, of a run on each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from testbed.experiment.compare.runs import Run
from testbed.experiment.compare.samples import lines_of
from testbed.experiment.drawing import NoFigure, new_figure, save
from testbed.experiment.output import RESULT
from testbed.experiment.result import Memory, Result, decode

SWAP = {"pswpout": "#d9822b", "pswpin": "#4063d8"}
DROPS = {"PFMemallocDrop": "#b5179e", "RcvbufErrors": "#777777", "rx_missed": "#2a9d4a"}
MARKS = {"high": ":", "low": "--", "min": "-"}


class Series(msgspec.Struct):
    """One client's samples: seconds from the start of the workload, and the counters then."""

    times: list[float]
    counters: list[dict[str, int]]
    memory: Memory

    def of(self, name: str) -> list[int] | None:
        """A counter over time; None if this host has none of that name."""
        values = [each[name] for each in self.counters if name in each]
        return values if len(values) == len(self.times) else None


def draw(runs: Sequence[Run], directory: Path) -> list[Path]:
    """Write the figure of these runs into `directory`, in each format; returns the paths. Raises NoFigure."""
    series = [(run, read(Path(run.directory))) for run in runs]
    figure = new_figure(5.5 * len(runs), 9)
    axes = figure.subplots(3, len(runs), sharex=True, sharey="row", squeeze=False)
    for column, (run, samples) in enumerate(series):
        memory, swap, drops = axes[:, column]
        memory.set_title(f"{run.host}: {run.outcome}")
        _memory(memory, samples)
        _lines(swap, samples, SWAP)
        _lines(drops, samples, DROPS)
        drops.set_xlabel("seconds from the start of the workload")
    for row, label in enumerate(("free pages", "pages swapped", "frames dropped")):
        axes[row, 0].set_ylabel(label)
        axes[row, -1].legend(loc="upper left", fontsize=8)
    figure.suptitle(f"{runs[0].cell}, seed {runs[0].seed}")
    return save(figure, directory, "compare")


def read(directory: Path) -> Series:
    """The samples of the first client in a run's directory. Raises NoFigure."""
    try:
        result = decode((directory / RESULT).read_bytes())
        events, samples = (list(lines_of(directory / name)) for name in ("events.jsonl", "counters.jsonl"))
    except (OSError, msgspec.MsgspecError) as error:
        raise NoFigure(f"no figure: {error}") from None
    client = _client(result)
    started = next((each.time for each in events if each.name == "workload_started"), None)
    mine = [each for each in samples if each.host == client]
    if started is None or not mine:
        raise NoFigure(f"no figure: {directory} has no samples of a workload")
    return Series([each.time - started for each in mine], [each.counters for each in mine], result.clients[0].memory)


def _client(result: Result) -> str:
    if not result.clients:
        raise NoFigure(f"no figure: {result.directory} has no client")
    return result.clients[0].name


def _memory(axes: Any, series: Series) -> None:
    free = series.of("nr_free_pages")
    if free is not None:
        axes.plot(series.times, free, color="#4063d8", label="free", linewidth=1)
    for name, style in MARKS.items():
        axes.axhline(getattr(series.memory, name), color="#c1121f", linestyle=style, linewidth=1, label=name)
    axes.set_ylim(0, 4 * series.memory.high)


def _lines(axes: Any, series: Series, names: dict[str, str]) -> None:
    for name, colour in names.items():
        values = series.of(name)
        if values is not None:
            axes.plot(series.times, values, color=colour, label=name)
