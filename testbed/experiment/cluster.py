"""Runs on the machines of a dask.distributed cluster.

Each run is a process of its own there (`testbed.experiment.apart`): it makes network namespaces and sets signal
handlers, which a thread of a worker must not. How many a worker makes at a time is its number of threads. A run's
directory is where the worker sees that path, and a run that is under way when all is interrupted goes on to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic

from testbed.experiment.apart import attempt_apart
from testbed.experiment.errors import CannotRun
from testbed.experiment.execution import Job, Key
from testbed.experiment.result import Result

CONNECT_TIMEOUT_S = 10


class Cluster(Generic[Key]):
    """Runs on the cluster whose scheduler is at `address`. Raises CannotRun if there is none."""

    def __init__(self, job_for: Callable[[Key], Job], address: Any) -> None:
        try:
            from distributed import Client
            from distributed.comm import get_address_host_port
        except ImportError:
            raise CannotRun("--cluster needs dask.distributed: pip install 'swap-testbed[cluster]'") from None
        self._job_for = job_for
        try:
            if isinstance(address, str):
                get_address_host_port(address)  # a client of a malformed one takes 20 s to go, and not in silence
            self._client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise CannotRun(f"no cluster at {address}: {error}") from None

    def __call__(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Result]]:
        from distributed import as_completed

        started = {self._client.submit(attempt_apart, self._job_for(key), pure=False): key for key in keys}
        for future in as_completed(started, loop=self._client.loop):
            yield started[future], future.result()

    def __enter__(self) -> Cluster[Key]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
