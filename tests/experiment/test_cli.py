"""The command as scripts meet it: output, one line for a mistake, exit status. None of it needs root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from testbed import cli
from testbed.experiment import leftovers, preflight
from testbed.experiment.arguments import RunOptions
from testbed.experiment.errors import CannotRun
from testbed.experiment.plan import Plan
from testbed.experiment.result import Check, Outcome, Result

ROOT = Path(__file__).parents[2]
SWAP_FLOOD = str(ROOT / "topologies" / "swap_flood.py")


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        status = cli.main(words)
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status, out, err = call(capsys, *words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("testbed")
    return err


def test_patches(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "patches")
    assert status == 0
    assert sum(line[:2].strip().isdigit() for line in out.splitlines()) == 16
    assert "netvm: Allow skb allocation to use PFMEMALLOC reserves" in out


def test_watermarks(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "watermarks", "--memory", "2G")
    assert status == 0
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:]}
    assert rows == {"high": "2172", "low": "1810", "min": "1448", "throttle": "724", "atomic": "543"}
    assert "min_free_kbytes 5792" in out
    status, out, _ = call(capsys, "watermarks", "--memory", "2G", "--series", "6.1")
    assert " 1972 pages" in out


def test_watermarks_of_each_zone(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "watermarks", "--memory", "2G", "--zones", "i386")
    assert status == 0
    table = [line.split() for line in out.splitlines()[7:]]
    assert [row[:5] for row in table] == [
        ["DMA", "4096", "17", "21", "25"],
        ["Normal", "225280", "939", "1173", "1408"],
        ["HighMem", "294912", "128", "435", "743"],
    ]
    assert table[0][5:] == ["Normal", "880,", "HighMem", "2032"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["patches", "--all"], "unrecognized arguments: --all"),
        (["watermarks", "--memory", "much"], "'much' is not a size"),
        (["watermarks", "--memory", "4K"], "does not suit"),
        (["watermarks", "--memory", "1K"], "1K of memory is less than a page"),
        (["watermarks", "--memory", "2G", "--min-free-kbytes", "x"], "'x' is not a whole number"),
        (["kernel", "build", "--jobs", "0"], "at least 1"),
        (["clean", "up"], "unrecognized arguments: up (see testbed clean --help)"),
        (["run", ""], "an empty path"),
        (["watermarks", "--memory", "2G", "--series", "7"], "invalid choice"),
        (["watermarks", "--memory", "2G", "--zones", "vax"], "invalid choice"),
        (["run", "missing.py"], "missing.py: No such file or directory"),
        (["run", SWAP_FLOOD, "--without", "0"], "there is no patch 0"),
        (["run", SWAP_FLOOD, "--memory", "1M"], "too small for a receive ring"),
        (["run", SWAP_FLOOD, "--clients", "3"], "unrecognized arguments: --clients 3"),
        (["run", SWAP_FLOOD, "--flood-size", "9999"], "flood frames must have"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert part in refused(capsys, *words)


def test_without_privilege_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody() -> None:
        raise CannotRun("this needs root (CAP_NET_ADMIN missing): run it with sudo")

    monkeypatch.setattr(preflight, "require_privilege", nobody)
    monkeypatch.chdir(tmp_path)
    assert "run it with sudo" in refused(capsys, "run", SWAP_FLOOD)
    assert list(tmp_path.iterdir()) == []


def test_privilege_is_read_from_the_kernel(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    preflight.require_privilege(status)
    status.write_text("Name:\tx\nCapEff:\t0000000000001000\n")
    with pytest.raises(CannotRun, match=r"^this needs root \(CAP_NET_RAW, CAP_SYS_ADMIN missing\): run it with sudo$"):
        preflight.require_privilege(status)
    with pytest.raises(CannotRun, match="needs Linux"):
        preflight.require_privilege(tmp_path / "none")


def test_a_program_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kit.py"
    text = Path(SWAP_FLOOD).read_text().replace('NbdServer("server"', 'NbdServer("server", program="nbdkit"')
    path.write_text(text)
    monkeypatch.setattr(preflight, "require_privilege", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "server: nbdkit is not installed: apt install nbdkit" in refused(capsys, "run", str(path))


def test_a_machine_with_too_little_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(preflight, "require_privilege", lambda: None)
    monkeypatch.setattr(preflight, "meminfo", lambda name: 300 << 20)
    assert "of real memory (clients and swap areas), and 300M are available" in refused(capsys, "run", SWAP_FLOOD)


class Rig:
    """Stands in for the run itself: what the command makes of a result is what is looked at."""

    def __init__(self, outcome: Outcome | Exception) -> None:
        self.outcome = outcome
        self.options: list[RunOptions] = []

    def run(self, plan: Plan, options: RunOptions, view: object = None) -> Result:
        self.options.append(options)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        checks = [Check("progress", self.outcome == "pass", "seen")]
        return Result(outcome=self.outcome, checks=checks, seed=options.seed, topology=plan.name)


def rigged(monkeypatch: pytest.MonkeyPatch, outcome: Outcome | Exception) -> Rig:
    rig = Rig(outcome)
    module: Any = ModuleType("testbed.experiment.session")
    module.run = rig.run
    monkeypatch.setitem(sys.modules, "testbed.experiment.session", module)
    monkeypatch.setattr(preflight, "require_privilege", lambda: None)
    monkeypatch.setattr(preflight, "meminfo", lambda name: 1 << 40)
    monkeypatch.delenv("TESTBED_RUN", raising=False)
    monkeypatch.setattr(leftovers, "mark_children", lambda: None)
    return rig


@pytest.mark.parametrize(
    ("outcome", "expect", "status"),
    [
        ("pass", "pass", 0),
        ("fail", "pass", 1),
        ("deadlock", "pass", 1),
        ("deadlock", "deadlock", 0),
        ("pass", "deadlock", 1),
        ("fail", "deadlock", 1),
        ("error", "pass", 2),
        ("error", "deadlock", 2),
    ],
)
def test_exit_status(
    outcome: Outcome, expect: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rigged(monkeypatch, outcome)
    assert call(capsys, "run", SWAP_FLOOD, "--expect", expect)[0] == status


def test_json_is_alone_on_standard_output(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    rigged(monkeypatch, "pass")
    assert cli.main(["run", SWAP_FLOOD, "--json", "--seed", "5"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["seed"] == 5
    assert "progress" in err


def test_what_the_rig_cannot_do_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rigged(monkeypatch, CannotRun("server: port 10809 is in use: choose another"))
    assert "port 10809 is in use" in refused(capsys, "run", SWAP_FLOOD)


def test_an_option_of_the_topology(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rig = rigged(monkeypatch, "pass")
    assert call(capsys, "run", str(ROOT / "topologies" / "ltsp_lab.py"), "--clients", "2", "--vanilla")[0] == 0
    assert rig.options[0].patches == frozenset()


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, to its end; it finds the project."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_a_script_run_directly_takes_the_same_options() -> None:
    done = python(SWAP_FLOOD, "--without", "99")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("swap_flood.py: there is no patch 99")
    assert done.stderr.count("\n") == 1


INTERRUPTED = """
import sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == "testbed.experiment":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
"""
INTERRUPTED_IMPORT = f"""{INTERRUPTED}
from testbed import cli
assert {{name for name in sys.modules if name.startswith("testbed")}} == {{"testbed", "testbed.cli"}}
sys.exit(cli.main(["patches"]))
"""
INTERRUPTED_SCRIPT = f"""{INTERRUPTED}
from testbed import Topology
"""


def test_an_interruption_before_the_modules_are_there_is_one_line() -> None:
    done = python("-c", INTERRUPTED_IMPORT)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "testbed: interrupted\n")


def test_an_interruption_while_a_topology_script_imports_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "lab.py"
    script.write_text(INTERRUPTED_SCRIPT)
    done = python(script)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "lab.py: interrupted\n")


def test_a_program_that_only_imports_us_catches_its_own_interruption() -> None:
    done = python("-c", INTERRUPTED_SCRIPT)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr


def test_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "testbed.cli", "patches"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (2, "testbed: cannot write: No space left on device\n")
