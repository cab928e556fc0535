"""The tables of `testbed patches`: the series, one preset, and in what two presets differ.

On a terminal they fold to its width (what a rule is about goes below it if there is little); elsewhere each row is
one line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from testbed.patches import PATCHES, PRESETS, WITHOUT_BASE
from testbed.rules import NAMES, differences, why

ONE_LINE = 400
"""Columns that no row fills, for output that is not a terminal."""
ROOM_FOR_WHY = 130
"""Columns from which on there is room for words beside a rule and its values."""


def series() -> dict[str, Any]:
    """The 16 patches and the presets that have them on."""
    return {
        "patches": [
            {
                "number": patch.number,
                "title": patch.title,
                "builds_on": sorted(patch.depends_on),
                "without_base": {
                    str(base): what for (number, base), what in WITHOUT_BASE.items() if number == patch.number
                },
                "acts_on": patch.acts_on,
                "on_in": [name for name, preset in PRESETS.items() if patch.number in preset.patches],
            }
            for patch in PATCHES.values()
        ],
        "presets": {name: preset.title for name, preset in PRESETS.items()},
    }


def preset(name: str) -> dict[str, Any]:
    """One preset: the patches that are on, and each rule's value with what it is about."""
    chosen = PRESETS[name]
    return {
        "preset": name,
        "title": chosen.title,
        "patches": sorted(chosen.patches),
        "rules": {rule: {"value": getattr(chosen.rules, rule), "why": why(rule)} for rule in NAMES},
    }


def difference(one: str, other: str) -> dict[str, Any]:
    """What one preset has otherwise than another: the patches only one of them has on, and the rules, both values."""
    first, second = PRESETS[one], PRESETS[other]
    return {
        "presets": [one, other],
        "patches": {one: sorted(first.patches - second.patches), other: sorted(second.patches - first.patches)},
        "rules": {
            rule: {one: getattr(first.rules, rule), other: getattr(second.rules, rule), "why": why(rule)}
            for rule in differences(first.rules, second.rules)
        },
    }


def show(name: str | None, other: str | None, as_json: bool) -> None:
    """Print the series, or the preset `name`, or in what it differs from `other`."""
    data = series() if name is None else preset(name) if other is None else difference(name, other)
    if as_json:
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = ONE_LINE
    if name is None:
        _show_series(console)
    elif other is None:
        _show_preset(console, data)
    else:
        show_difference(console, data, name, other)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=len(headings) > 2, overflow="fold")
    table.add_column(headings[-1], overflow="fold")
    return table


def _show_series(console: Console) -> None:
    table = _table("", "builds on", "on in", "title")
    table.columns[0].justify = "right"
    for patch in series()["patches"]:
        limit = f" (acts only on {patch['acts_on']})" if patch["acts_on"] else ""
        base = ", ".join(map(str, patch["builds_on"])) or "-"
        table.add_row(
            f"{patch['number']:>2}", base, ", ".join(patch["on_in"]) or "-", escape(patch["title"]) + f"[dim]{limit}[/]"
        )
    console.print(table)


def _show_preset(console: Console, data: dict[str, Any]) -> None:
    on = ", ".join(map(str, data["patches"])) or "none"
    console.print(f"preset {data['preset']}: {escape(data['title'])}\npatches on: {on}\n")
    _show_rules(console, data["rules"], ["value"])


def show_difference(console: Console, data: dict[str, Any], one: str, other: str) -> None:
    """Print in what two presets differ."""
    for name in dict.fromkeys((one, other)):
        if only := data["patches"][name]:
            console.print(f"patches on in {name} only: {', '.join(map(str, only))}")
    if not data["rules"]:
        console.print(f"the rules of {one} and {other} are the same")
        return
    _show_rules(console, data["rules"], [one, other])


def _show_rules(console: Console, rules: dict[str, Any], columns: list[str]) -> None:
    beside = console.width >= ROOM_FOR_WHY
    table = _table("rule", *columns, *(["what it is about"] if beside else []))
    for rule, row in rules.items():
        values = [text(row[column]) for column in columns]
        table.add_row(rule, *values, *([escape(row["why"])] if beside else []))
    if beside:
        console.print(table)
        return
    head, *lines = _lines(console, table)
    console.print(head)
    for line, row in zip(lines, rules.values(), strict=True):
        console.print(line, Padding(f"[dim]{escape(row['why'])}[/]", (0, 0, 0, 4)))


def _lines(console: Console, table: Table) -> list[Text]:
    """The rows of a table as they are on this console, for something to be put between them."""
    return [
        Text.assemble(*((part.text, part.style or "") for part in line))
        for line in console.render_lines(table, pad=False)
    ]


def text(value: object) -> str:
    """A rule's value for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else escape(str(value))
