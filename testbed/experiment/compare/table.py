"""A comparison for people: the counters of one cell, or the agreement of many, and every disagreement by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.experiment.compare.agreement import BOUNDS, Measured, commonest, in_bounds
from testbed.experiment.compare.comparison import CellResult, Comparison, in_words, spelled
from testbed.experiment.compare.runs import Host
from testbed.experiment.report import STYLES
from testbed.experiment.result import OUTCOMES, Outcome

AGREE = {True: "[green]yes[/]", False: "[red]NO[/]", None: "[dim]not judged[/]"}


def show(console: Console, comparison: Comparison) -> None:
    """Print everything that came out."""
    if len(comparison.cells) == 1:
        console.print(_counters(comparison, comparison.cells[0]))
    else:
        console.print(_cells(comparison))
        for host in comparison.others:
            console.print(f"cells by outcome: {comparison.reference} down, {host} across", highlight=False)
            console.print(_matrix(comparison, host))
        console.print(_by_condition(comparison))
        console.print(_by_counter(comparison))
    for each in comparison.refused:
        console.print(f"cannot exist: {each.name}: {escape(each.reason)}", highlight=False, soft_wrap=True)
    for found in comparison.disagreements:
        words = f"{found.cell}: {found.what} {found.measured} {found.host}, {found.reference} {comparison.reference}"
        console.print(f"[bold]differs[/] {escape(words)}", highlight=False, soft_wrap=True)
        why = "[red]not explained[/]" if found.explanation is None else escape(found.explanation)
        console.print(f"        {why}", highlight=False, soft_wrap=True)
    for line in comparison.errors:
        console.print(f"could not be judged: {escape(line)}", style="yellow", highlight=False, soft_wrap=True)
    for host, share in comparison.repeatability.items():
        if share is not None:
            words = f"two runs of one cell on {host} have the same outcome {share:.1%} of the time"
            console.print(words, highlight=False, soft_wrap=True)
    console.print(_conclusion(comparison), highlight=False, soft_wrap=True)


def _counters(comparison: Comparison, cell: CellResult) -> Table:
    """Every counter that is not 0 everywhere, those with bounds first."""
    times = f"{comparison.repetitions} run{'s' * (comparison.repetitions > 1)} on each"
    table = Table(title=f"{cell.name}: {times}, median (lowest to highest)", title_justify="left")
    table.add_column("counter", no_wrap=True)
    for host in comparison.hosts:
        table.add_column(host, justify="right")
    for host in comparison.others:
        of = f" of {host}" if len(comparison.others) > 1 else ""
        table.add_column(f"ratio{of}", justify="right")
        table.add_column(f"within {comparison.reference}'s spread")
    table.add_row("outcome", *(_outcomes(cell.outcomes[host]) for host in comparison.hosts), "", AGREE[cell.agree])
    table.add_section()
    for name in sorted(cell.counters, key=lambda counter: (counter not in BOUNDS, counter)):
        measured = cell.counters[name]
        if any(each.spread != (0, 0) for each in measured.values()):
            held = [words for host in comparison.others for words in _held(name, measured[host])]
            table.add_row(name, *(spelled(measured[host]) for host in comparison.hosts), *held)
    return table


def _held(name: str, measured: Measured) -> Iterator[str]:
    """A counter's ratio to the reference, marked where it is out of bounds, and whether it is within the spread."""
    ratio = "-" if measured.ratio is None else f"{measured.ratio:.2f}"
    yield ratio if in_bounds(name, measured.ratio) else f"[red]{ratio}[/]"
    yield "yes" if measured.within else "no"


def _cells(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.topology}: {len(comparison.cells)} cells", title_justify="left")
    for heading in ("cell", *comparison.hosts, "agree"):
        table.add_column(heading, overflow="fold")
    for cell in comparison.cells:
        outcomes = (_outcomes(cell.outcomes[host]) for host in comparison.hosts)
        table.add_row(cell.name, *outcomes, AGREE[cell.agree])
    return table


def _matrix(comparison: Comparison, host: Host) -> Table:
    """How many cells had which outcome on the reference, and which on `host`."""
    counts: Counter[tuple[str, str]] = Counter(
        (_most(cell.outcomes[comparison.reference]), _most(cell.outcomes[host])) for cell in comparison.cells
    )
    met = sorted({outcome for pair in counts for outcome in pair})
    table = Table()
    table.add_column("")
    for outcome in met:
        table.add_column(outcome, justify="right")
    for outcome in met:
        table.add_row(outcome, *(str(counts[outcome, other] or "") for other in met))
    return table


def _by_condition(comparison: Comparison) -> Table:
    """Of the cells with each value of each condition, how many agree."""
    table = Table(title="agreement by condition", title_justify="left")
    for heading in ("condition", "value", "agree"):
        table.add_column(heading)
    judged = [cell for cell in comparison.cells if cell.agree is not None]
    for name in judged[0].arguments if judged else ():
        for value in sorted({cell.arguments[name] for cell in judged}):
            of = [cell.agree for cell in judged if cell.arguments[name] == value]
            table.add_row(name, str(value), f"{sum(map(bool, of))} of {len(of)}")
        table.add_section()
    return table


def _by_counter(comparison: Comparison) -> Table:
    """Each counter with bounds over all cells, and how well the reference agrees with itself."""
    title = f"medians held against {comparison.reference}'s, in cells that both came through"
    table = Table(title=title, title_justify="left")
    own = f"{comparison.reference}'s own runs within"
    for heading in ("counter", "host", "median ratio", "bounds", "cells within", own):
        table.add_column(heading)
    for each in comparison.counters:
        lowest, highest = BOUNDS[each.counter]
        middle = "-" if each.ratio is None else f"{each.ratio:.2f}"
        own = "not run twice" if each.reference_in_bounds is None else f"{each.reference_in_bounds:.0%}"
        within = f"{each.in_bounds} of {each.cells}"
        table.add_row(each.counter, each.host, middle, f"{lowest:g} to {highest:g}", within, own)
    return table


def _most(outcomes: dict[Outcome, int]) -> str:
    return " or ".join(sorted(commonest(outcomes), key=OUTCOMES.index)) or "error"


def _outcomes(outcomes: dict[Outcome, int]) -> str:
    if not outcomes:
        return in_words(outcomes)
    return ", ".join(f"[{STYLES[outcome]}]{outcome}[/] {count}" for outcome, count in outcomes.items())


def _conclusion(comparison: Comparison) -> str:
    unexplained = sum(found.explanation is None for found in comparison.disagreements)
    words = f"{len(comparison.disagreements)} disagreements, {unexplained} of them not explained"
    if comparison.outcome_agreement is None:
        return "nothing could be compared"
    completion = f"whether the work was completed in {comparison.completion_agreement:.1%}"
    agree = f"outcomes agree in {comparison.outcome_agreement:.1%} of the cells, {completion}; {words}"
    return agree if comparison.complete else f"[yellow]some runs are missing[/]: {agree}"
