"""Topology scripts that cannot be loaded say why, in one line that names the file and the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.experiment.errors import CannotRun
from testbed.experiment.load import load_topology

GOOD = "from testbed import Topology\ntopology = Topology('good')\n"


def refusal(path: Path, *words: str) -> str:
    with pytest.raises(CannotRun) as raised:
        load_topology(path, words)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(path))
    return str(raised.value).removeprefix(str(path))


def test_a_good_script(tmp_path: Path) -> None:
    path = tmp_path / "good.py"
    path.write_text(GOOD + "if __name__ == '__main__':\n    raise RuntimeError('must not run')\n")
    topology, unused = load_topology(path, ["--left", "over"])
    assert (topology.name, unused) == ("good", ["--left", "over"])
    assert list(tmp_path.iterdir()) == [path], "loading must leave nothing behind"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = (\n", ", line 1: '(' was never closed"),
        ("x = 1\n\n  y = 2\n", ", line 3: unexpected indent"),
        ("x = 1\n", ": it must set topology = Topology(...)"),
        ("topology = 'text'\n", ": it must set topology = Topology(...)"),
        ("x = 1\nfrom testbed import Bus\n", ", line 2: ImportError: cannot import name 'Bus'"),
        ("raise SystemExit(3)\n", ": it ended while it was loaded, with status 3"),
        ("from testbed import *\nt = Topology('a b')\n", ", line 2: topology name 'a b'"),
        ("def f():\n    return 1 / 0\nf()\n", ", line 2: ZeroDivisionError: division by zero"),
        ("raise OSError('two\\nlines')\n", ", line 1: OSError: two lines"),
        ("\0", ": source code string cannot contain null bytes"),
        ("def from_arguments(words):\n    return 1 / 0\n", ": it must set topology"),
        ("# coding: nonsense\n", ""),
    ],
)
def test_a_bad_script(source: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    assert refusal(path).startswith(line)


def test_no_script(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.py") == ": No such file or directory"
    assert refusal(tmp_path) == ": Is a directory"


def test_a_script_with_options_of_its_own() -> None:
    lab = Path(__file__).parents[2] / "topologies" / "ltsp_lab.py"
    topology, unused = load_topology(lab, ["--clients", "5", "--odd"])
    assert len(topology.clients) == 5
    assert unused == ["--odd"]


def test_a_mistake_in_options_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def from_arguments(words):\n    return 1 / 0\n")
    assert refusal(path, "--odd") == ", line 2: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("clients", ["0", "none", "201"])
def test_a_script_with_a_bad_option_of_its_own(clients: str, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Path(__file__).parents[2] / "topologies" / "ltsp_lab.py"
    with pytest.raises(SystemExit) as raised:
        load_topology(lab, ["--clients", clients])
    assert raised.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
