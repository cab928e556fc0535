"""An ablation for people: a row for each set of patches, which counters moved, where predictions were wrong."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.experiment.ablation.rows import Row, name, number
from testbed.experiment.ablation.study import Ablation
from testbed.experiment.report import STYLES

SHOWN = 4
"""Counters that are named in a row; all are in ablate.json."""
ONE_SEED = "; with one seed there is no range, and any difference is here"
WITNESS = {True: "yes", False: "[red]NO[/]", None: "[dim]no occasion[/]"}


def show(console: Console, ablation: Ablation) -> None:
    """Print everything that came out."""
    console.print(_outcomes(ablation))
    if ablation.emulated:
        console.print(_beside(ablation))
    console.print(_moved(ablation))
    for each in ablation.disagreements:
        console.print(f"\n[bold]{name(each.off)}[/]: not as predicted", highlight=False)
        for key in ("predicted", "measured", "explanation"):
            console.print(f"  {key:<12} {escape(getattr(each, key))}", highlight=False, soft_wrap=True)
    console.print()
    for line in dict.fromkeys(line for each in ablation.rows for line in each.warnings):
        console.print(f"warning: {escape(line)}", style="yellow", highlight=False, soft_wrap=True)
    for line in ablation.errors:
        console.print(f"could not be judged: {escape(line)}", style="yellow", highlight=False, soft_wrap=True)
    for why in ablation.refused.values():
        console.print(f"not turned off: {escape(why)}", highlight=False, soft_wrap=True)
    console.print(_conclusion(ablation), highlight=False, soft_wrap=True)


def _outcomes(ablation: Ablation) -> Table:
    seeds = len(ablation.seeds)
    how = "simulated" if ablation.simulated else "on a real kernel" if ablation.host == "kernel" else "on real sockets"
    title = f"{ablation.topology}, {seeds} seed{'s' if seeds > 1 else ''} each, {how}"
    table = Table(title=title, title_justify="left")
    for heading in ("patches", "outcomes", "survived", "time", "lowest free", "seen to be off"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "lowest free" else "left")
    for each in ablation.rows:
        free = "-" if each.reserve_min_free is None else number(each.reserve_min_free)
        witness = WITNESS[each.witness] if each.off else ""
        table.add_row(name(each.off), _counted(each), f"{each.survived} of {each.runs}", when(each), free, witness)
    return table


def _beside(ablation: Ablation) -> Table:
    """A real kernel's rows and the model's."""
    table = Table(title="the same on the model", title_justify="left")
    for heading in ("patches", "kernel", "survived", "time", "emulated", "survived", "time"):
        table.add_column(heading, overflow="fold")
    model = {tuple(each.off): each for each in ablation.emulated}
    for each in ablation.rows:
        both = (each, model.get(tuple(each.off)))
        table.add_row(name(each.off), *(words for row in both for words in _in_short(row)))
    return table


def _in_short(row: Row | None) -> tuple[str, str, str]:
    return ("-", "-", "-") if row is None else (_counted(row), f"{row.survived} of {row.runs}", when(row))


def _counted(row: Row) -> str:
    return ", ".join(f"[{STYLES[outcome]}]{outcome}[/] {count}" for outcome, count in row.outcomes.items())


def _moved(ablation: Ablation) -> Table:
    seeds = len(ablation.seeds)
    table = Table(
        title="counters beyond the range of all on (median there, median here)",
        caption="a run that got stuck counts less of everything that goes with work done" + ONE_SEED * (seeds == 1),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("patches", overflow="fold")
    table.add_column("counters", overflow="fold")
    for each in ablation.rows:
        if each.off:
            table.add_row(name(each.off), changes(each) or "[dim]none[/]")
    return table


def when(row: Row) -> str:
    """How long it took until the end of the workload, or until it got stuck."""
    parts = []
    if row.finished_after_s is not None:
        slower = f" ({row.slowdown:.2f} x)" if row.slowdown is not None and row.off else ""
        parts.append(f"{row.finished_after_s:.1f} s{slower}")
    if row.stalled_after_s is not None:
        parts.append(f"stuck after {row.stalled_after_s:.1f} s")
    return ", ".join(parts) or "-"


def changes(row: Row) -> str:
    """The counters that moved most; where the host did not survive, those that went up come first."""
    stuck = row.survived < row.runs
    order = sorted(row.moved, key=lambda counter: stuck and row.moved[counter].factor < 0)
    shown = [
        f"{counter} {number(row.moved[counter].all_on)} to {number(row.moved[counter].median)}"
        for counter in order[:SHOWN]
    ]
    more = [f"{len(order) - SHOWN} more"] if len(order) > SHOWN else []
    return ", ".join([*shown, *more])


def _conclusion(ablation: Ablation) -> str:
    predicted = f"predicted, with the patches they build on: {_numbers(ablation.predicted_set)}"
    if not ablation.complete:
        return f"[yellow]interrupted after {ablation.runs} runs: the smallest set was not looked for to the end[/]"
    if ablation.minimal_set is None:
        return f"[red]{escape(ablation.established)}[/]; {predicted}"
    return (
        f"smallest set that survives: [bold]{_numbers(ablation.minimal_set)}[/] ({escape(ablation.established)}; "
        f"{ablation.sets_tried} sets tried); {predicted}"
    )


def _numbers(patches: list[int]) -> str:
    return ", ".join(map(str, patches)) or "none"
