"""How many runs are made: one after the other, or by several processes. What a run is called is the caller's choice.

A run that breaks down gives a result with the outcome `error`, so that one of a hundred does not end them all.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from types import FrameType, TracebackType
from typing import Generic, NoReturn, TypeVar

from testbed.experiment.arguments import RunOptions
from testbed.experiment.command import run_once, simulate_once
from testbed.experiment.errors import CannotRun
from testbed.experiment.live import NoView
from testbed.experiment.result import Result
from testbed.experiment.topology import Topology, TopologyError
from testbed.lab.errors import LabError
from testbed.lab.linux import die_with_parent

Key = TypeVar("Key", bound=Hashable)
RunOnce = Callable[[Topology, RunOptions], Result]
"""Makes one run. May raise CannotRun, LabError, TopologyError."""
Job = tuple[RunOnce, Topology, RunOptions]
"""One run to be made: what `attempt` takes."""


def on_real_sockets(topology: Topology, options: RunOptions) -> Result:
    """One run, without a picture of its own. Raises CannotRun, LabError, TopologyError."""
    return run_once(topology, options, NoView())


def on_virtual_time(topology: Topology, options: RunOptions) -> Result:
    """One run that needs nothing but a processor. Raises CannotRun, LabError, TopologyError.

    Its hosts are as large as their memory, and in cycles: they go before the next run's come.
    """
    try:
        return simulate_once(topology, options, NoView())
    finally:
        gc.collect()


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


class OneByOne(Generic[Key]):
    """Runs that follow each other in this process; `starting` is told of each before it starts."""

    at_once = 1

    def __init__(self, job_for: Callable[[Key], Job], starting: Callable[[Key], None]) -> None:
        self._job_for = job_for
        self._starting = starting

    def __call__(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Result]]:
        for key in keys:
            self._starting(key)
            yield key, attempt(*self._job_for(key))

    def __enter__(self) -> OneByOne[Key]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Workers(Generic[Key]):
    """Runs in `count` processes (None: one for each processor). An interruption ends the runs that are under way.

    The processes are children of the thread that asks for the runs, and die with it.
    """

    def __init__(self, job_for: Callable[[Key], Job], count: int | None) -> None:
        self._job_for = job_for
        self.at_once = count or os.cpu_count() or 1
        self._pool = ProcessPoolExecutor(self.at_once, get_context("spawn"), die_with_parent, (os.getpid(),))

    def __call__(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Result]]:
        with _interrupts_blocked():
            started = {self._pool.submit(_interruptible, self._job_for(key)): key for key in keys}
        try:
            for future in as_completed(started):
                yield started[future], future.result()
        except BrokenProcessPool:
            raise CannotRun("a worker process was killed: is there enough memory for so many at a time?") from None

    def __enter__(self) -> Workers[Key]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for worker in active_children():
                if worker.pid is not None:
                    os.kill(worker.pid, signal.SIGINT)
        self._pool.shutdown(cancel_futures=True)


_interrupted = threading.Event()
"""This worker was. A shell's background job ignores SIGINT from the start, which says nothing."""


def _interruptible(job: Job) -> Result:
    """A run in a worker, which has had interrupts blocked since before it started: the first one ends this run and all
    that would follow, further ones do not disturb how it cleans up.
    """
    if _interrupted.is_set():
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return attempt(*job)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _interrupt_once(number: int, frame: FrameType | None) -> NoReturn:
    _interrupted.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """What starts meanwhile inherits that. An interruption comes at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
