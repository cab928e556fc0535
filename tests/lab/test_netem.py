"""The kernel's netem and the relay's own effects do the same to frames, as far as both can; and netem is told rightly.

What both do is compared by its statistics, which takes a kernel that has sch_netem: where this one has not,
test_netem_in_uml.py has another one run these very tests.
"""

from __future__ import annotations

import math
import statistics
import struct
import time
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from testbed.hosts.messages import Sample
from testbed.lab.effects import numbers_of
from testbed.lab.netem import attribute, missing_netem, netem_options, normal_table
from testbed.lab.rtnetlink import attributes
from tests.lab.conftest import Lab
from tests.lab.helpers import eventually
from tests.lab.test_fault_relay import RelayedLink
from tests.lab.test_packet_ring import frame

pytestmark = pytest.mark.root
COUNT = 1000
SIZE = 200
AT_ONCE, PAUSE_S = 8, 0.002
"""Frames in a row, and the pause after them that lets a slow machine keep up; a rate is measured by what comes all at
once."""
TOLERANCE_S = 0.1
"""A machine with other things to do is late, and a median is what suffers least from it."""
netem_missing = cache(missing_netem)


@pytest.fixture
def netem() -> None:
    """Skips where the kernel has no netem."""
    if reason := netem_missing():
        pytest.skip(reason)


def told(kind: str, **arguments: Any) -> tuple[tuple[int, ...], dict[int, bytes]]:
    """What netem would be told of one fault: `struct tc_netem_qopt`, and its attributes."""
    message = netem_options([numbers_of(kind, arguments)]).encoded()
    return struct.unpack_from("=6I", message), attributes(message[24:])


HALF = round(0.5 * 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("kind", "arguments", "header", "expected"),
    [
        ("loss", {"probability": 0.5}, (0, 100_000, HALF, 0, 0, 0), {}),
        ("partition", {}, (0, 100_000, 0xFFFFFFFF, 0, 0, 0), {}),
        ("duplicate", {"probability": 0.5}, (0, 100_000, 0, 0, HALF, 0), {}),
        (
            *("delay", {"seconds": 0.25, "jitter": 1e-6}, (0, 100_000, 0, 0, 0, 0)),
            {10: struct.pack("=q", 250_000_000), 11: struct.pack("=q", 1000)},
        ),
        (
            *("reorder", {"seconds": 0.001, "probability": 0.5, "gap": 5}, (0, 100_000, 0, 5, 0, 0)),
            {3: struct.pack("=II", HALF, 0), 10: struct.pack("=q", 1_000_000)},
        ),
        ("corrupt", {"probability": 0.5}, (0, 100_000, 0, 0, 0, 0), {4: struct.pack("=II", HALF, 0)}),
        (
            *("burst_loss", {"p": 0.5, "r": 1, "loss_in_bad": 0.5, "loss_in_good": 0}, (0, 100_000, 0, 0, 0, 0)),
            {5: attribute(2, struct.pack("=4I", HALF, 0xFFFFFFFF, HALF, 0))},
        ),
        (
            *("rate", {"bytes_per_second": 5e9, "queue": 15140}, (0, 10, 0, 0, 0, 0)),
            {6: struct.pack("=IiIi", 0xFFFFFFFF, 0, 0, 0), 8: struct.pack("=Q", 5_000_000_000)},
        ),
    ],
)
def test_each_fault_becomes_the_parameter_that_netem_has_for_it(
    kind: str, arguments: dict[str, Any], header: tuple[int, ...], expected: dict[int, bytes]
) -> None:
    assert told(kind, **arguments) == (header, expected)


def test_faults_share_one_netem() -> None:
    faults = [numbers_of("loss", {"probability": 0.5}), numbers_of("delay", {"seconds": 1.0})]
    options = netem_options(faults)
    assert options.loss == HALF
    assert set(options.attributes) == {10, 11}


@pytest.mark.parametrize(
    ("faults", "complaint"),
    [
        ([("every_nth", {"n": 3})], "netem has no EveryNth, only Delay, Rate"),
        ([("flap", {"period": 1})], "netem has no Flap"),
        ([("loss", {"probability": 0.1}), ("partition", {})], "one loss, which Loss has taken from Partition"),
        ([("delay", {"seconds": 1}), ("reorder", {"seconds": 1, "probability": 0.1})], "one delay"),
        ([("corrupt", {"probability": 0.1, "bits": 2})], "flips one bit"),
        ([("delay", {"seconds": 1, "jitter": 0.1, "keep_order": True})], "leave keep_order to the relay"),
    ],
)
def test_what_netem_lacks_is_refused_in_one_line(faults: list[tuple[str, dict[str, Any]]], complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        netem_options(numbers_of(*fault) for fault in faults)
    assert complaint in str(refused.value)


def test_the_normal_table_is_normal() -> None:
    quantiles = [value / 8192 for (value,) in struct.iter_unpack("=h", normal_table())]
    assert abs(statistics.fmean(quantiles)) < 1e-3
    assert statistics.pstdev(quantiles) == pytest.approx(1.0, rel=0.01)
    assert quantiles == sorted(quantiles)


class Arrivals:
    """What came of frames 0 to COUNT - 1 through a link with one fault: those that arrived as they were, in order."""

    def __init__(self, link: RelayedLink, kind: str, arguments: dict[str, Any]) -> None:
        link.set(1, kind, direction="from", **arguments)
        with link.sender(link.host) as sender, link.ring(link.peer) as ring:
            sent_at: list[float] = []
            for first in range(0, COUNT, AT_ONCE):
                numbers = range(first, first + AT_ONCE)
                sent_at += [time.time()] * AT_ONCE
                sender.send_bytes([frame(number, SIZE) for number in numbers])
                if kind != "rate":
                    time.sleep(PAUSE_S)
            eventually(lambda: latest(link)["from_taken"] == COUNT and latest(link)["from_held"] == 0, 60.0, "the end")
            self.report = link.finish()["from"]
            self.arrived = 0
            self.seen: list[tuple[int, float]] = []
            self.elapsed = 0.0
            while (block := ring.ready(256)) is not None:
                self.arrived += block.count
                self.elapsed = block.times[-1] - sent_at[0]
                for index, when in enumerate(block.times.tolist()):
                    whole = bytes(block.frame(index))
                    number = int.from_bytes(whole[14:18])
                    if number < COUNT and whole == frame(number, SIZE):
                        self.seen.append((number, when - sent_at[number]))
                ring.release(block)
        link.relay.close()

    @property
    def lost(self) -> list[int]:
        """Frames that never came."""
        return sorted(set(range(COUNT)) - {number for number, _ in self.seen})

    @property
    def delays(self) -> list[float]:
        """How long each took, seconds."""
        return [delay for _, delay in self.seen]

    @property
    def overtaken(self) -> float:
        """The share of frames that came after one that was sent later."""
        latest = -1
        late = 0
        for number, _ in self.seen:
            late += number < latest
            latest = max(latest, number)
        return late / len(self.seen)


def latest(link: RelayedLink) -> dict[str, int]:
    """The counters in the relay's latest sample."""
    link.said += link.relay.messages()
    samples = [each.counters for each in link.said if isinstance(each, Sample)]
    return samples[-1] if samples else {"from_taken": 0, "from_held": 0}


def both(lab: Lab, kind: str, **arguments: Any) -> tuple[Arrivals, Arrivals]:
    """The same fault by netem and by the relay."""
    return (
        Arrivals(RelayedLink(lab), kind, {**arguments, "netem": True}),
        Arrivals(RelayedLink(lab), kind, arguments),
    )


def share_is(count: int, expected: float) -> bool:
    """Could so many of COUNT be due to chance? Wrongly no once in a million."""
    return abs(count / COUNT - expected) < 5 * math.sqrt(expected * (1 - expected) / COUNT)


def test_loss_agrees(lab: Lab, netem: None) -> None:
    for arrivals in both(lab, "loss", probability=0.1):
        assert share_is(len(arrivals.lost), 0.1)


def test_bursts_agree(lab: Lab, netem: None) -> None:
    for arrivals in both(lab, "burst_loss", p=0.1, r=0.4):
        lost = arrivals.lost
        bursts = 1 + sum(later - earlier > 1 for earlier, later in pairwise(lost))
        assert len(lost) / COUNT == pytest.approx(0.1 / 0.5, rel=0.5)
        assert len(lost) / bursts == pytest.approx(1 / 0.4, rel=0.4)


def test_duplication_agrees(lab: Lab, netem: None) -> None:
    for arrivals in both(lab, "duplicate", probability=0.2):
        assert arrivals.lost == []
        assert share_is(arrivals.arrived - COUNT, 0.2)


def test_corruption_agrees(lab: Lab, netem: None) -> None:
    for arrivals in both(lab, "corrupt", probability=0.2):
        assert arrivals.arrived == COUNT
        assert share_is(len(arrivals.lost), 0.2)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_delays_agree(lab: Lab, netem: None, distribution: str) -> None:
    by_netem, by_relay = both(lab, "delay", seconds=0.5, jitter=0.15, distribution=distribution)
    assert by_netem.lost == by_relay.lost == []
    (low, median, high), (other_low, other_median, other_high) = (
        statistics.quantiles(each.delays, n=4) for each in (by_netem, by_relay)
    )
    assert [median, other_median] == pytest.approx([0.5, 0.5], abs=TOLERANCE_S)
    assert high - low == pytest.approx(other_high - other_low, rel=0.25)
    assert by_netem.overtaken == pytest.approx(by_relay.overtaken, abs=0.1)


def test_reordering_agrees(lab: Lab, netem: None) -> None:
    for arrivals in both(lab, "reorder", seconds=0.2, probability=0.25):
        assert arrivals.lost == []
        assert share_is(sum(delay < 0.1 for delay in arrivals.delays), 0.25)


def test_rates_agree(lab: Lab, netem: None) -> None:
    rate = 100e3
    for arrivals in both(lab, "rate", bytes_per_second=rate, queue=8 << 20):
        assert arrivals.lost == []
        assert arrivals.overtaken == 0
        assert 0.95 <= arrivals.elapsed / (COUNT * SIZE / rate) <= 1.5


def test_a_partition_by_netem_is_accounted_for(lab: Lab, netem: None) -> None:
    arrivals = Arrivals(RelayedLink(lab), "partition", {"netem": True})
    assert arrivals.arrived == 0
    assert arrivals.report["dropped"] == {"netem": COUNT}
