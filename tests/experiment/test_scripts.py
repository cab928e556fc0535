"""The scripts of the front door, as far as they go without installing anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def call(script: str, root: Path = ROOT, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [root / script], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/bench", "scripts/load", "scripts/nemesis"])
@pytest.mark.program("setpriv")
def test_without_root_they_say_so_before_they_do_anything(script: str) -> None:
    words = [str(ROOT / script)]
    if os.geteuid() == 0:  # the checkout may be unreadable for others: hand over the text
        text = (ROOT / script).read_text().replace('cd "$(dirname "$0")/.."', "cd /")
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", text, script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "run it with sudo" in done.stderr


def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup", "scripts/requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def python_that(tmp_path: Path, fails_on: str) -> str:
    """An interpreter that fails on one thing."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *"{fails_on}"*) exit 1;; esac\nexec /usr/bin/env python3 "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("fails_on", "line"), [("version_info < ", "is not Python 3.11 or later"), ("import ensurepip", "apt install")]
)
def test_setup_says_what_is_missing(fails_on: str, line: str, tmp_path: Path) -> None:
    status, error = call("scripts/setup", checkout(tmp_path), PYTHON=python_that(tmp_path, fails_on))
    assert status == 2
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


def test_setup_makes_a_half_made_environment_anew(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / ".venv").mkdir()
    (root / ".venv" / "remains").touch()
    (root / "scripts" / "requirements.lock").write_text("no such requirement\n")
    status, error = call("scripts/setup", root)
    assert status == 2
    assert "pip could not install" in error
    assert not (root / ".venv" / "remains").exists()
    assert not (root / ".venv" / "stamp").exists()


def test_the_lock_names_no_index_and_has_a_hash_for_everything() -> None:
    text = (ROOT / "scripts" / "requirements.lock").read_text()
    assert "://" not in text
    names = [line for line in text.splitlines() if line and line[0] not in " #"]
    assert len(names) > 10
    for block in text.split("\n"):
        assert not block or block.startswith(("#", "    --hash=sha256:")) or (" \\" in block and "==" in block)
