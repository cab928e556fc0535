"""What a topology declares becomes steps in order, checked as they are declared or before anything is built."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import Bystander, Neighbour, TopologyError
from testbed.experiment.faults.injected import outside, ranges
from testbed.experiment.faults.planning import NO_OTHERS, scheduled
from testbed.experiment.faults.step import BadSchedule, Step, check_clears, numbered, seeded
from testbed.experiment.plan import resolve
from tests.experiment.faults.faulty import MIB, faulty, faulty_plan


def declared(topology: Any, server: Any, client: Any, noise: Any) -> None:
    link = topology.link_of(client)
    topology.at(4.0, link.heal()).at(2.0, link.partition()).at(1, topology.process_of(server).pause(), until=1.5)
    topology.at(3.0, topology.memory_of(client).memory_taken(bytes=MIB))
    topology.at(3.0, topology.storage_of(server).slow(seconds=0.1))
    topology.at(5.0, topology.process_of(noise).kill())


def test_steps_are_in_order_of_time_and_ends_bear_the_number_of_what_they_end() -> None:
    steps = faulty_plan(declared).schedule
    assert [(step.time, step.action, step.target, step.kind, step.number) for step in steps] == [
        (1.0, "set", "server", "pause", 1),
        (1.5, "clear", "server", "pause", 1),
        (2.0, "set", "client", "partition", 2),
        (3.0, "set", "client", "memory_taken", 3),
        (3.0, "set", "server", "slow", 4),
        (4.0, "clear", "client", "partition", 2),
        (5.0, "set", "noise", "kill", 5),
    ]


def test_only_links_with_faults_get_a_relay_and_every_fault_a_seed_of_its_own() -> None:
    plan = scheduled(faulty_plan(declared), NO_OTHERS, seed=1, time_limit=10.0)
    assert plan.fault_links == {"client"}
    seeds = {step.number: step.seed for step in plan.schedule}
    assert all(seeds.values())
    assert len(set(seeds.values())) == 5
    assert {step.seed for step in scheduled(plan, NO_OTHERS, 2, 10.0).schedule} == set(seeds.values())


def test_a_clear_ends_all_faults_of_its_kind_on_its_target() -> None:
    steps = [Step(1, "set", "a", "loss"), Step(2, "set", "a", "loss"), Step(2, "set", "b", "loss")]
    made = numbered([*steps, Step(3, "clear", "a", "loss")])
    assert [(step.action, step.number) for step in made] == [
        ("set", 1), ("set", 2), ("set", 3), ("clear", 1), ("clear", 2),
    ]  # fmt: skip


def test_two_faults_of_a_kind_may_end_together() -> None:
    def declare(topology: Any, _server: Any, client: Any, _noise: Any) -> None:
        memory = topology.memory_of(client)
        topology.at(1, memory.min_free_kbytes(kbytes=1024), until=2).at(1, memory.min_free_kbytes(kbytes=512))

    plan = scheduled(faulty_plan(declare), NO_OTHERS, seed=1, time_limit=10.0)
    assert [(step.time, step.action, step.number) for step in plan.schedule] == [
        (1, "set", 1), (1, "set", 2), (2, "clear", 1), (2, "clear", 2),
    ]  # fmt: skip
    check_clears(plan.schedule)
    with pytest.raises(BadSchedule, match=r"at 2 s: client has no min_free_kbytes that could be cleared"):
        check_clears((*plan.schedule, plan.schedule[-1]))


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["set", "clear"]), st.sampled_from("ab"))))
def test_numbering_twice_changes_nothing(drawn: list[tuple[float, Any, str]]) -> None:
    try:
        made = numbered(Step(time, action, target, "loss") for time, action, target in drawn)
    except BadSchedule:
        return
    numbers = [step.number for step in made if step.action == "set"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [step.time for step in made] == sorted(step.time for step in made)
    ended = [step.number for step in made if step.action == "clear"]
    assert len(ended) == len(set(ended))
    assert seeded(seeded(made, 1), 2) == seeded(made, 1)


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda t, s, c, n: t.link_of(Neighbour("else")), "is not in the topology"),
        (lambda t, s, c, n: t.storage_of(c), "storage is that of a NbdServer"),
        (lambda t, s, c, n: t.memory_of(s), "memory is that of a SwapClient"),
        (lambda t, s, c, n: t.link_of(c).melt(), "there is no fault 'melt'"),
        (lambda t, s, c, n: t.link_of(c).clear("melt"), "there is no fault 'melt'"),
        (lambda t, s, c, n: t.link_of(c).loss(probability=2), "probability must be from 0 to 1"),
        (lambda t, s, c, n: t.link_of(c).loss(chance=0.5), "unexpected keyword argument 'chance'"),
        (lambda t, s, c, n: t.link_of(c).partition(direction="up"), "direction must be"),
        (lambda t, s, c, n: t.storage_of(s).slow(speed=1), "has no argument 'speed'"),
        (lambda t, s, c, n: t.process_of(s).kill(data="some"), "data must be kept or lost"),
        (lambda t, s, c, n: t.memory_of(c).min_free_kbytes(kbytes=0), "kbytes must be a whole number"),
        (lambda t, s, c, n: t.at(-1, t.link_of(c).partition()), "a time in seconds"),
        (lambda t, s, c, n: t.at(float("nan"), t.link_of(c).partition()), "a time in seconds"),
        (lambda t, s, c, n: t.at("soon", t.link_of(c).partition()), "a time in seconds"),
        (lambda t, s, c, n: t.at(2, t.link_of(c).partition(), until=1), "cannot end at 1 s"),
        (lambda t, s, c, n: t.at(2, t.link_of(c).heal(), until=3), "does not end itself"),
        (lambda t, s, c, n: t.at(2, "partition"), "is not a fault"),
        (lambda t, s, c, n: t.at(2, t.link_of(c).heal()), "has no partition that could be cleared"),
        (lambda t, s, c, n: t.at(2, t.process_of(c).kill()), "a client can only be paused"),
        (lambda t, s, c, n: t.at(2, t.process_of(s).stop_reading()), "it is not a swap client"),
        (lambda t, s, c, n: t.at(2, t.process_of(c).stop_reading(port=9)), "nobody reads from port 9"),
        (lambda t, s, c, n: t.at(2, t.process_of(n).kill(), until=3), "only a server can be started again"),
        (lambda t, s, c, n: t.at(2, t.memory_of(c).memory_taken(bytes=16 * MIB)), "does not have"),
        (lambda t, s, c, n: t.at(2, t.memory_of(c).min_free_kbytes(kbytes=20000)), "does not suit a machine"),
        (lambda t, s, c, n: t.at(11, t.link_of(c).partition()), "comes after the time limit of 10 s"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(declare: Any, words: str) -> None:
    with pytest.raises(TopologyError) as caught:
        scheduled(resolve(faulty(declare)), NO_OTHERS, seed=1, time_limit=10.0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("declare", "changes", "words"),
    [
        (lambda t, s, c, n: t.at(1, t.process_of(s).kill()), {"server": {"program": "nbdkit"}}, "only our own server"),
        (lambda t, s, c, n: t.at(1, t.storage_of(s).hang()), {"server": {"program": "nbdkit"}}, "only our own server"),
        (lambda t, s, c, n: t.at(1, t.process_of(s).kill(data="lost")), {"server": {"file": "/swap"}}, "cannot lose"),
        (lambda t, s, c, n: t.at(1, t.process_of(c).stop_reading()), {"bystanders": [Bystander()]}, "nobody reads"),
    ],
)
def test_servers_that_are_not_ours_and_clients_without_readers_have_fewer_faults(
    declare: Any, changes: dict[str, Any], words: str
) -> None:
    plan = faulty_plan(declare, **changes)
    with pytest.raises(TopologyError, match=words):
        scheduled(plan, NO_OTHERS, 1, 10.0)


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_number_once(numbers: set[int]) -> None:
    found: list[int] = []
    for text in ranges(numbers):
        first, _, last = text.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(numbers)


def test_a_clock_that_stands_still() -> None:
    assert [outside(time, [(1.0, 3.0), (5.0, float("inf"))]) for time in (0.5, 2.0, 4.0, 9.0)] == [0.5, 1.0, 2.0, 3.0]
