"""What a kernel is made from, and the name that follows from it in the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed.hosts.plan import SlabAllocator

HERE = Path(__file__).parent
PATCH = HERE / "linux-6.1-testbed.patch"
CONFIGURATION = HERE / "linux-6.1-testbed.config"
CHANGES = (
    "17 switches, on unless a boot parameter testbed.NAME=0 says otherwise; /proc/testbed counts what they do",
    "vector driver: receive buffers from the reserve while a socket is SOCK_MEMALLOC",
    "vector driver: a frame lost for want of a receive buffer counts as rx_missed_errors",
    "page tables: the host is told of changes when a program returns to its own code, not at each page reclaimed",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Versions of the kernel's source package and of the compiler, the slab allocator, and hashes of our two files."""

    source: str
    compiler: str
    slab: SlabAllocator
    patch: str
    configuration: str

    @property
    def name(self) -> str:
        """The directory in the cache: whatever makes another kernel makes another name."""
        return f"{self.slab}-{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]}"

    def about(self) -> dict[str, Any]:
        """The recipe with the lines for people, for the file beside the kernel."""
        return {**asdict(self), "changes": CHANGES}


def recipe(source: str, compiler: str, slab: SlabAllocator) -> Recipe:
    """The recipe with this version's patch and configuration."""
    return Recipe(source, compiler, slab, _hash(PATCH.read_text()), _hash(configuration(slab)))


def configuration(slab: SlabAllocator) -> str:
    """What is set on top of allnoconfig."""
    return f"{CONFIGURATION.read_text()}CONFIG_{slab.upper()}=y\n"


def is_current(about: Path) -> bool:
    """Whether a kernel was made with the patch and configuration that this version has."""
    made = json.loads(about.read_text())
    now = recipe(made["source"], made["compiler"], made["slab"])
    return bool(made["patch"] == now.patch and made["configuration"] == now.configuration)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
