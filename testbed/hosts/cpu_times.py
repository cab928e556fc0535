"""What `time` would say about a workload: elapsed, user and system seconds of an emulated client.

The whole machine is one process here. User time is what the workload itself took, its writes and checks of pages;
all other CPU time of the process, until the last task ended, stands for the kernel's work and is system time. That is
the model and the real frames; waiting for swap is no CPU time. User time is measured at every 64th touch of a task,
less what reading the clock takes, and stands for the others.

A simulation has no CPU time worth telling, since the simulated network runs in the same process: its clock is None.
"""

from __future__ import annotations

from collections.abc import Callable

CpuClock = Callable[[], float]
"""CPU seconds that this process has used so far."""
SAMPLED = 64
"""One touch in so many is timed."""


class CpuTimes:
    """Measures the CPU time of one workload with `clock`, which may be None: then both times are None."""

    def __init__(self, clock: CpuClock | None) -> None:
        self._known = clock is not None
        self._clock = clock or (lambda: 0.0)
        self._sampled_s = 0.0
        self._samples = 0
        self._began = self._reading = self._started = 0.0
        self._ended: float | None = None

    def start(self) -> None:
        """The workload starts."""
        self._started = self._clock()

    def end(self) -> None:
        """Its last task has ended."""
        self._ended = self._clock()

    def touch_begins(self) -> None:
        """A sampled touch begins. Nothing else may run until `touch_ends`."""
        first = self._clock()
        self._began = self._clock()
        self._reading = self._began - first

    def touch_ends(self) -> None:
        """The sampled touch is over."""
        self._sampled_s += self._clock() - self._began - self._reading
        self._samples += 1

    def split(self, touches: int) -> tuple[float | None, float | None]:
        """User and system seconds of a workload of so many touches; None if unknown, or if it has not ended."""
        if not self._known or self._ended is None:
            return None, None
        total = self._ended - self._started
        user = self._sampled_s * touches / self._samples if self._samples else 0.0
        user = min(total, max(0.0, user))
        return user, total - user
