"""Building, with programs that only pretend to compile: once, whole or not at all, and nothing left behind."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
from rich.console import Console

from testbed.experiment.leftovers import temporary_directory
from testbed.hosts.kernel import build as building
from testbed.hosts.kernel.build_steps import Steps
from testbed.hosts.kernel.catalogue import cache_directory, images
from testbed.hosts.kernel.image import KernelImage
from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError
from tests.hosts.kernel.fakes import program

SLUB: tuple[SlabAllocator, ...] = ("slub",)
MAKE = """
for word; do case "$word" in O=*) output=${word#O=};; esac; done
case "$*" in *allnoconfig*) cp "$KCONFIG_ALLCONFIG" "$output/.config"; exit;; esac
echo made >>"$LOG"
echo "  CC      init/main.o"
COMPILE
cat >"$output/linux" <<END
#!/bin/sh
case \\$1 in --version) echo 6.1.0;; --showconfig) cat <<CONFIG
$(cat "$output/.config")
CONFIG
esac
END
chmod +x "$output/linux"
"""


class Workshop:
    """A directory with all programs that building takes; `compile` is what make does besides."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.log = directory / "log"
        for name in ("dpkg-query", "gcc"):
            program(directory / "bin" / name, "echo 6.1.0-1")
        program(directory / "bin" / "apt-cache", "echo Version: 6.1.0-1")
        program(directory / "bin" / "apt-get", "touch linux-source.deb")
        program(directory / "bin" / "dpkg-deb", "true")
        program(directory / "bin" / "tar", 'echo unpacked >>"$LOG"; mkdir "$4/linux-source-6.1"')
        program(directory / "bin" / "patch", "true")
        self.compile("true")

    def compile(self, command: str) -> None:
        program(self.directory / "bin" / "make", MAKE.replace("COMPILE", command))

    def done(self, word: str) -> int:
        return self.log.read_text().split().count(word) if self.log.exists() else 0

    def build(self, *slabs: SlabAllocator) -> list[KernelImage]:
        with Steps(Console(quiet=True)) as steps:
            return building.build(slabs or SLUB, 1, steps, temporary_directory)

    def left(self) -> list[str]:
        kernels = [path.name for path in cache_directory().iterdir() if path.name != ".lock"]
        return kernels + [path.name for path in self.temporary.iterdir()]


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    workshop = Workshop(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.defpath}")
    monkeypatch.setenv("LOG", str(workshop.log))
    monkeypatch.setattr(tempfile, "tempdir", str(workshop.temporary))
    monkeypatch.setattr(building, "SPACE", 0)
    monkeypatch.setattr(building, "check_programs", lambda: None)
    return workshop


def test_a_kernel_is_made_once(workshop: Workshop) -> None:
    first, second = workshop.build(), workshop.build()
    assert first == second
    assert (workshop.done("unpacked"), workshop.done("made")) == (1, 1)
    assert [image.path for image in images() if image.built] == [first[0].path]
    assert list(workshop.temporary.iterdir()) == []


def test_another_compiler_makes_another_kernel(workshop: Workshop) -> None:
    (first,) = workshop.build()
    program(workshop.directory / "bin" / "gcc", "echo gcc 13")
    (second,) = workshop.build()
    assert first.path != second.path
    assert workshop.done("made") == 2


def test_both_kernels_come_from_one_unpacked_source(workshop: Workshop) -> None:
    assert [image.slab for image in workshop.build("slub", "slab")] == ["slub", "slab"]
    assert (workshop.done("unpacked"), workshop.done("made")) == (1, 2)


def test_an_interruption_leaves_nothing(workshop: Workshop) -> None:
    workshop.compile('sleep 600 & echo $! >"$LOG.pid"; kill -INT $PPID; wait')
    with pytest.raises(KeyboardInterrupt):
        workshop.build()
    assert workshop.left() == []
    compiler = Path("/proc") / (workshop.directory / "log.pid").read_text().strip() / "stat"
    deadline = time.monotonic() + 60
    while compiler.exists() and compiler.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not compiler.exists() or compiler.read_text().split()[2] == "Z"


def test_a_failure_is_the_compilers_own_line_and_leaves_nothing(workshop: Workshop) -> None:
    workshop.compile('echo "mm/slub.c:1: error: no such thing"; exit 2')
    with pytest.raises(LabError, match=r"^compiling SLUB failed: mm/slub\.c:1: error: no such thing$"):
        workshop.build()
    assert workshop.left() == []


def test_the_first_of_two_kernels_stays_when_the_second_fails(workshop: Workshop) -> None:
    workshop.compile('case "$output" in */slab) exit 1;; esac')
    with pytest.raises(LabError, match="compiling SLAB failed: make ended with status 1"):
        workshop.build("slub", "slab")
    assert [image.slab for image in images() if image.built] == ["slub"]


def test_a_patch_that_does_not_apply_is_said(workshop: Workshop) -> None:
    program(workshop.directory / "bin" / "patch", "echo '1 out of 3 hunks FAILED'; exit 1")
    with pytest.raises(LabError, match="applying the patch failed: 1 out of 3 hunks FAILED"):
        workshop.build()
    assert workshop.left() == []


def test_a_configuration_that_the_kernel_does_not_take_is_refused(workshop: Workshop) -> None:
    script = MAKE.replace('cp "$KCONFIG_ALLCONFIG"', 'grep -v BLK_DEV_NBD "$KCONFIG_ALLCONFIG" >').replace(
        '> "$output', '>"$output'
    )
    program(workshop.directory / "bin" / "make", script)
    with pytest.raises(LabError, match="does not accept CONFIG_BLK_DEV_NBD=y"):
        workshop.build()
    assert workshop.left() == []


def test_too_little_room_is_said_before_anything_is_unpacked(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SPACE", 1 << 60)
    with pytest.raises(LabError, match="set TMPDIR"):
        workshop.build()
    assert workshop.done("unpacked") == 0


def test_a_cache_that_cannot_be_written_is_said(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(LabError, match="cannot write to /dev/null/testbed/kernels: Not a directory: set XDG_CACHE"):
        workshop.build()


def test_no_source_anywhere_is_said(workshop: Workshop) -> None:
    for name in ("dpkg-query", "apt-cache"):
        program(workshop.directory / "bin" / name, "exit 1")
    with pytest.raises(LabError, match="our patch needs linux-source"):
        workshop.build()


@pytest.mark.parametrize(
    ("missing", "headers", "packages"),
    [
        ({"flex", "xz"}, True, "flex xz-utils"),
        (set(), False, "libc6-dev"),
        ({"ld", "bison"}, False, "binutils bison libc6-dev"),
    ],
)
def test_what_building_takes_is_named_as_packages(
    tmp_path: Path, missing: set[str], headers: bool, packages: str
) -> None:
    with pytest.raises(LabError) as caught:
        building.check_programs(
            lambda name: None if name in missing else name, tmp_path if headers else tmp_path / "none"
        )
    assert str(caught.value) == f"building a kernel needs more programs: apt install {packages}"


def test_steps_outside_a_terminal_are_lines(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as out, Steps(Console(file=out)) as steps:
        steps.run("compiling", ["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo '  CC  x'; done"], total=8)
        out.seek(0)
        assert out.read().splitlines() == [
            "compiling",
            "compiling: 2 of about 8 files",
            "compiling: 4 of about 8 files",
            "compiling: 6 of about 8 files",
        ]
