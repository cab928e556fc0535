"""How the runs of an ablation are made: one after the other, or by several processes.

A run that breaks down gives a result with the outcome `error`, so that one of a hundred does not end them all.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType

from testbed.experiment.ablation.trials import Key
from testbed.experiment.arguments import RunOptions
from testbed.experiment.command import run_once, simulate_once
from testbed.experiment.errors import CannotRun
from testbed.experiment.live import NoView
from testbed.experiment.result import Result
from testbed.experiment.topology import Topology, TopologyError
from testbed.lab.errors import LabError

RunOnce = Callable[[Topology, RunOptions], Result]
"""Makes one run. May raise CannotRun, LabError, TopologyError."""
OptionsFor = Callable[[Key], RunOptions]


def on_real_sockets(topology: Topology, options: RunOptions) -> Result:
    """One run, without a picture of its own. Raises CannotRun, LabError, TopologyError."""
    return run_once(topology, options, NoView())


def on_virtual_time(topology: Topology, options: RunOptions) -> Result:
    """One run that needs nothing but a processor. Raises CannotRun, LabError, TopologyError."""
    return simulate_once(topology, options, NoView())


def attempt(run_once: RunOnce, topology: Topology, options: RunOptions) -> Result:
    """The result of a run, also if it could not be made."""
    try:
        return run_once(topology, options)
    except (CannotRun, LabError, TopologyError) as error:
        return Result(
            outcome="error",
            patches=sorted(options.patches),
            seed=options.seed,
            arguments=options.as_arguments(),
            topology=topology.name,
            error=str(error),
        )


class OneByOne:
    """Runs that follow each other in this process; `starting` is told of each before it starts."""

    def __init__(
        self, run_once: RunOnce, topology: Topology, options_for: OptionsFor, starting: Callable[[Key], None]
    ) -> None:
        self._run_once = run_once
        self._topology = topology
        self._options_for = options_for
        self._starting = starting

    def __call__(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Result]]:
        for key in keys:
            self._starting(key)
            yield key, attempt(self._run_once, self._topology, self._options_for(key))

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Workers:
    """Runs in `jobs` processes, for runs that need nothing of this machine but its processors.

    Ctrl-C is for the parent alone: workers end the run they are at, and get no other.
    """

    def __init__(self, run_once: RunOnce, topology: Topology, options_for: OptionsFor, jobs: int | None) -> None:
        self._run_once = run_once
        self._topology = topology
        self._options_for = options_for
        self._pool = ProcessPoolExecutor(jobs or os.cpu_count(), get_context("forkserver"), _ignore_interrupts)

    def __call__(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Result]]:
        started = {
            self._pool.submit(attempt, self._run_once, self._topology, self._options_for(key)): key for key in keys
        }
        try:
            for future in as_completed(started):
                yield started[future], future.result()
        except BrokenProcessPool:
            raise CannotRun("a worker process was killed: is there enough memory for so many --jobs?") from None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
