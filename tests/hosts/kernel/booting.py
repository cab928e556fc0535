"""A User Mode Linux that boots for a test, does what its init says, and powers itself off."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path


def boot(command: Sequence[str | Path], directory: Path, *, memory: Path, seconds: float) -> str:
    """What a kernel prints until it has powered off; all of it ends with this, however it ends.

    `command` is its image with its parameters, and perhaps a program before that. It keeps its own files in
    `directory`, and its memory in `memory`. Raises subprocess.TimeoutExpired if it is not off after `seconds`.
    """
    guest = subprocess.Popen(
        [*command, "con=null", "con0=null,fd:1", f"uml_dir={directory}/"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(memory)},
        start_new_session=True,
    )
    try:
        return guest.communicate(timeout=seconds)[0]
    finally:
        with guest, contextlib.suppress(ProcessLookupError):
            os.killpg(guest.pid, signal.SIGKILL)
