"""The cover letter's "no significant variance": its benchmarks without memory pressure, in the model, as a table.

Needs no root: `python -m scripts.no_variance [--rounds N] [--json]`, at the top of the project. Only the ratios mean
something: operations per CPU second are those of a model in Python. Status 0: no difference exceeds its spread; 1: one
does.
"""

from __future__ import annotations

import sys

import msgspec
from rich.console import Console
from rich.table import Table

from testbed.experiment.arguments import Parser, count
from testbed.experiment.report import wide
from testbed.workloads.comparison import VANILLA, Row, compare

ROUNDS = 15


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = Parser(prog="no_variance.py", description="What the series costs where it has nothing to do.")
    parser.add_argument("--rounds", type=count(2), default=ROUNDS, metavar="N", help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="the numbers, for programs")
    space = parser.parse_args()
    rows = list(compare(space.rounds))
    if space.json:
        numbers = [msgspec.structs.asdict(row) | {"differs": row.differs} for row in rows]
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(numbers), indent=2) + b"\n")
    else:
        show(wide(Console()), rows)
    return int(any(row.differs for row in rows))


def show(console: Console, rows: list[Row]) -> None:
    """Print the table."""
    table = Table(title="Without memory pressure, against vanilla", title_justify="left")
    for name in ("workload", "case"):
        table.add_column(name, no_wrap=True)
    for name in ("operations per CPU second", "ratio", "spread"):
        table.add_column(name, justify="right")
    table.add_column("difference")
    for row in rows:
        if row.case == VANILLA:
            table.add_section()
            table.add_row(row.workload, row.case, f"{row.per_cpu_s:,.0f}", "1", "-", "-")
        else:
            verdict = "exceeds the spread" if row.differs else "within the spread"
            table.add_row("", row.case, f"{row.per_cpu_s:,.0f}", f"{row.ratio:.3f}", f"{row.spread:.3f}", verdict)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
