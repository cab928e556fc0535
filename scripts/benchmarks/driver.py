"""Run the benchmarks and hold each row against its target: a table for people, `--json` {name: value} for scripts.

Each module here has `rows(repetitions)`, which measures its rows beside their peers and returns a list of {name,
value, unit, detail}. What cannot run says so: its rows are shown as not measured, never as met. Status 0: every
target was measured and met; 1: one was missed; 2: one could not be measured.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from testbed.experiment.arguments import Parser
from testbed.experiment.report import wide


@dataclass(frozen=True, slots=True)
class Target:
    """A row's bound: at least `least` or at most `most`, with the value to aim for."""

    module: str
    least: float | None = None
    most: float | None = None
    aim: float | None = None

    def met(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.least is None and self.most is None:
            return "-"
        bound = f"at most {self.most:,g}" if self.least is None else f"at least {self.least:,g}"
        return bound if self.aim is None else f"{bound}, aim {self.aim:,g}"


TARGETS = {
    "swap_pages_per_s": Target("swap", least=20_000, aim=40_000),
    "rx_drop_ratio_to_c": Target("nic", least=0.6, aim=0.9),
    "rx_deliver_ratio_to_bridge": Target("nic", least=0.6, aim=0.9),
    "tcp_gso_ratio_to_bridge": Target("nic", least=0.8),
    "nbd_server_read4k_ratio_to_nbdkit": Target("nbd", least=1.1),
    "nbd_server_write4k_ratio_to_nbdkit": Target("nbd", least=1.4),
    "nbd_client_read4k_ratio_to_fio": Target("nbd", least=1.2),
    "flood_ratio_to_sendmmsg_c": Target("lab", least=0.9),
    "flood_ratio_to_scapy_sendp": Target("lab", least=100),
    "host_setup_ms": Target("lab"),
    "host_setup_ratio_to_ip_batch": Target("lab", most=0.6),
}
MODULES = ("swap", "nic", "nbd", "lab")


def measure(modules: Sequence[str], repetitions: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The rows of these modules by name, and for each module that could not run, why."""
    rows: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for name in modules:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        try:
            measured = importlib.import_module(f"scripts.benchmarks.{name}").rows(repetitions)
        except Exception as error:
            skipped[name] = " ".join(f"{type(error).__name__}: {error}".split())
            continue
        rows |= {row["name"]: row for row in measured}
    return rows, skipped


def show(console: Console, rows: dict[str, dict[str, Any]], skipped: dict[str, str], modules: Sequence[str]) -> int:
    """Print the table; returns the exit status."""
    table = Table(title="benchmarks", title_justify="left")
    for name in ("row", "value", "target", "", "detail"):
        table.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    status = 0
    wanted = [name for name, target in TARGETS.items() if target.module in modules]
    for name in [*wanted, *(name for name in rows if name not in TARGETS)]:
        target = TARGETS.get(name)
        value = rows[name]["value"] if name in rows else None
        if value is None or not math.isfinite(value):
            assert target is not None or name in rows
            why = skipped.get(target.module, "") if target else rows[name].get("detail", "")
            table.add_row(name, "-", str(target or "-"), "[yellow]not measured[/]", escape(why))
            status = 2 if target else status
            continue
        met = target is None or target.met(value)
        status = max(status, 0 if met else 1)
        verdict = "" if target is None or str(target) == "-" else ("[green]met[/]" if met else "[red]MISSED[/]")
        shown = f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        unit = rows[name].get("unit", "")
        table.add_row(
            name, f"{shown} {unit}".strip(), str(target or "-"), verdict, escape(str(rows[name].get("detail", "")))
        )
    console.print(table)
    for module, why in skipped.items():
        console.print(f"{module} could not be measured: {escape(why)}", style="yellow")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of scripts/bench."""
    parser = Parser(prog="scripts/bench", description="Measure the speed of the testbed beside its peers.")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)} (default: all)")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="at least 5, or it means little")
    parser.add_argument("--json", action="store_true", help="print {name: value} on standard output and nothing else")
    space = parser.parse_args(argv)
    if unknown := [name for name in space.modules if name not in MODULES]:
        parser.error(f"there is no benchmark {unknown[0]}: choose of {', '.join(MODULES)}")
    if space.repetitions < 1:
        parser.error(f"--repetitions must be at least 1, not {space.repetitions}")
    if os.geteuid() != 0:
        parser.error("this needs root to make network namespaces: run it with sudo")
    modules = space.modules or MODULES
    rows, skipped = measure(modules, space.repetitions)
    status = show(wide(Console(stderr=space.json)), rows, skipped, modules)
    if space.json:
        print(json.dumps({name: row["value"] for name, row in rows.items()}, indent=2))
    return status


if __name__ == "__main__":
    sys.exit(main())
