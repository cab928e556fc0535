"""One run in a process of its own, from any thread of any process: the job goes in by a pipe, the result comes out."""

from __future__ import annotations

import pickle
import subprocess
import sys

from testbed.experiment.execution import Job, attempt
from testbed.experiment.result import Result, decode, encode


def attempt_apart(job: Job) -> Result:
    """The result of a run, also if its process was killed."""
    _, topology, options = job
    command = [sys.executable, "-m", "testbed.experiment.apart"]
    made = subprocess.run(command, input=pickle.dumps(job), capture_output=True, check=False)
    if made.returncode == 0:
        return decode(made.stdout)
    lines = made.stderr.decode(errors="replace").splitlines() or [f"it ended with status {made.returncode}"]
    return Result(outcome="error", topology=topology.name, seed=options.seed, error=f"the run's process: {lines[-1]}")


def main() -> None:
    """Make the run that standard input describes."""
    job: Job = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(encode(attempt(*job)))


if __name__ == "__main__":
    main()
