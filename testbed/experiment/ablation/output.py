"""The directory of an ablation: `runs.jsonl` grows by a line for each run, `ablate.json` has what came out.

Each run has a directory of its own below `runs`, as `testbed run` makes it. Under sudo all belongs to the caller.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

import msgspec

from testbed.experiment.ablation.rows import name
from testbed.experiment.ablation.study import Ablation
from testbed.experiment.ablation.trials import Key, Trial
from testbed.experiment.errors import CannotRun
from testbed.experiment.output import first_missing, give_away
from testbed.patches import PATCHES

RESULT, RUNS = "ablate.json", "runs.jsonl"


class AblationDirectory:
    """An open directory; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = first_missing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._runs = (path / RUNS).open("xb")
        except FileExistsError:
            raise CannotRun(f"{path} holds an ablation already: choose another --out") from None
        except OSError as error:
            raise CannotRun(f"cannot write to {path}: {error.strerror or error}") from None
        give_away(path, self._made)

    @classmethod
    def create(cls, topology: str, out: Path | None) -> AblationDirectory:
        """Make the directory `out`, or else `runs/NAME-ablate-TIME-PID` here. Raises CannotRun."""
        stamp = f"{topology}-ablate-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        return cls((out or Path("runs") / stamp).absolute())

    def for_run(self, key: Key) -> Path:
        """Where a run goes."""
        patches, seed = key
        words = name(sorted(frozenset(PATCHES) - patches)).replace(",", "").replace(" ", "-")
        return self.path / "runs" / f"{words}-seed-{seed}"

    def record(self, trial: Trial) -> None:
        """Write down a run that has ended."""
        self._runs.write(msgspec.json.encode(trial) + b"\n")
        self._runs.flush()

    def finish(self, ablation: Ablation) -> None:
        """Write `ablate.json`."""
        (self.path / RESULT).write_bytes(encode(ablation))

    def __enter__(self) -> AblationDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runs.close()
        give_away(self.path, self._made)


def encode(ablation: Ablation) -> bytes:
    """`ablate.json` as bytes."""
    return msgspec.json.format(msgspec.json.encode(ablation), indent=2) + b"\n"
