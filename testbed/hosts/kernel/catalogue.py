"""Which User Mode Linux kernels are there: the packaged one and those that `testbed kernel build` made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from testbed.hosts.kernel.image import ABOUT, KernelImage, identify
from testbed.hosts.kernel.recipe import is_current
from testbed.hosts.kernel.switches import boot_parameters
from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError
from testbed.patches import PATCHES

PACKAGED = "linux.uml"
"""The program of Debian's package user-mode-linux."""
KERNEL = "linux"
"""The program in a built kernel's directory."""


def cache_directory() -> Path:
    """Where built kernels are, a directory for each (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "testbed" / "kernels"


def images() -> list[KernelImage]:
    """Every kernel that can be used: those built with this version's patch and configuration, then the packaged one."""
    built = [
        identify(about.with_name(KERNEL)) for about in sorted(cache_directory().glob(f"*/{ABOUT}")) if is_current(about)
    ]
    packaged = shutil.which(PACKAGED)
    return built + ([identify(Path(packaged))] if packaged else [])


def choose(slab: SlabAllocator, patches: frozenset[int]) -> tuple[KernelImage, tuple[str, ...]]:
    """The best kernel with this slab allocator, and the boot parameters that undo the patches not in `patches`.

    A built kernel is better than the packaged one, which has no such parameters.

    Raises:
        LabError: there is none, or a patch is off that none can undo; says how to get one, or why.
    """
    parameters = boot_parameters(patches, slab)
    found = images()
    if not found:
        raise LabError("there is no User Mode Linux kernel here: apt install user-mode-linux, or testbed kernel build")
    suitable = sorted((image for image in found if image.slab == slab), key=lambda image: not image.built)
    if not suitable:
        raise LabError(f"no kernel with {slab.upper()} is here: testbed kernel build --slab {slab}")
    image = suitable[0]
    if image.built:
        return image, parameters
    if off := sorted(frozenset(PATCHES) - patches):
        raise LabError(f"the packaged kernel cannot undo patch {off[0]}: testbed kernel build --slab {slab}")
    return image, ()
