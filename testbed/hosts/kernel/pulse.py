"""Whether a guest moves, seen from outside: how long swap stood still, and whether its kernel spins or sleeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

MOVES = ("swap_completions", "touches")
CPU_WINDOW_S = 5.0
SPINS, SLEEPS = 0.9, 0.1
"""Shares of a processor from which on a kernel is said to spin, and up to which it is said to sleep."""


class Pulse:
    """Fed with counters and CPU time several times a second. All times are in seconds."""

    def __init__(self) -> None:
        self.max_gap_s = 0.0
        """The longest time without a completed swap request while tasks waited, from the first page swapped out on."""
        self.moved: float | None = None
        """When the guest last did anything."""
        self._completions: int | None = None
        self._since = 0.0
        self._state: tuple[int, ...] = ()
        self._cpu: deque[tuple[float, float]] = deque()

    def beat(self, now: float, counters: Mapping[str, int], cpu_s: float) -> None:
        """Take in the counters at `now`, and the CPU time of the guest's kernel so far."""
        state = tuple(counters[name] for name in MOVES)
        if state != self._state:
            self._state, self.moved = state, now
        completions = counters["swap_completions"]
        if completions != self._completions or not (counters["tasks_waiting"] and counters["pswpout"]):
            self._completions, self._since = completions, now
        self.max_gap_s = max(self.max_gap_s, now - self._since)
        self._cpu.append((now, cpu_s))
        while now - self._cpu[0][0] > CPU_WINDOW_S:
            self._cpu.popleft()

    def cpu_share(self) -> float:
        """How much of a processor its kernel has taken lately."""
        (start, before), (end, after) = self._cpu[0], self._cpu[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def activity(self) -> str:
        """What its kernel does, in words."""
        share = self.cpu_share()
        verb = "spins" if share >= SPINS else "sleeps" if share <= SLEEPS else "works on and off"
        return f"its kernel {verb} ({share:.0%} of a processor)"
