"""An export as slow as a disk still stores what it is given, and takes the time its bandwidth says."""

from __future__ import annotations

import pytest

from testbed.hosts import paced_export
from testbed.hosts.paced_export import PacedExport
from testbed.nbd.export import MemoryExport


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(paced_export, "time", clock)
    return clock


def test_bytes_take_their_time_and_arrive(clock: Clock) -> None:
    export = PacedExport(MemoryExport(1 << 20), 1 << 20)
    for offset in range(0, 1 << 20, 1 << 16):
        place = export.landing(offset, 1 << 16)
        place[:] = bytes([offset >> 16]) * (1 << 16)
        export.commit(offset, place)
    assert clock.now == pytest.approx(101.0, abs=0.002)
    assert bytes(export.read(3 << 16, 4)) == b"\3\3\3\3"
    export.read(0, 1 << 19)
    assert clock.now == pytest.approx(101.5, abs=0.002)


def test_a_disk_that_was_idle_saves_nothing_up(clock: Clock) -> None:
    export = PacedExport(MemoryExport(1 << 20), 1 << 20)
    clock.now += 60.0
    before = clock.now
    export.read(0, 1 << 18)
    assert clock.now - before == pytest.approx(0.25, abs=0.002)
