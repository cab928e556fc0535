"""Every kernel that is here boots, and says itself which switches are off."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from testbed.hosts.kernel.catalogue import choose, images
from testbed.hosts.kernel.image import KernelImage
from testbed.hosts.kernel.switches import SWITCHES
from testbed.hosts.plan import SlabAllocator
from testbed.patches import PATCHES
from tests.hosts.kernel.booting import boot

ALL = frozenset(PATCHES)
SECONDS = 60
OFF = re.compile(r"testbed: (\w+) is off(?: \(patch (\d+)\))?$", re.MULTILINE)
INIT = """#!/bin/sh
mount -t proc proc /proc
echo "init is here"
[ ! -e /proc/testbed ] || cat /proc/testbed
echo o >/proc/sysrq-trigger
sleep 60
"""


def root_directory(directory: Path) -> Path:
    """A root for the guest: a script and the programs that it calls, with their libraries."""
    for name in ("sh", "mount", "cat", "sleep"):
        program = Path(shutil.which(name) or name).resolve()
        libraries = re.findall(r"(/\S+) \(0x", subprocess.check_output(["ldd", program], text=True))
        for source, target in [(program, Path("/bin") / name), *((Path(library),) * 2 for library in libraries)]:
            place = directory / target.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    for name in ("proc", "dev", "tmp"):
        (directory / name).mkdir(exist_ok=True)
    (directory / "init").write_text(INIT)
    (directory / "init").chmod(0o755)
    return directory


def log_of(image: KernelImage, directory: Path, parameters: tuple[str, ...] = ()) -> str:
    """What a kernel with a root of its own prints."""
    root = root_directory(directory / "root")
    memory = directory / "tmp"
    memory.mkdir()
    words = ["mem=64M", "rootfstype=hostfs", f"rootflags={root}", "rw", "init=/init"]
    return boot([image.path, *words, *parameters], directory, memory=memory, seconds=SECONDS)


@pytest.mark.program("linux.uml", "ldd")
def test_the_packaged_kernel_boots(tmp_path: Path) -> None:
    packaged = images()[-1]
    log = log_of(packaged, tmp_path)
    assert "init is here" in log
    assert f"Linux version {packaged.version} " in log
    assert "testbed:" not in log


@pytest.mark.program("ldd")
@pytest.mark.parametrize("patches", [ALL, ALL - {15}, ALL - {8}, frozenset()], ids=["all", "no 15", "no 8", "vanilla"])
@pytest.mark.parametrize(
    "slab", [pytest.param(slab, marks=pytest.mark.kernel_image(slab)) for slab in ("slub", "slab")]
)
def test_a_built_kernel_boots_and_says_what_is_off(
    tmp_path: Path, slab: SlabAllocator, patches: frozenset[int]
) -> None:
    image, parameters = choose(slab, patches)
    log = log_of(image, tmp_path, parameters)
    asked_for = {(switch.name, str(switch.patch or "")) for switch in SWITCHES if switch.parameter in parameters}
    assert "init is here" in log
    assert set(OFF.findall(log)) == asked_for
    shown = {name: value for name, value, _ in re.findall(r"^(\w+) ([01]) (\d+)$", log, re.MULTILINE)}
    assert shown == {switch.name: "0" if switch.parameter in parameters else "1" for switch in SWITCHES}
