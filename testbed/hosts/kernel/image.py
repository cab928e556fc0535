"""One User Mode Linux kernel on this machine, and what it says about itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError

ABOUT = "about.json"
"""Beside a kernel that we built: what it was made from (`recipe.Recipe.about`)."""
MODULES = Path("/usr/lib/uml/modules")
"""Where Debian's package has its modules, a directory for each version."""
SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel: its program, the modules it needs if it has any, and what sets it apart from others.

    `changes` says in lines for people what was changed in the source; none for a packaged kernel.
    """

    path: Path
    version: str
    config_hash: str
    slab: SlabAllocator
    changes: tuple[str, ...]
    modules: Path | None
    built: bool

    def identity(self, boot_parameters: tuple[str, ...] = ()) -> dict[str, Any]:
        """What a result says about the kernel that it came from."""
        return {
            "version": self.version,
            "config_hash": self.config_hash,
            "slab": self.slab,
            "built": self.built,
            "changes": list(self.changes),
            "boot_parameters": list(boot_parameters),
            "path": str(self.path),
        }


def identify(path: Path) -> KernelImage:
    """Ask a kernel for its version and configuration, without booting it. Raises LabError if it is none."""
    version = _ask(path, "--version").strip()
    config = _ask(path, "--showconfig")
    about = path.with_name(ABOUT)
    changes = json.loads(about.read_text())["changes"] if about.exists() else ()
    modules = MODULES / version
    return KernelImage(
        path=path,
        version=version,
        config_hash=hashlib.sha256(config.encode()).hexdigest(),
        slab="slab" if "CONFIG_SLAB=y" in config.splitlines() else "slub",
        changes=tuple(changes),
        modules=modules if modules.is_dir() else None,
        built=about.exists(),
    )


def _ask(path: Path, option: str) -> str:
    try:
        return subprocess.run(
            [path, option], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"{path} is not a User Mode Linux kernel that runs here: {error}") from None
