"""Any stack of effects, switched on and off at any time: no frame unaccounted for, no time that goes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.lab.effects import make
from testbed.lab.effects.stack import Stack
from tests.lab.effects.drive import stack_of, through, udp_frame

SHARE = st.floats(0, 1)
SECONDS = st.floats(0.0001, 0.05)
EFFECT = st.one_of(
    st.tuples(
        st.just("delay"),
        st.fixed_dictionaries(
            {
                "seconds": SECONDS,
                "jitter": st.floats(0, 0.05),
                "distribution": st.sampled_from(["uniform", "normal"]),
                "keep_order": st.booleans(),
            }
        ),
    ),
    st.tuples(
        st.just("rate"),
        st.fixed_dictionaries({"bytes_per_second": st.floats(1e4, 1e6), "queue": st.integers(50, 5000)}),
    ),
    st.tuples(st.just("loss"), st.fixed_dictionaries({"probability": SHARE})),
    st.tuples(st.just("burst_loss"), st.fixed_dictionaries({"p": SHARE, "r": SHARE})),
    st.tuples(st.just("every_nth"), st.fixed_dictionaries({"n": st.integers(1, 5)})),
    st.tuples(st.just("match_loss"), st.fixed_dictionaries({"port": st.integers(9, 11)})),
    st.tuples(st.just("duplicate"), st.fixed_dictionaries({"probability": SHARE})),
    st.tuples(st.just("reorder"), st.fixed_dictionaries({"seconds": SECONDS, "probability": SHARE})),
    st.tuples(st.just("corrupt"), st.fixed_dictionaries({"probability": SHARE, "keep_headers": st.booleans()})),
    st.tuples(st.just("truncate"), st.fixed_dictionaries({"probability": SHARE})),
    st.tuples(st.just("partition"), st.just({})),
    st.tuples(st.just("flap"), st.fixed_dictionaries({"period": SECONDS, "down": SHARE})),
    st.tuples(st.just("mtu"), st.fixed_dictionaries({"mtu": st.integers(68, 200)})),
)
STEP = st.tuples(
    st.floats(0, 0.02),
    st.one_of(
        st.integers(1, 20),
        EFFECT,
        st.tuples(st.just("clear"), st.integers(0, 5)),
    ),
)


def carry_out(steps: list[tuple[float, Any]]) -> list[tuple[float, bytes]]:
    """Send, set and clear as the steps say, checking the accounts after each; what left, and when."""
    stack: Stack[bytes] = Stack()
    seen: list[tuple[float, bytes]] = []
    now, sent = 0.0, 0

    def look(until: float) -> None:
        while stack.next_due is not None and stack.next_due <= until:
            due = stack.next_due
            assert due >= (seen[-1][0] if seen else 0.0)
            seen.extend((due, frame) for frame in stack.due(due))

    for number, (pause, action) in enumerate(steps):
        now += pause
        look(now)
        if isinstance(action, int):
            for _ in range(action):
                stack.put(udp_frame(sent, 60 + sent % 150, port=9 + sent % 3), now)
                sent += 1
            look(now)
        elif action[0] == "clear":
            stack.remove(number - action[1])
        else:
            kind, arguments = action
            stack.add(number, make(kind, arguments, number), now)
        assert (stack.taken, stack.left) == (sent, len(seen))
        assert stack.taken + stack.duplicated == stack.left + stack.held + stack.drops.total()
    look(float("inf"))
    assert stack.held == 0
    assert stack.taken + stack.duplicated == stack.left + stack.drops.total()
    return seen


@given(st.lists(STEP, max_size=30))
def test_any_schedule_on_any_stack_conserves_frames_and_is_reproducible(steps: list[tuple[float, Any]]) -> None:
    assert carry_out(steps) == carry_out(steps)


def test_effects_see_frames_one_after_the_other() -> None:
    """A rate behind a delay: its queue fills when the frames reach it, not when they are sent."""
    stack = stack_of(("delay", {"seconds": 1.0}), ("rate", {"bytes_per_second": 100, "queue": 100}))
    stack.put(udp_frame(0), 0.0)
    stack.put(udp_frame(1), 0.5)
    left = through(stack, [])
    assert left == [(2.0, udp_frame(0))]
    assert stack.drops == {"overlimit": 1}


def test_the_order_of_a_stack_matters() -> None:
    """Copies made before a loss are lost each by itself; those made after it follow what was left."""
    before = stack_of(("duplicate", {"probability": 1.0}), ("every_nth", {"n": 2}))
    after = stack_of(("every_nth", {"n": 2}), ("duplicate", {"probability": 1.0}))
    assert [frame for _, frame in through(before, map(udp_frame, range(4)))] == [udp_frame(n) for n in range(4)]
    assert [frame for _, frame in through(after, map(udp_frame, range(4)))] == [udp_frame(n) for n in (0, 0, 2, 2)]


def test_a_frame_under_way_meets_the_effects_that_are_behind_it_by_then() -> None:
    stack = stack_of(("delay", {"seconds": 1.0}))
    stack.put(udp_frame(0), 0.0)
    assert stack.due(0.0) == []
    stack.add(7, make("partition", {}, 1), 0.5)
    assert stack.due(1.0) == []
    assert stack.drops == {"partition": 1}
    assert stack.remove(7)
    assert not stack.remove(7)
    stack.put(udp_frame(1), 1.0)
    assert stack.due(2.0) == [udp_frame(1)]
    assert stack.drops == {"partition": 1}


def test_an_effect_that_is_put_in_again_stands_last() -> None:
    stack = stack_of(("delay", {"seconds": 1.0}), ("delay", {"seconds": 1.0}))
    stack.put(udp_frame(0), 0.0)
    assert stack.due(1.5) == []
    stack.remove(1)
    stack.add(1, make("delay", {"seconds": 10.0}, 1), 1.5)
    assert stack.due(2.0) == []
    assert stack.next_due == 12.0


def test_a_number_is_taken_once() -> None:
    stack = stack_of(("partition", {}))
    with pytest.raises(ValueError, match="fault 1 is set already"):
        stack.add(1, make("partition", {}, 1), 0.0)


def test_an_idle_stack_can_be_passed_by() -> None:
    stack: Stack[bytes] = Stack()
    assert stack.idle
    stack.passed(5)
    assert (stack.taken, stack.left) == (5, 5)
    stack.add(1, make("delay", {"seconds": 1.0}, 1), 0.0)
    stack.put(udp_frame(0), 0.0)
    stack.due(0.0)
    stack.remove(1)
    assert not stack.idle
    stack.due(1.0)
    assert stack.idle
