"""`testbed patches`: everything is in the tables, and a difference has what differs and nothing else."""

from __future__ import annotations

import io
import json
from itertools import product

import pytest
from rich.console import Console

from testbed import cli
from testbed.experiment import patch_tables
from testbed.patches import PATCHES, PRESETS
from testbed.rules import NAMES, why

PAIRS = list(product(PRESETS, PRESETS))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["patches", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_every_rule_in_one_line_with_its_value(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line.split()[0]: line for line in told(capsys, "--preset", name).splitlines() if line}
    for rule in NAMES:
        assert patch_tables.text(getattr(PRESETS[name].rules, rule)) in lines[rule]
        assert lines[rule].rstrip().endswith(why(rule))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_difference_has_what_differs_and_nothing_else(
    one: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(told(capsys, "--preset", one, "--diff", other, "--json"))
    first, second = PRESETS[one], PRESETS[other]
    assert set(data["patches"].get(one, [])) == first.patches - second.patches
    for rule in NAMES:
        values = getattr(first.rules, rule), getattr(second.rules, rule)
        assert (rule in data["rules"]) == (values[0] != values[1])
        if rule in data["rules"]:
            assert (data["rules"][rule][one], data["rules"][rule][other]) == values
            assert data["rules"][rule]["why"] == why(rule)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_words_and_json_say_the_same(one: str, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(told(capsys, "--preset", one, "--diff", other, "--json"))
    words = told(capsys, "--preset", one, "--diff", other)
    shown = [line.split()[0] for line in words.splitlines() if line.split()[0] in NAMES]
    assert shown == list(data["rules"])


def test_the_series_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(told(capsys, "--json"))
    assert [row["number"] for row in data["patches"]] == list(PATCHES)
    assert all(set(map(int, row["without_base"])) == set(row["builds_on"]) for row in data["patches"])
    assert set(data["presets"]) == set(PRESETS)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_of_any_width_shows_it_whole(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False)
    patch_tables.show_difference(console, patch_tables.difference("6.1", "v9"), "6.1", "v9")
    assert max(map(len, out.getvalue().splitlines())) <= width
    words = " ".join(out.getvalue().split())
    for rule, row in patch_tables.difference("6.1", "v9")["rules"].items():
        assert rule in words
        assert width < 200 or row["why"] in words
        assert all(word in words for word in row["why"].split())


def test_a_difference_needs_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["patches", "--diff", "v9"]) == 2
    assert "--preset" in capsys.readouterr().err
