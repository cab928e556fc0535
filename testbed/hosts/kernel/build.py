"""Making kernels: the source, our patch and configuration, make; the result in the cache or nothing at all.

What a kernel is made from names its place in the cache, so that the same one is never made twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from testbed.hosts.kernel.build_steps import Steps
from testbed.hosts.kernel.catalogue import KERNEL, cache_directory
from testbed.hosts.kernel.image import ABOUT, KernelImage, identify
from testbed.hosts.kernel.recipe import Recipe, configuration, recipe
from testbed.hosts.kernel.source import find_source, patched_tree
from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError

PROGRAMS = {
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "patch": "patch",
    "tar": "tar",
    "xz": "xz-utils",
}
"""What building takes, and the packages that have it."""
HEADERS = Path("/usr/include/stdio.h")
"""Of the C library: the package libc6-dev."""
SPACE = 3 << 30
"""Bytes of the source and of two kernels' object files, with room."""
FILES = 1080
"""About how many files make makes for a kernel."""


def build(
    slabs: Sequence[SlabAllocator], jobs: int, steps: Steps, workplace: Callable[[], AbstractContextManager[Path]]
) -> list[KernelImage]:
    """The kernels with these slab allocators, made now if they are not in the cache; minutes each.

    `workplace` gives a directory that is gone when its context ends. Raises LabError.
    """
    check_programs()
    source = find_source()
    compiler = _compiler()
    recipes = [recipe(source.version, compiler, slab) for slab in slabs]
    with _one_at_a_time():
        if missing := [each for each in recipes if not _place(each).is_dir()]:
            with workplace() as directory:
                _check_space(directory)
                tree = patched_tree(source, directory, steps)
                for each in missing:
                    _make(each, tree, directory / each.slab, jobs, steps)
    return [identify(_place(each) / KERNEL) for each in recipes]


def check_programs(which: Callable[[str], str | None] = shutil.which, headers: Path = HEADERS) -> None:
    """Raises LabError that names the packages to install, unless all that building takes is there."""
    missing = [package for program, package in PROGRAMS.items() if which(program) is None]
    if not headers.exists():
        missing.append("libc6-dev")
    if missing:
        raise LabError(f"building a kernel needs more programs: apt install {' '.join(missing)}")


def _make(made: Recipe, tree: Path, output: Path, jobs: int, steps: Steps) -> None:
    """Configure and make below `output`; put the kernel and what it is into the cache, both or neither."""
    output.mkdir()
    fragment = output.with_name(f"{made.slab}.config")
    fragment.write_text(configuration(made.slab))
    make = ["make", "ARCH=um", f"O={output}"]
    name = made.slab.upper()
    steps.run(f"configuring {name}", [*make, "allnoconfig"], tree, environment={"KCONFIG_ALLCONFIG": str(fragment)})
    _check_configuration(fragment, output / ".config")
    steps.run(f"compiling {name}", [*make, f"-j{jobs}", KERNEL], tree, total=FILES)
    place = _place(made)
    new = place.with_name(f".{place.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    shutil.copy2(output / KERNEL, new / KERNEL)
    (new / ABOUT).write_text(json.dumps(made.about(), indent=2) + "\n")
    new.rename(place)


def _check_configuration(fragment: Path, config: Path) -> None:
    """Raises LabError if the kernel's configuration has not kept to ours: an option of another name or need."""
    given = config.read_text().splitlines()
    for line in fragment.read_text().splitlines():
        if line.startswith("CONFIG_") and line not in given:
            raise LabError(f"this kernel does not accept {line}: our configuration is not made for it")


def _check_space(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < SPACE:
        raise LabError(
            f"building needs {SPACE >> 30} GiB in {directory.parent}, and {free >> 20} MiB are free: set TMPDIR"
        )


def _compiler() -> str:
    return subprocess.run(
        ["gcc", "--version"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=True
    ).stdout.splitlines()[0]


def _place(made: Recipe) -> Path:
    return cache_directory() / made.name


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Whoever comes second waits, and finds what the first has made."""
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = (cache / ".lock").open("w")
    except OSError as error:
        raise LabError(f"cannot write to {cache}: {error.strerror}: set XDG_CACHE_HOME to where you can") from None
    with file as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
