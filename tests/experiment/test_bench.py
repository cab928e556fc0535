"""The benchmark driver: a row that was not measured is never shown as met."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from scripts.benchmarks import driver


def module(monkeypatch: pytest.MonkeyPatch, name: str, rows: Any) -> None:
    made: Any = ModuleType(f"scripts.benchmarks.{name}")
    made.rows = rows
    monkeypatch.setitem(sys.modules, made.__name__, made)


def row(name: str, value: float | None, detail: str = "median of 5") -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "", "detail": detail}


def shown(*modules: str) -> tuple[int, str]:
    out = io.StringIO()
    status = driver.show(Console(file=out, width=160), *driver.measure(modules, 5), modules)
    return status, out.getvalue()


def test_rows_within_their_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, "swap", lambda repetitions: [row("swap_pages_per_s", 20_000.0 * repetitions / 5)])
    status, text = shown("swap")
    assert (status, "met" in text, "aim 40,000" in text) == (0, True, True)


@pytest.mark.parametrize(
    ("value", "status", "word"), [(19_999.0, 1, "MISSED"), (None, 2, "not measured"), (float("nan"), 2, "not measured")]
)
def test_rows_that_are_not(value: float | None, status: int, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, "swap", lambda repetitions: [row("swap_pages_per_s", value)])
    found, text = shown("swap")
    assert found == status
    assert word in text


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(repetitions: int) -> list[dict[str, Any]]:
        raise ValueError("needs fio, which is not installed")

    module(monkeypatch, "nbd", rows)
    status, text = shown("nbd")
    assert status == 2
    assert text.count("not measured") == 3
    assert "needs fio, which is not installed" in text


def test_a_bound_from_above_and_a_row_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {"flood_ratio_to_sendmmsg_c": 1.0, "flood_ratio_to_scapy_sendp": 300.0, "host_setup_ms": 3.0}
    for ratio, status in ((0.6, 0), (0.61, 1)):
        measured = [row(name, value) for name, value in {**ratios, "host_setup_ratio_to_ip_batch": ratio}.items()]
        module(monkeypatch, "lab", lambda repetitions, measured=measured: measured)
        assert shown("lab")[0] == status


def test_the_targets_are_those_that_were_agreed() -> None:
    assert len(driver.TARGETS) == 11
    assert {target.module for target in driver.TARGETS.values()} == set(driver.MODULES)
