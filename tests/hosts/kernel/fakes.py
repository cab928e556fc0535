"""Programs for tests that stand in for kernels and for what makes them."""

from __future__ import annotations

from pathlib import Path


def program(path: Path, script: str) -> Path:
    """A shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def kernel(path: Path, slab: str = "slub", version: str = "6.1.0-fake") -> Path:
    """What answers as a kernel with this slab allocator does when it is asked what it is."""
    return program(
        path,
        f'case "$1" in\n--version) echo {version};;\n--showconfig) echo CONFIG_{slab.upper()}=y;;\n*) exit 1;;\nesac',
    )
