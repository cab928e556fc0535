"""A result for people: the table at the end of a run, and two results side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.experiment.result import Check, ClientResult, Outcome, Result, decode
from testbed.patches import PATCHES
from testbed.size import format_size

WIDTH = 120
MOST_LIMITS = 40
STYLES: dict[Outcome, str] = {
    "pass": "bold green",
    "fail": "bold red",
    "deadlock": "bold magenta",
    "error": "bold yellow",
}


def wide(console: Console) -> Console:
    """The same console, with room for evidence where no terminal says how much there is."""
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    return console


def show(console: Console, result: Result) -> None:
    """Print the verdict on one run: each check with its evidence, then the numbers that matter."""
    table = Table(title=f"{result.topology}: {describe_patches(result.patches)}", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("evidence", overflow="fold")
    for check in result.checks:
        table.add_row(check.name, mark(check), escape(by_client(result, check.evidence)))
    console.print(table)
    for name, value in numbers(result):
        console.print(f"  {name:<28} {value}", highlight=False)
    for line in result.limits[:MOST_LIMITS]:
        console.print(f"  limit reached: {escape(line)}", highlight=False, soft_wrap=True)
    if (hidden := len(result.limits) - MOST_LIMITS) > 0:
        console.print(f"  limit reached: {hidden} more lines like these are in result.json", highlight=False)
    for line in result.warnings:
        console.print(f"  warning: {escape(line)}", style="yellow", highlight=False, soft_wrap=True)
    style = STYLES[result.outcome]
    reason = f": {escape(result.error)}" if result.error else ""
    console.print(
        f"[{style}]{result.outcome}[/]{reason} after {result.elapsed_s:.1f} s, seed {result.seed}", highlight=False
    )
    if result.directory:
        console.print(f"everything about this run: {escape(result.directory)}", highlight=False, soft_wrap=True)


def side_by_side(console: Console, results: Sequence[Result]) -> None:
    """Print several results of one topology in columns, check by check and number by number."""
    table = Table(title=f"{results[0].topology}, side by side", title_justify="left")
    table.add_column("", no_wrap=True)
    for result in results:
        table.add_column(describe_patches(result.patches), overflow="fold")
    table.add_row("outcome", *(f"[{STYLES[result.outcome]}]{result.outcome}[/]" for result in results))
    table.add_section()
    names = [check.name for check in results[0].checks]
    for name in names:
        table.add_row(name, *(_cell(result, name) for result in results))
    table.add_section()
    columns = [dict(numbers(result)) for result in results]
    for name in dict.fromkeys(key for column in columns for key in column):
        table.add_row(name, *(column.get(name, "-") for column in columns))
    console.print(table)


def describe_patches(numbers_on: Sequence[int]) -> str:
    """The patches that are on, in few words."""
    off = sorted(frozenset(PATCHES) - frozenset(numbers_on))
    if not off:
        return "all 16 patches on"
    if len(off) == len(PATCHES):
        return "all 16 patches off"
    return f"without patch {', '.join(map(str, off))}"


def by_client(result: Result, evidence: str) -> str:
    """Evidence about several clients, with a line for each."""
    for client in result.clients[1:]:
        evidence = evidence.replace(f"; {client.name}: ", f"\n{client.name}: ")
    return evidence


def mark(check: Check) -> str:
    """One word, with its colour, for how a check ended."""
    if check.ok is None:
        return "[dim]n/a[/]"
    return "[green]ok[/]" if check.ok else "[red]FAIL[/]"


def _pages_per_second(client: ClientResult) -> tuple[float, str]:
    """Pages that a client swapped both ways in a second of its own workload, and its name."""
    seconds = client.workload.seconds
    return ((client.swap.pages_in + client.swap.pages_out) / seconds if seconds else 0.0), client.name


def numbers(result: Result) -> list[tuple[str, str]]:
    """The numbers of a result that people look at first, with names."""
    frames, swap, memory, flood = result.frames, result.swap, result.memory, result.flood
    drops = ", ".join(f"{name} {count:,}" for name, count in sorted(frames.dropped.items()) if count) or "none"
    rows = [
        ("pages swapped out / in", f"{swap.pages_out:,} / {swap.pages_in:,} ({swap.mib_per_s:.1f} MiB/s)"),
        ("longest gap in swap", f"{swap.max_gap_s:.2f} s"),
        ("frames received / delivered", f"{frames.received:,} / {frames.delivered:,}"),
        ("frames dropped", drops),
        (
            "reserve, lowest free pages",
            f"{memory.reserve_min_free:,} (min {memory.min:,}, of {format_size(memory.total * 4096)})",
        ),
    ]
    if len(result.clients) > 1 and (rates := sorted(map(_pages_per_second, result.clients))):
        (low, slowest), (high, fastest) = rates[0], rates[-1]
        ratio = f"{high / low:.1f} times" if low else "starved"
        rows.insert(1, ("slowest / fastest client", f"{slowest} {low:,.0f} / {fastest} {high:,.0f} pages/s ({ratio})"))
    if flood.sent:
        rows.insert(2, ("flood", f"{flood.sent:,} frames, {flood.pps:,.0f} a second"))
    if result.times.elapsed_s is not None:
        times = msgspec.structs.astuple(result.times)
        rows.insert(0, ("user / system / elapsed", " / ".join(seconds(value) for value in times)))
    for name in ("pgscan_direct_throttle", "allocstall"):
        if name in result.counters:
            rows.append((name, f"{result.counters[name]:,}"))
    return rows


def seconds(value: float | None) -> str:
    """A time for people."""
    return "-" if value is None else f"{value:.2f} s"


def _cell(result: Result, name: str) -> str:
    for check in result.checks:
        if check.name == name:
            return f"{mark(check)}  {escape(by_client(result, check.evidence))}"
    return "-"


def main(paths: Sequence[str]) -> int:
    """Print the results in these `result.json` files side by side; returns the exit status."""
    try:
        results = [decode(Path(path).read_bytes()) for path in paths]
    except (OSError, msgspec.MsgspecError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 2
    if not results:
        print("testbed: name the result.json files to compare", file=sys.stderr)
        return 2
    side_by_side(wide(Console()), results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
