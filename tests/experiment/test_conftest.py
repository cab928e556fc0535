"""Skips of tests that need something: a skip here, a failure where all are required."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.program("no-such-program")
def test_missing_program(): raise AssertionError("must not run")

@pytest.mark.program("sh")
def test_program(): pass

@pytest.mark.program("sh")
def test_skips_itself(): pytest.skip("not today")

@pytest.mark.root
def test_needs_device(): pytest.skip("there is no /dev/nbd0")

@pytest.mark.program("sh")
@pytest.mark.xfail(reason="known")
def test_known(): raise AssertionError

def test_plain(): pytest.skip("whatever")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    root: x\n    program(name): x\n")
    return tmp_path


def outcomes(folder: Path, **environment: str) -> tuple[dict[str, str], str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TESTBED_REQUIRE_ALL": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(re.findall(r"::(test_\w+) ([A-Z]+)", done.stdout)), done.stdout


def test_on_anybodys_machine_a_missing_program_is_a_skip(folder: Path) -> None:
    found, _ = outcomes(folder)
    assert found == {
        "test_missing_program": "SKIPPED",
        "test_program": "PASSED",
        "test_skips_itself": "SKIPPED",
        "test_needs_device": "SKIPPED",
        "test_known": "XFAIL",
        "test_plain": "SKIPPED",
    }


def test_where_all_are_required_it_is_a_failure_that_says_why(folder: Path) -> None:
    found, text = outcomes(folder, TESTBED_REQUIRE_ALL="1")
    assert found.pop("test_needs_device") in ("SKIPPED", "FAILED", "ERROR")
    assert found == {
        "test_missing_program": "ERROR",
        "test_program": "PASSED",
        "test_skips_itself": "FAILED",
        "test_known": "XFAIL",
        "test_plain": "SKIPPED",
    }
    assert "needs program:no-such-program, which --testbed-require requires: no-such-program is not installed" in text


@pytest.mark.root
def test_what_no_ci_can_have_may_be_skipped(folder: Path) -> None:
    assert outcomes(folder, TESTBED_REQUIRE_ALL="1")[0]["test_needs_device"] == "SKIPPED"
