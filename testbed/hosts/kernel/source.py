"""Debian's kernel source package: where it is, which version, and its tree with our patch applied."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts.kernel.build_steps import Steps
from testbed.hosts.kernel.recipe import PATCH
from testbed.lab.errors import LabError

PACKAGE = "linux-source-6.1"
"""What the patch is made for; in Debian 12."""
ARCHIVE = f"usr/src/{PACKAGE}.tar.xz"
"""Its one file, as it is installed."""


@dataclass(frozen=True, slots=True)
class KernelSource:
    """A version of the package; `archive` is its file if it is installed, else apt downloads it."""

    version: str
    archive: Path | None


def find_source(root: Path = Path("/")) -> KernelSource:
    """The installed package, or the one that apt offers. Raises LabError if there is neither."""
    archive = root / ARCHIVE
    if archive.exists() and (version := _output("dpkg-query", "-W", "-f", "${Version}", PACKAGE)):
        return KernelSource(version, archive)
    for line in _output("apt-cache", "show", "--no-all-versions", PACKAGE).splitlines():
        if line.startswith("Version:"):
            return KernelSource(line.split()[1], None)
    raise LabError(
        f"the kernel's source is not here and apt does not offer it: our patch needs {PACKAGE}, which Debian 12 has "
        "(apt update first, if this is Debian 12)"
    )


def patched_tree(source: KernelSource, directory: Path, steps: Steps) -> Path:
    """Unpack the source below `directory` (about 1.5 GB) and apply our patch; its top. Raises LabError."""
    archive = source.archive or _download(directory, steps)
    steps.run("unpacking the source", ["tar", "-xf", str(archive), "-C", str(directory)])
    tree = directory / PACKAGE
    steps.run("applying the patch", ["patch", "-p1", "--batch", "-i", str(PATCH)], tree)
    return tree


def _download(directory: Path, steps: Steps) -> Path:
    steps.run(f"downloading {PACKAGE}", ["apt-get", "-q", "download", PACKAGE], directory)
    package = next(directory.glob("*.deb"))
    steps.run("opening the package", ["dpkg-deb", "-x", str(package), str(directory)])
    package.unlink()
    return directory / ARCHIVE


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    with contextlib.suppress(subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True).stdout
    return ""
