"""The guest's init, compiled from guest/*.c: one static program, kept under a name that tells what it was made from."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from testbed.lab.errors import LabError

SOURCES = Path(__file__).parent / "guest"
COMPILERS = ("gcc", "cc", "clang")
OPTIONS = ("-O2", "-static", "-Wall")


def cache() -> Path:
    """Where such programs are kept: $XDG_CACHE_HOME/testbed/guest."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testbed" / "guest"


def compiler() -> str:
    """The path of a C compiler. Raises LabError."""
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        raise LabError("a kernel host needs a C compiler for the program in its guest: apt install gcc libc6-dev")
    return found


def guest_program(directory: Path | None = None) -> Path:
    """The program, compiled now if it is not in `directory` (default: the cache). Raises LabError."""
    directory = directory or cache()
    sources = sorted(SOURCES.glob("*.[ch]"))
    digest = hashlib.sha256(b"\0".join([" ".join(OPTIONS).encode(), *(each.read_bytes() for each in sources)]))
    program = directory / f"init-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    found = compiler()
    partial = program.with_suffix(f".{os.getpid()}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        command = [found, *OPTIONS, "-o", str(partial), *(str(each) for each in sources if each.suffix == ".c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LabError(f"cannot compile the guest's program in {directory}: {error.strerror or error}") from error
    if done.returncode:
        why = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise LabError(f"{found} cannot compile the guest's program: {why[0]} (is libc6-dev installed?)")
    partial.rename(program)
    return program
