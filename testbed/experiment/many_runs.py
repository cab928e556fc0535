"""The directory of many runs: `runs.jsonl` grows by a line for each, and each has a directory of its own below `runs`.

Under sudo all of it belongs to the caller.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
from rich.console import Console
from rich.markup import escape

from testbed.experiment.errors import CannotRun
from testbed.experiment.output import first_missing, give_away

RUNS = "runs.jsonl"


class ManyRunsDirectory:
    """An open directory; use it as a context manager. `mode` "xb" is for a new one, "ab" also goes on with an old one.

    Raises CannotRun; `what` is what it holds, for people.
    """

    def __init__(self, path: Path, what: str, mode: Literal["xb", "ab"] = "xb") -> None:
        self.path = path
        self._made = first_missing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._runs = (path / RUNS).open(mode)
        except FileExistsError:
            if not path.is_dir():
                raise CannotRun(f"cannot write to {path}: {os.strerror(errno.ENOTDIR)}") from None
            raise CannotRun(f"{path} holds {what} already: choose another --out") from None
        except OSError as error:
            raise CannotRun(f"cannot write to {path}: {error.strerror or error}") from None
        give_away(path, self._made)

    def for_run(self, name: str) -> Path:
        """Where the run of this name goes."""
        return self.path / "runs" / name

    def record(self, run: msgspec.Struct) -> None:
        """Write down a run that has ended."""
        self._runs.write(msgspec.json.encode(run) + b"\n")
        self._runs.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runs.close()
        give_away(self.path, self._made)


def publish(
    console: Console, conclusion: msgspec.Struct, directory: str, show: Callable[[], None], *, json: bool
) -> None:
    """Say what came out: as JSON on standard output if asked for, to people by `show`, and where the rest is."""
    if json:
        sys.stdout.buffer.write(as_file(conclusion))
        sys.stdout.flush()
    show()
    console.print(f"everything about it: {escape(directory)}", highlight=False, soft_wrap=True)


def as_file(conclusion: msgspec.Struct) -> bytes:
    """What came out of many runs as the bytes of a JSON file."""
    return msgspec.json.format(msgspec.json.encode(conclusion), indent=2) + b"\n"
