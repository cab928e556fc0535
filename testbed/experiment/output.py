"""The directory of a run: what happened, as it happens, and the result at the end.

`events.jsonl`, `counters.jsonl` and `ledger.jsonl` grow by one JSON object a line; `result.json` appears whole or not
at all. `proc-HOST.txt` is what a model's /proc said at the end. Under sudo everything belongs to the user who called
it. A run that ends with a one-line error, before it has a result, takes its directory away again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from testbed.experiment.errors import CannotRun
from testbed.experiment.result import Result, encode
from testbed.experiment.topology import TopologyError
from testbed.hosts.messages import Event, Sample
from testbed.lab.errors import LabError

STREAMS = ("events.jsonl", "counters.jsonl", "ledger.jsonl")
RESULT = "result.json"


class RunDirectory:
    """An open run directory; use it as a context manager."""

    def __init__(self, path: Path, made: Path | None) -> None:
        self.path = path
        self._made = made
        self._files: dict[str, BinaryIO] = {}

    @classmethod
    def create(cls, name: str, out: Path | None = None) -> RunDirectory:
        """Make the directory `out`, or else `runs/NAME-TIME-PID` here. Raises CannotRun.

        `out` may exist, but not hold another run.
        """
        path = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        path = path.absolute()
        made = first_missing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if taken := [name for name in (*STREAMS, RESULT) if (path / name).exists()]:
                raise CannotRun(f"{path} holds a run already ({taken[0]}): choose another --out")
            self = cls(path, made)
            for stream in STREAMS:
                self._files[stream] = (path / stream).open("xb")
        except OSError as error:
            raise CannotRun(f"cannot write to {path}: {error.strerror or error}") from None
        give_away(self.path, self._made)
        return self

    def event(self, event: Event) -> None:
        """Record something that happened once."""
        line = {"time": event.time, "host": event.host, "name": event.name, "fields": event.fields}
        self._append("events.jsonl", [line])

    def sample(self, sample: Sample) -> None:
        """Record all counters of a host at one moment."""
        self._append("counters.jsonl", [{"time": sample.time, "host": sample.host, "counters": sample.counters}])

    def ledger(self, host: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record where frames ended."""
        self._append("ledger.jsonl", [{"host": host, **row} for row in rows])

    def proc(self, host: str, files: Mapping[str, str]) -> None:
        """Record what /proc said at the end, each file under its name, if the host has such files."""
        if files:
            texts = [f"==> /proc/{name} <==\n{text}" for name, text in files.items()]
            try:
                self.file(f"proc-{host}.txt").write_text("\n".join(texts))
            except OSError as error:
                raise self._unwritable(error) from None

    def file(self, name: str) -> Path:
        """The path for another file of this run, such as the output of a program."""
        return self.path / name

    def finish(self, result: Result) -> Path:
        """Write `result.json`, whole; returns its path. Raises CannotRun."""
        temporary = self.path / f".{RESULT}.{os.getpid()}"
        try:
            with temporary.open("wb") as file:
                file.write(encode(result))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path / RESULT)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from None
        give_away(self.path, self._made)
        return self.path / RESULT

    def discard(self) -> None:
        """Take away what this run wrote, and the directories it made."""
        self._close()
        written = (self.path.glob(pattern) for pattern in ("capture-*.pcapng", "proc-*.txt"))
        for file in [*(self.path / name for name in STREAMS), *chain.from_iterable(written)]:
            file.unlink(missing_ok=True)
        if self._made is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            for directory in self.path.parents:
                if len(directory.parts) < len(self._made.parts):
                    break
                with contextlib.suppress(OSError):
                    directory.rmdir()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (CannotRun, LabError, TopologyError)) and not (self.path / RESULT).exists():
            self.discard()
        else:
            self._close()
            give_away(self.path, self._made)

    def _append(self, stream: str, lines: Iterable[Mapping[str, Any]]) -> None:
        file = self._files[stream]
        try:
            file.writelines(msgspec.json.encode(line, enc_hook=_plain) + b"\n" for line in lines)
            file.flush()
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> CannotRun:
        return CannotRun(f"cannot write to {self.path}: {error.strerror or error}")

    def _close(self) -> None:
        """All has been written already, except what could not be."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()


def first_missing(path: Path) -> Path | None:
    """The topmost directory that must be made for `path` to be there; None if it is there."""
    return next((each for each in [*reversed(path.parents), path] if not each.exists()), None)


def give_away(path: Path, made: Path | None) -> None:
    """Hand what is in `path`, and the directories from `made` down to it, to the user behind sudo."""
    try:
        owner = int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    except (KeyError, ValueError):
        return
    mine = list(path.iterdir())
    if made is not None:
        mine += [each for each in (path, *path.parents) if len(each.parts) >= len(made.parts)]
    for each in mine:
        with contextlib.suppress(OSError):
            os.chown(each, *owner, follow_symlinks=False)


def _plain(value: Any) -> Any:
    """A numpy scalar as a number, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
