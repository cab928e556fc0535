"""The directory of an ablation: that of its runs, and `ablate.json`, which has what came out."""

from __future__ import annotations

import os
import time
from pathlib import Path

from testbed.experiment.ablation.rows import name
from testbed.experiment.ablation.study import Ablation
from testbed.experiment.ablation.trials import Key
from testbed.experiment.many_runs import ManyRunsDirectory, as_file
from testbed.patches import PATCHES

RESULT = "ablate.json"


class AblationDirectory(ManyRunsDirectory):
    """An open directory; use it as a context manager."""

    @classmethod
    def create(cls, topology: str, out: Path | None) -> AblationDirectory:
        """Make the directory `out`, or else `runs/NAME-ablate-TIME-PID` here. Raises CannotRun."""
        stamp = f"{topology}-ablate-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        return cls((out or Path("runs") / stamp).absolute(), "an ablation")

    def for_key(self, key: Key, host: str = "") -> Path:
        """Where a run goes; `host` sets apart those that are made beside."""
        patches, seed = key
        words = name(sorted(frozenset(PATCHES) - patches)).replace(",", "").replace(" ", "-")
        return self.for_run("-".join(filter(None, (host, words, "seed", str(seed)))))

    def finish(self, ablation: Ablation) -> None:
        """Write `ablate.json`."""
        (self.path / RESULT).write_bytes(as_file(ablation))
