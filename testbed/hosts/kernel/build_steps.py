"""The steps of a build: programs that run one after another, and what is shown meanwhile.

On a terminal a bar; elsewhere a line for each step and for every quarter of a long one.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from testbed.lab.errors import LabError

_WORK = re.compile(r"  [A-Z]+ +\S")
"""What make prints for each file that it makes."""
_TROUBLE = re.compile(r"error|\*\*\*|FAILED|No space|unable", re.IGNORECASE)
QUARTERS = 4


class Steps:
    """Runs programs, shows how far they are, and ends them with all that they started if it is interrupted."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> Steps:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def run(
        self,
        what: str,
        command: Sequence[str],
        directory: Path | None = None,
        *,
        total: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run a program to its end; `total` is about how many files it makes, None for a short one.

        Raises LabError with the line that says why, if it failed.
        """
        trouble = ""
        with self._shown(what, total) as advance, _group(command, directory, environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if _WORK.match(line):
                    advance()
                elif _TROUBLE.search(line):
                    trouble = trouble or line.strip()
            status = process.wait()
        if status:
            raise LabError(f"{what} failed: {trouble or f'{command[0]} ended with status {status}'}")

    @contextlib.contextmanager
    def _shown(self, what: str, total: int | None) -> Iterator[_Advance]:
        advance = _Advance(what, total, self._console, self._progress)
        yield advance
        advance.done()


class _Advance:
    """One step on the display."""

    def __init__(self, what: str, total: int | None, console: Console, progress: Progress | None) -> None:
        self._what, self._total, self._console, self._progress = what, total, console, progress
        self._count = 0
        if progress:
            self._task = progress.add_task(what, total=total)
        else:
            console.print(what, highlight=False)

    def __call__(self) -> None:
        """One file more."""
        self._count += 1
        if self._progress:
            self._progress.advance(self._task)
        elif self._total and self._count * QUARTERS % self._total < QUARTERS and self._count < self._total:
            self._console.print(f"{self._what}: {self._count} of about {self._total} files", highlight=False)

    def done(self) -> None:
        """The step is over."""
        if self._progress:
            self._progress.update(self._task, total=self._count or 1, completed=self._count or 1)


@contextlib.contextmanager
def _group(
    command: Sequence[str], directory: Path | None, environment: Mapping[str, str] | None
) -> Iterator[subprocess.Popen[str]]:
    """A program in a process group of its own, which has ended when this does.

    It starts with a line from us, given when there is no way out any more but past its end: an interruption in the
    middle of starting it closes the pipe instead.
    """
    with subprocess.Popen(
        ["sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh", *command],
        cwd=directory,
        env=None if environment is None else {**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            assert process.stdin is not None
            with process.stdin as line:
                line.write("\n")
            yield process
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
