"""A third-party program inside a namespace: its output in a file, its life tied to ours.

The kernel kills the program when the thread that started it ends (PR_SET_PDEATHSIG survives exec, except of setuid
programs). Helpers it starts are not tied to us by the kernel; they share its process group, which `stop()` ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from testbed.lab.errors import LabError
from testbed.lab.linux import die_with_parent
from testbed.lab.namespace import NetworkNamespace


class Program:
    """A running program; `output` is the file with what it prints (standard output and error together)."""

    def __init__(self, process: subprocess.Popen[bytes], argv: Sequence[str], output: Path) -> None:
        self._process = process
        self.argv = tuple(argv)
        self.output = output

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exitcode(self) -> int | None:
        """The exit status; minus the signal's number if one ended it; None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """The last line it printed, for an error message; empty when it said nothing."""
        with contextlib.suppress(OSError):
            lines = self.output.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def stop(self, grace_s: float = 2.0) -> int:
        """SIGTERM to the program's process group, SIGKILL after `grace_s` seconds; the exit status."""
        if self.alive:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self._signal(signal.SIGKILL)
        return self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def run_program(
    argv: Sequence[str],
    namespace: NetworkNamespace,
    *,
    output: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Program:
    """Start a program in a namespace, in a process group of its own, with no standard input.

    Raises LabError when there is no such program or it cannot be started; whether it *works* is for the caller to
    ask (connect to it, look at `alive`).
    """
    program = shutil.which(argv[0])
    if program is None:
        raise LabError(f"there is no program {argv[0]!r} on PATH: install it")
    parent = os.getpid()

    def in_child() -> None:
        namespace.join()
        die_with_parent(parent)

    try:
        with output.open("ab") as log:
            process = subprocess.Popen(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=None if environment is None else dict(environment),
                cwd=directory,
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - two system calls, made ready before the fork
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"cannot start {argv[0]}: {error}") from error
    return Program(process, argv, output)
