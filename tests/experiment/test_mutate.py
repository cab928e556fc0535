"""scripts/mutate: its table fits this tree, and its judgement is right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from scripts.mutation import driver
from scripts.mutation.mutation import Mutation
from scripts.mutation.table import MUTATIONS
from testbed.patches import PATCHES
from testbed.rules import NAMES

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path: path.read_text() for path in (ROOT / "testbed").rglob("*.py")}


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(mutation.name for mutation in MUTATIONS).items() if count > 1] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_text_is_there_once_and_its_tests_are_there(mutation: Mutation) -> None:
    mutation.check(ROOT)


def test_each_patch_is_in_the_table() -> None:
    broken = {mutation.name[:3] for mutation in MUTATIONS}
    assert [number for number in PATCHES if f"p{number:02}" not in broken] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_place_that_reads_a_kernel_rule_is_broken_in_both_directions(name: str) -> None:
    reading = {path for path, text in SOURCES.items() if f"rules.{name}" in text}
    ours = [mutation for mutation in MUTATIONS if mutation.name.startswith(f"{name}-")]
    assert {ROOT / mutation.file for mutation in ours} == reading
    assert {mutation.name.rpartition("-")[2] for mutation in ours} in (set(), {"earlier", "later"})


RULE = "def allowed(free: int) -> bool:\n    return free > 1\n"
TEST = "from testbed.rule import allowed\n\n\ndef test_rule() -> None:\n    assert not allowed(1)\n"


@pytest.mark.parametrize(
    ("text", "replacement", "colour"),
    [
        ("free > 1", "free >= 1", "red"),
        ("free > 1", "free > 2", "green"),
        ("free > 3", "free > 2", "stale"),
        ("e", "f", "stale"),
        ("def allowed", "def refused", "broken"),
    ],
)
def test_what_becomes_of_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, replacement: str, colour: str
) -> None:
    for name in driver.PARTS[:-1]:
        (tmp_path / name).mkdir()
    (tmp_path / driver.PARTS[-1]).write_text("")
    (tmp_path / "testbed" / "rule.py").write_text(RULE)
    (tmp_path / "tests" / "test_rule.py").write_text(TEST)
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    mutation = Mutation("rule", "more than one", "testbed/rule.py", text, replacement, ("tests/test_rule.py",))
    assert driver.judge(mutation)[0] == colour
    assert (tmp_path / "testbed" / "rule.py").read_text() == RULE
