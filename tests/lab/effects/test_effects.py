"""Each effect by itself: what it promises, exactly where nothing is random, and in its statistics where it is."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise
from typing import Any

import pytest

from testbed.lab.effects import EFFECTS, make
from testbed.lab.effects.headers import parse
from tests.lab.effects.drive import HEADER, lost, stack_of, through, udp_frame

COUNT = 20_000


def within(share: float, expected: float, count: int = COUNT) -> bool:
    """Is the share of `count` independent trials where it should be? Wrong once in a billion."""
    return abs(share - expected) < 6 * math.sqrt(expected * (1 - expected) / count)


def delays(seed: int = 1, **numbers: Any) -> list[float]:
    """How long each of many frames took, sent a second apart."""
    left = through(stack_of(("delay", numbers), seed=seed), map(udp_frame, range(COUNT)), interval=1.0)
    return [when - int.from_bytes(frame[-4:]) for when, frame in left]


def test_a_delay_without_jitter_is_exact() -> None:
    assert set(delays(seconds=0.25)) == {0.25}


def test_uniform_jitter_fills_its_range_evenly() -> None:
    seen = delays(seconds=0.3, jitter=0.1)
    assert 0.2 <= min(seen) < 0.201
    assert 0.399 < max(seen) <= 0.4
    for quarter in range(4):
        edge = 0.2 + 0.05 * quarter
        assert within(sum(edge <= each < edge + 0.05 for each in seen) / COUNT, 0.25)


def test_normal_jitter_has_its_mean_and_deviation() -> None:
    seen = delays(seconds=0.3, jitter=0.05, distribution="normal")
    assert abs(statistics.fmean(seen) - 0.3) < 6 * 0.05 / math.sqrt(COUNT)
    assert abs(statistics.stdev(seen) - 0.05) < 0.05 * 6 / math.sqrt(2 * COUNT)
    assert within(sum(abs(each - 0.3) < 0.05 for each in seen) / COUNT, math.erf(1 / math.sqrt(2)))


def test_no_delay_is_negative() -> None:
    assert min(delays(seconds=0.01, jitter=0.05)) == 0.0


@pytest.mark.parametrize("keep_order", [True, False])
def test_jitter_reorders_unless_told_not_to(keep_order: bool) -> None:
    stack = stack_of(("delay", {"seconds": 0.01, "jitter": 0.01, "keep_order": keep_order}))
    numbers = [int.from_bytes(frame[-4:]) for _, frame in through(stack, map(udp_frame, range(1000)))]
    assert sorted(numbers) == list(range(1000))
    assert (numbers == sorted(numbers)) is keep_order


def test_a_rate_takes_the_time_of_the_bytes_and_its_queue_is_finite() -> None:
    stack = stack_of(("rate", {"bytes_per_second": 10_000, "queue": 500}))
    for number in range(8):
        stack.put(udp_frame(number), 0.0)
    assert stack.due(0.0) == []
    assert stack.drops == {"overlimit": 3}
    assert stack.due(0.0099) == []
    assert stack.due(0.0101) == [udp_frame(0)]
    assert stack.due(0.0501) == [udp_frame(number) for number in range(1, 5)]
    stack.put(udp_frame(9), 1.0)
    assert stack.due(1.0) == []
    assert stack.next_due == pytest.approx(1.01)


@pytest.mark.parametrize("probability", [0.01, 0.3])
def test_random_loss_has_its_share(probability: float) -> None:
    assert within(len(lost(COUNT, "loss", probability=probability)) / COUNT, probability)


@pytest.mark.parametrize("probability", [0, 1])
def test_certain_loss_and_no_loss_are_exact(probability: float) -> None:
    assert len(lost(100, "loss", probability=probability)) == 100 * probability


def test_random_loss_is_the_same_under_the_same_seed_only() -> None:
    assert lost(500, "loss", probability=0.1) == lost(500, "loss", probability=0.1)
    assert lost(500, "loss", probability=0.1) != lost(500, "loss", seed=2, probability=0.1)


def test_bursts_have_the_length_and_the_share_of_the_model() -> None:
    p, r = 0.02, 0.25
    gone = lost(100_000, "burst_loss", p=p, r=r)
    bursts = 1 + sum(later - earlier > 1 for earlier, later in pairwise(gone))
    assert len(gone) / bursts == pytest.approx(1 / r, rel=0.1)
    assert len(gone) / 100_000 == pytest.approx(p / (p + r), rel=0.1)


def test_a_good_link_may_lose_too_and_a_bad_one_let_through() -> None:
    share = len(lost(COUNT, "burst_loss", p=0.5, r=0.5, loss_in_bad=0.4, loss_in_good=0.1)) / COUNT
    assert within(share, 0.25)
    assert lost(1000, "burst_loss", p=1.0, r=0.0, loss_in_bad=1.0) == list(range(1, 1000))


def test_every_nth() -> None:
    assert lost(10, "every_nth", n=3) == [2, 5, 8]
    assert lost(3, "every_nth", n=1) == [0, 1, 2]


FRAMES = {
    "arp": HEADER[:12] + b"\x08\x06" + bytes(46),
    "dns": udp_frame(1, port=53),
    "nbd": udp_frame(2, port=10809, protocol=6),
    "icmp": udp_frame(3, protocol=1),
    "tagged": HEADER[:12] + b"\x81\x00\x00\x07" + udp_frame(4, port=53)[12:],
    "fragment": udp_frame(5, port=53)[:20] + b"\x00\x10" + udp_frame(5, port=53)[22:],
    "long": udp_frame(6, size=1400),
    "ipv6": HEADER[:12] + b"\x86\xdd" + bytes(6) + b"\x11" + bytes(33) + b"\x00\x35\x00\x35" + bytes(4),
    "short": HEADER,
}


@pytest.mark.parametrize(
    ("properties", "matching"),
    [
        ({"ethertype": 0x0806}, {"arp"}),
        ({"ip_protocol": 6}, {"nbd"}),
        ({"ip_protocol": 17, "largest": 200}, {"dns", "tagged", "fragment", "ipv6"}),
        ({"port": 53}, {"dns", "tagged", "ipv6"}),
        ({"port": 53, "ethertype": 0x86DD}, {"ipv6"}),
        ({"port": 5000}, {"dns", "nbd", "tagged", "long"}),
        ({"smallest": 1400}, {"long"}),
        ({"largest": 14}, {"short"}),
    ],
)
def test_loss_by_match_takes_those_frames_and_no_others(properties: dict[str, int], matching: set[str]) -> None:
    effect = make("match_loss", properties, 1)
    assert {name for name, frame in FRAMES.items() if not list(effect.apply(frame, 0.0))} == matching
    assert effect.drops == {"match_loss": len(matching)}
    spared = make("match_loss", {**properties, "probability": 0.0}, 1)
    assert all(list(spared.apply(frame, 0.0)) for frame in FRAMES.values())


def test_duplicates_follow_at_once() -> None:
    stack = stack_of(("duplicate", {"probability": 0.2}))
    numbers = [int.from_bytes(frame[-4:]) for _, frame in through(stack, map(udp_frame, range(COUNT)))]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(COUNT))
    assert len(numbers) - COUNT == stack.duplicated
    assert within(stack.duplicated / COUNT, 0.2)


def test_reordering_lets_some_pass_those_before_them() -> None:
    stack = stack_of(("reorder", {"seconds": 0.0035, "probability": 0.25}))
    left = through(stack, map(udp_frame, range(COUNT)))
    times = [when - 0.001 * int.from_bytes(frame[-4:]) for when, frame in left]
    at_once = sum(abs(each) < 1e-6 for each in times)
    assert all(abs(each) < 1e-6 or abs(each - 0.0035) < 1e-6 for each in times)
    assert within(at_once / COUNT, 0.25)
    numbers = [int.from_bytes(frame[-4:]) for _, frame in left]
    assert sorted(numbers) == list(range(COUNT))
    assert numbers != sorted(numbers)


def test_with_a_gap_and_certainty_every_gapth_frame_goes_at_once() -> None:
    stack = stack_of(("reorder", {"seconds": 10.0, "probability": 1.0, "gap": 4}))
    left = through(stack, map(udp_frame, range(20)), interval=0.0)
    assert [int.from_bytes(frame[-4:]) for when, frame in left if when == 0.0] == [3, 7, 11, 15, 19]


def flipped(before: bytes, after: bytes) -> list[int]:
    """Numbers of the bits that differ."""
    return [bit for bit in range(8 * len(before)) if (before[bit // 8] ^ after[bit // 8]) >> bit % 8 & 1]


@pytest.mark.parametrize("bits", [1, 5])
def test_corruption_flips_so_many_bits_all_over_the_frame(bits: int) -> None:
    effect = make("corrupt", {"probability": 1.0, "bits": bits}, 1)
    places: set[int] = set()
    for _ in range(5000):
        ((_, after),) = effect.apply(udp_frame(7), 0.0)
        assert len(flipped(udp_frame(7), after)) == bits
        places.update(flipped(udp_frame(7), after))
    assert len(places) > 0.95 * 800
    assert effect.altered == 5000


@pytest.mark.parametrize(("protocol", "end"), [(17, 42), (6, 54)])
def test_headers_may_be_spared(protocol: int, end: int) -> None:
    effect = make("corrupt", {"probability": 1.0, "keep_headers": True}, 1)
    before = udp_frame(7, protocol=protocol)
    assert parse(before).end == end
    for _ in range(1000):
        ((_, after),) = effect.apply(before, 0.0)
        assert before[:end] == after[:end]
        assert len(flipped(before, after)) == 1
    bare = before[:end]
    assert list(effect.apply(bare, 0.0)) == [(0.0, bare)]
    assert effect.altered == 1000


def test_truncated_frames_keep_their_beginning() -> None:
    effect = make("truncate", {"probability": 0.5, "smallest": 60}, 1)
    lengths = []
    for number in range(COUNT):
        ((_, after),) = effect.apply(udp_frame(number), 0.0)
        assert udp_frame(number).startswith(after)
        lengths.append(len(after))
    assert within(effect.altered / COUNT, 0.5)
    assert effect.altered == sum(length < 100 for length in lengths)
    assert set(lengths) == set(range(60, 101))


def test_a_partition_lets_nothing_through() -> None:
    assert lost(50, "partition") == list(range(50))


def test_a_flapping_link_is_down_for_its_share_of_each_period() -> None:
    effect = make("flap", {"period": 1.0, "down": 0.25}, 1)
    effect.begin(10.0)
    gone = [tenth for tenth in range(40) if not list(effect.apply(HEADER, 10.05 + tenth / 10))]
    assert gone == [0, 1, 10, 11, 20, 21, 30, 31]
    assert effect.drops == {"flap": 8}


def test_a_smaller_mtu_loses_what_is_longer() -> None:
    stack = stack_of(("mtu", {"mtu": 100}))
    left = through(stack, [udp_frame(number, size) for number, size in enumerate((60, 114, 115, 1500))])
    assert [len(frame) for _, frame in left] == [60, 114]
    assert stack.drops == {"mtu": 2}


@pytest.mark.parametrize(
    ("kind", "arguments", "complaint"),
    [
        ("eio_read", {}, "there is no link effect 'eio_read': choose from delay, rate"),
        ("loss", {}, "loss: missing 1 required positional argument: 'probability'"),
        ("loss", {"share": 1}, "loss: got an unexpected keyword argument 'share'"),
        ("loss", {"probability": 1.5}, "probability must be from 0 to 1, not 1.5"),
        ("loss", {"probability": math.nan}, "probability must be from 0 to 1"),
        ("delay", {"seconds": -1}, "seconds must not be below 0"),
        ("delay", {"seconds": 1, "jitter": math.inf}, "jitter must not be below 0"),
        ("delay", {"seconds": 1, "distribution": "pareto"}, 'must be "uniform" or "normal"'),
        ("rate", {"bytes_per_second": 0}, "bytes_per_second must be above 0"),
        ("burst_loss", {"p": 0.1, "r": 2}, "r must be from 0 to 1"),
        ("every_nth", {"n": 0}, "n must be at least 1"),
        ("match_loss", {}, "say which frames"),
        ("reorder", {"seconds": 0.1, "probability": 0.5, "gap": 0}, "gap must be at least 1"),
        ("corrupt", {"probability": 0.1, "bits": 0}, "bits must be at least 1"),
        ("truncate", {"probability": 0.1, "smallest": 13}, "smallest must be at least 14"),
        ("flap", {"period": 0}, "period must be above 0"),
        ("mtu", {"mtu": 67}, "mtu must be at least 68"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_in_one_line(
    kind: str, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        make(kind, arguments, 1)
    assert complaint in str(refused.value)


def test_all_kinds_of_the_registry_are_tested_here() -> None:
    assert set(EFFECTS) == {
        *("delay", "rate", "loss", "burst_loss", "every_nth", "match_loss", "duplicate", "reorder", "corrupt"),
        *("truncate", "partition", "flap", "mtu"),
    }
