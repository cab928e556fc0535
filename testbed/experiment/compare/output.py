"""The directory of a comparison: that of its runs, `compare.json`, and what was asked for, so that it can be resumed.

A directory that holds the same request is gone on with: what has been run is not run again. Runs that broke down are.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from testbed.experiment.compare.comparison import Comparison
from testbed.experiment.compare.runs import Host, Key, Run
from testbed.experiment.errors import CannotRun
from testbed.experiment.many_runs import RUNS, ManyRunsDirectory, as_file

REQUEST, RESULT = "request.json", "compare.json"


class Request(msgspec.Struct, frozen=True):
    """What must be the same for runs to belong together. `common` is what no cell says for itself."""

    topology: str
    hosts: list[Host]
    seed: int
    common: dict[str, Any]


class CompareDirectory(ManyRunsDirectory):
    """An open directory; use it as a context manager. `runs` are the runs that it holds already."""

    def __init__(self, path: Path, request: Request) -> None:
        before = stored_request(path)
        if before not in (None, request):
            raise CannotRun(f"{path} holds another comparison: choose another --out, or ask for the same")
        super().__init__(path, "other runs", "xb" if before is None else "ab")
        (path / REQUEST).write_bytes(as_file(request))
        self.runs = _read(path / RUNS)
        self._runs.truncate(0)
        for run in self.runs:
            self.record(run)

    @classmethod
    def create(cls, request: Request, out: Path | None) -> CompareDirectory:
        """Make or open the directory `out`, or else make `runs/NAME-compare-TIME-PID` here. Raises CannotRun."""
        stamp = f"{request.topology}-compare-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        return cls((out or Path("runs") / stamp).absolute(), request)

    def for_key(self, key: Key) -> Path:
        """Where a run goes; what an earlier attempt at it left there is removed."""
        directory = self.for_run(f"{key.cell}-{key.host}-{key.repetition}")
        shutil.rmtree(directory, ignore_errors=True)
        return directory

    def finish(self, comparison: Comparison) -> None:
        """Write `compare.json`."""
        (self.path / RESULT).write_bytes(as_file(comparison))


def stored_request(path: Path) -> Request | None:
    """What the comparison in this directory was asked for; None if there is none. Raises CannotRun."""
    try:
        return msgspec.json.decode((path / REQUEST).read_bytes(), type=Request)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CannotRun(f"{path / REQUEST}: {error}") from None


def _read(path: Path) -> list[Run]:
    """The runs that are written down there, but for a line that was cut off and for runs that broke down."""
    runs = {}
    for line in path.read_bytes().splitlines():
        try:
            found = msgspec.json.decode(line, type=Run)
        except msgspec.DecodeError:
            continue
        if found.outcome != "error":
            runs[found.key] = found
    return list(runs.values())
