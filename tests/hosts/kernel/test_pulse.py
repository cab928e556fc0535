"""Whether a guest moves, from samples of it."""

from __future__ import annotations

import pytest

from testbed.hosts.kernel.pulse import Pulse


def beat(
    pulse: Pulse,
    now: float,
    completions: int,
    *,
    touches: int = 0,
    waiting: int = 8,
    pswpout: int = 1,
    cpu_s: float = 0.0,
) -> None:
    counters = {"swap_completions": completions, "touches": touches, "tasks_waiting": waiting, "pswpout": pswpout}
    pulse.beat(now, counters, cpu_s)


def test_the_longest_gap_counts_only_while_tasks_wait() -> None:
    pulse = Pulse()
    for now, completions, waiting in [(0, 1, 8), (1, 1, 8), (2, 2, 8), (2.5, 2, 8), (3, 2, 0), (60, 2, 0), (61, 2, 8)]:
        beat(pulse, now, completions, waiting=waiting)
    assert pulse.max_gap_s == 1.0


def test_to_fill_memory_is_no_gap() -> None:
    pulse = Pulse()
    for now, completions, pswpout in [(0, 3, 0), (12, 3, 0), (13, 3, 32), (14.5, 4, 32)]:
        beat(pulse, now, completions, pswpout=pswpout)
    assert pulse.max_gap_s == 1.0


def test_a_touch_is_a_move_but_ends_no_gap() -> None:
    pulse = Pulse()
    beat(pulse, 0, 1)
    beat(pulse, 1, 1, touches=5)
    beat(pulse, 2, 1, touches=5)
    assert (pulse.moved, pulse.max_gap_s) == (1, 2)


@pytest.mark.parametrize(("rate", "verb"), [(1.0, "spins"), (0.5, "works on and off"), (0.01, "sleeps")])
def test_what_its_kernel_does(rate: float, verb: str) -> None:
    pulse = Pulse()
    for second in range(20):
        beat(pulse, second, 1, cpu_s=rate * second if second > 10 else second)
    assert verb in pulse.activity()
