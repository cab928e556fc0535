"""CPU time is divided into user and system, and nothing is made up where it is not known."""

from __future__ import annotations

import pytest

from testbed.hosts.cpu_times import CpuTimes

READING = 2.0


class Clock:
    """CPU time that passes only as the test says, and while the clock is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += READING
        return self.now


def touch(times: CpuTimes, clock: Clock, seconds: float) -> None:
    times.touch_begins()
    clock.now += seconds
    times.touch_ends()


def test_sampled_touches_stand_for_all_and_reading_the_clock_is_no_part_of_them() -> None:
    clock = Clock()
    times = CpuTimes(clock)
    times.start()
    for seconds in (1.0, 3.0):
        touch(times, clock, seconds)
        clock.now += 500
    times.end()
    total = 2 * 500 + 4 + 7 * READING
    assert times.split(100) == (200.0, total - 200)


def test_time_before_the_start_and_after_the_end_does_not_count() -> None:
    clock = Clock()
    times = CpuTimes(clock)
    clock.now += 1000
    times.start()
    clock.now += 10
    times.end()
    clock.now += 1000
    assert times.split(0) == (0.0, 10 + READING)


def test_user_time_is_never_more_than_all_of_it() -> None:
    clock = Clock()
    times = CpuTimes(clock)
    times.start()
    touch(times, clock, 10)
    times.end()
    assert times.split(64) == (10 + 4 * READING, 0.0)


@pytest.mark.parametrize("clock", [None, Clock()])
def test_what_has_not_ended_has_no_times(clock: Clock | None) -> None:
    times = CpuTimes(clock)
    times.start()
    assert times.split(10) == (None, None)


def test_without_a_clock_nothing_is_told() -> None:
    times = CpuTimes(None)
    times.start()
    times.touch_begins()
    times.touch_ends()
    times.end()
    assert times.split(10) == (None, None)
