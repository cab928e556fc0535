"""What a guest says, and how fresh that is. No kernel is needed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from testbed.hosts.kernel.guest import Guest
from testbed.hosts.kernel.records import Record


class Saying(Guest):
    """A guest whose samplers say these things, one each time it is listened to."""

    def __init__(self, sources: Iterable[str]) -> None:
        self.said = Counter()
        self.sources = list(sources)

    def pump(self, seconds: float, *others: Any) -> list[Record]:
        if self.sources:
            self.said[self.sources.pop(0)] += 1
        else:
            time.sleep(seconds)
        return []


ROUND = ("dev", "rx_missed_errors", "rx_dropped", "vmstat", "netstat")


def test_counters_are_fresh_when_both_samplers_have_ended_a_second_round() -> None:
    guest = Saying(["rx_dropped", "netstat", *ROUND, *ROUND, "dev"])
    guest.refresh(60.0)
    assert guest.sources == ["vmstat", "netstat", "dev"]


def test_a_sampler_that_is_stuck_is_not_waited_for_for_ever() -> None:
    guest = Saying(("dev", "rx_dropped") * 3)
    started = time.monotonic()
    guest.refresh(0.3)
    assert 0.2 < time.monotonic() - started < 5
    assert guest.sources == []
