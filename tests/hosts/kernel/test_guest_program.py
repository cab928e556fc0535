"""The guest's program: compiled once for what it is made from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from testbed.hosts.kernel import guest_program as module
from testbed.hosts.kernel.guest_program import guest_program
from testbed.lab.errors import LabError


@pytest.mark.program("gcc")
def test_it_compiles_without_a_warning_and_only_once(tmp_path: Path) -> None:
    program = guest_program(tmp_path)
    before = program.stat().st_mtime_ns
    assert guest_program(tmp_path) == program
    assert program.stat().st_mtime_ns == before
    assert [each.name for each in tmp_path.iterdir()] == [program.name]
    sources = sorted(module.SOURCES.glob("*.c"))
    command = [
        "gcc",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-static",
        "-o",
        str(tmp_path / "strict"),
        *map(str, sources),
    ]
    subprocess.run(command, check=True)


@pytest.mark.program("gcc")
def test_another_source_is_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "guest"
    sources.mkdir()
    (sources / "init.c").write_text("int main(void) { return 0; }\n")
    monkeypatch.setattr(module, "SOURCES", sources)
    first = guest_program(tmp_path)
    (sources / "init.c").write_text("int main(void) { return 1; }\n")
    assert guest_program(tmp_path) != first


@pytest.mark.program("gcc")
def test_what_does_not_compile_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "init.c").write_text("this is no C\n")
    monkeypatch.setattr(module, "SOURCES", tmp_path)
    with pytest.raises(LabError, match="cannot compile") as caught:
        guest_program(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_compiler_it_says_which_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="apt install gcc"):
        guest_program(tmp_path / "cache")
