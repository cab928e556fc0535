"""The plugin as another project has it: a repository of its own in which this project is no more than installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
[project]
name = "thin-clients"
version = "1.0"
dependencies = ["swap-testbed"]

[tool.pytest.ini_options]
addopts = ["--strict-markers"]
filterwarnings = ["error"]
"""
TESTS = """
import pytest
from testbed import UdpFlood

def test_our_clients_survive(swap_pair):
    result = swap_pair(UdpFlood(pps=5_000, size=1000), simulate=True)
    assert result.workload.finished_tasks == 8

def test_our_clients_need_no_patches(swap_pair):
    result = swap_pair(UdpFlood(pps=20_000, size=1000), without=range(1, 17), simulate=True)
    assert result.workload.finished_tasks == 8

@pytest.mark.needs("program:no-such-program")
def test_a_program(): raise AssertionError("must not run")

def test_hosts(lab):
    a, b = lab.namespace(), lab.namespace()
    lab.link((a, "eth0"), (b, "eth0"))
    assert a.inode != b.inode

def test_a_real_kernel(kernel_host): pass
"""
ON_SOCKETS = """
def test_it_takes_longer(swap_pair):
    result = swap_pair(memory="12M")
    assert result.workload.seconds > 1000
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory for PYTHONPATH in which the project is installed, as an editable installation does it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    about = site / "swap_testbed-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {declared['name']}\nVersion: 0\n")
    plugins = "".join(f"{name} = {module}\n" for name, module in declared["entry-points"]["pytest11"].items())
    (about / "entry_points.txt").write_text(f"[pytest11]\n{plugins}")
    (site / "testbed").symlink_to(ROOT / "testbed")
    return site


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "thin-clients"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


def run(project: Path, installed: Path, *words: str) -> tuple[dict[str, str], str]:
    """Outcomes by test, and all that was said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TESTBED_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", *words],
        cwd=project,
        env={**environment, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    return dict(re.findall(r"::(test_\w+) ([A-Z]+)", said)), said


def properties(path: Path) -> list[tuple[str, str]]:
    return [(each.attrib["name"], each.attrib["value"]) for each in ET.parse(path).iter("property")]


def test_pass_skip_and_fail_in_a_project_of_its_own(project: Path, installed: Path) -> None:
    (project / "test_clients.py").write_text(TESTS)
    runs = project / "runs"
    found, said = run(project, installed, f"--testbed-runs={runs}", "--junitxml=junit.xml")
    assert found.pop("test_hosts") in ("PASSED", "SKIPPED")
    assert found.pop("test_a_real_kernel") in ("PASSED", "SKIPPED")
    assert found == {
        "test_our_clients_survive": "PASSED",
        "test_our_clients_need_no_patches": "FAILED",
        "test_a_program": "SKIPPED",
    }
    assert "needs program:no-such-program: no-such-program is not installed" in said
    directory = runs / "test_clients.py-test_our_clients_need_no_patches" / "run-1"
    assert re.search(rf"testbed run run-1 -+\n{re.escape(str(directory))}\n", said)
    assert "last events of run-1" in said
    assert '"name":"stalled"' in said
    assert properties(project / "junit.xml") == [("testbed_run", str(directory))]
    assert (directory / "result.json").exists()


@pytest.mark.root
def test_a_failed_run_on_sockets_leaves_its_captures(project: Path, installed: Path) -> None:
    (project / "test_slow.py").write_text(ON_SOCKETS)
    found, said = run(project, installed, "--junitxml=junit.xml")
    assert found == {"test_it_takes_longer": "FAILED"}
    kept = properties(project / "junit.xml")
    assert [name for name, _ in kept] == ["testbed_run", *["testbed_capture"] * 3]
    for _, path in kept:
        assert Path(path).exists()
        assert path in said


@pytest.mark.parametrize("listed", ["program:no-such-program", "all"])
def test_what_is_required_may_not_be_missing(project: Path, installed: Path, listed: str) -> None:
    (project / "test_clients.py").write_text(TESTS)
    found, said = run(project, installed, f"--testbed-require={listed}", "-k", "a_program")
    assert found == {"test_a_program": "ERROR"}
    assert "needs program:no-such-program, which --testbed-require requires" in said


def test_all_but_one(project: Path, installed: Path) -> None:
    (project / "test_clients.py").write_text(TESTS)
    found, _ = run(project, installed, "--testbed-require=all,-program:no-such-program", "-k", "a_program")
    assert found == {"test_a_program": "SKIPPED"}


@pytest.mark.parametrize(
    ("test", "words"),
    [("@pytest.mark.needs('rooot')\ndef test_it(): pass", ()), ("def test_it(): pass", ("--testbed-require=rooot",))],
)
def test_an_unknown_capability_is_an_error(project: Path, installed: Path, test: str, words: tuple[str, ...]) -> None:
    (project / "test_typo.py").write_text(f"import pytest\n{test}\n")
    found, said = run(project, installed, *words)
    assert found == {}
    assert "unknown capability 'rooot': there are root, netem, " in said
