"""A nemesis: reproducible, bounded, and never asking for what a host cannot have."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.experiment.faults.kinds import KINDS, LAYERS, SIMULATED, layer_of
from testbed.experiment.faults.nemesis import LONGEST_S, Nemesis, draw
from testbed.experiment.faults.planning import FaultOptions, check, scheduled
from testbed.experiment.faults.step import BadSchedule, Layer, end_of
from testbed.experiment.simulate import check as check_simulated
from tests.experiment.faults.faulty import faulty_plan

PLAN = faulty_plan()
SEEDS = st.integers(0, 1 << 31)
DURATIONS = st.floats(1.0, 60.0)
SOME_LAYERS = st.lists(st.sampled_from(LAYERS), min_size=1, unique=True).map(tuple)


@given(SEEDS, DURATIONS, SOME_LAYERS)
def test_what_it_draws_can_be_carried_out_and_comes_to_an_end(
    seed: int, duration: float, layers: tuple[Layer, ...]
) -> None:
    schedule = draw(PLAN, Nemesis(layers, duration), seed)
    check(PLAN, schedule, time_limit=duration + 0.001)
    assert schedule == draw(PLAN, Nemesis(layers, duration), seed)
    for step in schedule:
        assert layer_of(step.kind) in layers
        assert step.time <= duration + 0.001
        if step.action == "set" and (step.target, step.kind) != ("noise", "kill"):
            end = end_of(schedule, step.number)
            assert end is not None
            assert 0 < end - step.time <= LONGEST_S + 0.001


@given(SEEDS)
def test_no_host_is_killed_while_it_is_paused_nor_has_a_kind_twice_at_once(seed: int) -> None:
    active: dict[tuple[str, str], int] = {}
    for step in draw(PLAN, Nemesis(duration=30.0, faults=60), seed):
        slot = step.target, "process" if step.kind in ("kill", "pause") else step.kind
        if step.action == "set":
            assert slot not in active
            active[slot] = step.number
        else:
            assert active.pop(slot) == step.number


def test_every_kind_comes_up_and_seeds_differ() -> None:
    drawn = [draw(PLAN, Nemesis(faults=30), seed) for seed in range(60)]
    assert len(set(map(str, drawn))) == 60
    kinds = {kind for registry in KINDS.values() for kind in registry}
    assert {step.kind for schedule in drawn for step in schedule} == kinds


def test_on_virtual_time_it_draws_what_there_is_and_nothing_else() -> None:
    kinds = set()
    for seed in range(60):
        drawn = scheduled(PLAN, FaultOptions(nemesis=Nemesis(faults=30)), seed, 21.0, simulated=True)
        check_simulated(drawn)
        kinds |= {step.kind for step in drawn.schedule}
    assert kinds == SIMULATED
    with pytest.raises(BadSchedule, match="a fault of storage on virtual time"):
        draw(PLAN, Nemesis(("storage",)), 1, simulated=True)


def test_the_number_of_faults_is_as_asked() -> None:
    schedule = draw(PLAN, Nemesis(("link",), 60.0, 7), 1)
    assert len({step.number for step in schedule}) == 7


def test_a_plan_without_such_hosts_is_refused() -> None:
    foreign = dataclasses.replace(PLAN, servers=tuple(dataclasses.replace(s, program="nbdkit") for s in PLAN.servers))
    with pytest.raises(BadSchedule, match="no host can have a fault of storage"):
        draw(foreign, Nemesis(("storage",)), 1)


def test_it_takes_the_place_of_the_topologys_own_faults() -> None:
    plan = faulty_plan(lambda t, s, c, n: t.at(1, t.link_of(c).partition(), until=2))
    options = FaultOptions(nemesis=Nemesis(("memory",)))
    made = scheduled(plan, options, seed=3, time_limit=30.0)
    assert {layer_of(step.kind) for step in made.schedule} == {"memory"}
    assert made.fault_links == frozenset()
