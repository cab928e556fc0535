"""A fault acts in the directions that it names, each with a fate of its own."""

from __future__ import annotations

import pytest

from testbed.lab.effects.link_faults import LinkFaults, effects_of, split
from tests.lab.effects.drive import through, udp_frame


def test_both_directions_are_meant_unless_one_is_named() -> None:
    assert split({"probability": 0.5}) == (("to", "from"), {"probability": 0.5})
    assert split({"direction": "to"}) == (("to",), {})
    with pytest.raises(ValueError, match="direction must be"):
        split({"direction": "up"})


def test_the_directions_do_not_lose_the_same_frames() -> None:
    link: LinkFaults[bytes] = LinkFaults()
    link.set(1, effects_of("loss", {"probability": 0.5}, seed=3), 0.0)
    left = [through(stack, map(udp_frame, range(100))) for stack in link.stacks.values()]
    assert left[0] != left[1]


def test_a_direction_has_the_same_fate_whether_the_other_suffers_or_not() -> None:
    frames = [udp_frame(number) for number in range(100)]
    alone: LinkFaults[bytes] = LinkFaults()
    alone.set(1, effects_of("loss", {"probability": 0.5, "direction": "from"}, seed=3), 0.0)
    both: LinkFaults[bytes] = LinkFaults()
    both.set(1, effects_of("loss", {"probability": 0.5}, seed=3), 0.0)
    assert through(alone.stacks["from"], frames) == through(both.stacks["from"], frames)
    assert len(through(alone.stacks["to"], frames)) == 100


def test_clearing_ends_it_both_ways() -> None:
    link: LinkFaults[bytes] = LinkFaults()
    link.set(1, effects_of("partition", {}, seed=3), 0.0)
    link.clear(1)
    link.clear(1)
    assert all(stack.idle for stack in link.stacks.values())
