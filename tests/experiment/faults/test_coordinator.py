"""A schedule on fake hosts and a fake clock: who is told what and when, and what the verdict makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from testbed.experiment.coordinator import RunRecord
from testbed.experiment.faults.planning import NO_OTHERS, scheduled
from testbed.experiment.plan import Plan
from testbed.experiment.result import Check, fault_results
from testbed.experiment.topology import Start
from testbed.experiment.verdict import judge
from testbed.hosts.messages import Event, SetFault
from tests.experiment.faults.faulty import faulty_plan
from tests.experiment.faults.stage import Stage


def plan(declare: Callable[..., Any] | None = None) -> Plan:
    return scheduled(faulty_plan(declare), NO_OTHERS, seed=1, time_limit=200.0)


def free(stage: Stage) -> bool:
    """Swap goes on unless something lets no request through."""
    active = {*stage.link.active.values(), *stage.server.active.values(), *stage.client.active.values()}
    return not active & {"partition", "pause", "kill", "hang"}


def never_again(stage: Stage) -> bool:
    """The client does not survive its first fault."""
    return not any(isinstance(command, SetFault) for _, command in stage.link.commands)


def progress(record: RunRecord) -> Check:
    return next(check for check in judge(record.evidence).checks if check.name == "progress")


def partition(at: float, until: float | None) -> Plan:
    return plan(lambda t, s, c, n: t.at(at, t.link_of(c).partition(), until=until))


def test_hosts_are_told_at_the_planned_times_in_the_planned_order() -> None:
    def declare(topology: Any, server: Any, client: Any, noise: Any) -> None:
        topology.at(1.03, topology.storage_of(server).slow(seconds=0.1), until=2.0)
        topology.at(1.03, topology.memory_of(client).memory_taken(bytes=4096))
        topology.at(3.333, topology.link_of(client).loss(probability=0.1), until=3.334)

    stage = Stage(plan(declare), free)
    record = stage.play()
    assert stage.told(stage.server) == [(1.03, "SetFault", 1), (2.0, "ClearFault", 1)]
    assert stage.told(stage.link) == [(3.333, "SetFault", 3), (3.334, "ClearFault", 3)]
    begun, ended = stage.told(stage.client)
    assert begun == (1.03, "SetFault", 2)
    assert ended[1:] == ("ClearFault", 2)
    assert ended[0] >= 12.0, "what the schedule does not end is ended with the workload"
    assert judge(record.evidence).outcome == "pass"


@pytest.mark.parametrize(("start", "seconds"), [("workload", 1.0), ("swapping", 4.0), ("steady", 5.0)])
def test_times_count_from_where_the_topology_says(start: Start, seconds: float) -> None:
    stage = Stage(replace(partition(1.0, 2.0), faults_start=start), free)
    stage.client.swaps_after = 3.0
    stage.play()
    begun, ended = (time for time, _, _ in stage.told(stage.link))
    assert begun == pytest.approx(seconds, abs=0.3)
    assert ended == pytest.approx(begun + 1.0)


def test_the_log_has_the_schedule_and_every_step() -> None:
    whole = plan(lambda t, s, c, n: t.at(2, t.link_of(c).partition(), until=3))
    stage = Stage(whole, free)
    stage.play()
    names = [event.name for event in stage.events if event.name in ("schedule", "fault", "fault_set", "fault_cleared")]
    assert names == ["schedule", "fault", "fault_set", "fault", "fault_cleared"]
    steps = [event.fields for event in stage.events if event.name == "fault"]
    assert [(step["time"], step["action"], step["target"], step["kind"], step["seed"]) for step in steps] == [
        (step.time, step.action, step.target, step.kind, step.seed) for step in whole.schedule
    ]


def test_the_result_says_when_faults_acted_what_they_did_and_which_never_came() -> None:
    whole = plan(
        lambda t, s, c, n: t.at(2, t.link_of(c).partition(), until=3).at(150, t.process_of(s).pause(), until=151)
    )
    record = Stage(whole, free).play()
    came, missed = fault_results(whole.schedule, record.evidence.faults)
    assert (came.layer, came.target, came.kind, came.at, came.until) == ("link", "client", "partition", 2.0, 3.0)
    assert (came.set_at, came.cleared_at) == (2.0, 3.0)
    assert came.did == {"frames_lost": 7}
    assert (missed.at, missed.set_at, missed.cleared_at) == (150.0, None, None)


@pytest.mark.parametrize("kind", ["partition", "pause", "hang"])
def test_a_fault_longer_than_the_stall_limit_is_no_stall_if_swap_goes_on_afterwards(kind: str) -> None:
    def declare(topology: Any, server: Any, client: Any, noise: Any) -> None:
        faults = {
            "partition": topology.link_of(client).partition,
            "pause": topology.process_of(server).pause,
            "hang": topology.storage_of(server).hang,
        }
        topology.at(2.0, faults[kind](), until=14.0)

    record = Stage(plan(declare), free).play()
    assert judge(record.evidence).outcome == "pass"
    assert record.evidence.clients[0].stall is None
    assert "longest pause 12." in progress(record).evidence
    assert "from 2.0 to 14.0 s" in progress(record).evidence


def test_tcp_may_wait_as_long_again_after_a_partition_but_no_longer() -> None:
    late = Stage(partition(2.0, 14.0), lambda stage: not 2.0 <= stage.clock.now() - stage.started < 25.0)
    assert judge(late.play().evidence).outcome == "pass"
    too_late = Stage(partition(2.0, 14.0), lambda stage: not 2.0 <= stage.clock.now() - stage.started < 45.0)
    record = too_late.play()
    stall = record.evidence.clients[0].stall
    assert stall is not None
    assert stall.noticed.time - too_late.started == pytest.approx(14.0 + 12.0 + 5.0, abs=0.3)
    assert judge(record.evidence).outcome != "pass"


def test_a_client_that_does_not_go_on_after_the_fault_is_deadlocked() -> None:
    record = Stage(partition(2.0, 4.0), never_again).play()
    verdict = judge(record.evidence)
    assert verdict.outcome == "deadlock"
    assert "the link of client was partitioned from 2.0 to 4.0 s" in progress(record).evidence


def test_a_partition_that_nothing_heals_is_a_stall_that_it_explains() -> None:
    stage = Stage(partition(2.0, None), free)
    record = stage.play()
    assert judge(record.evidence).outcome == "fail"
    words = progress(record).evidence
    assert "no progress for 5." in words
    assert "while the link of client was partitioned" in words
    assert "without faults swap_completions went up" in words


def test_a_server_that_was_killed_and_never_started_again_is_no_deadlock() -> None:
    record = Stage(plan(lambda t, s, c, n: t.at(2, t.process_of(s).kill())), free).play()
    assert judge(record.evidence).outcome == "fail"
    assert "server was killed from 2.0 s on, which nothing has ended" in progress(record).evidence


def test_a_fault_that_lets_requests_through_excuses_no_stall() -> None:
    lossy = plan(lambda t, s, c, n: t.at(2, t.link_of(c).loss(probability=0.5), until=100))
    stage = Stage(lossy, lambda stage: not stage.link.active)
    record = stage.play()
    assert stage.told(stage.link)[-1][0] == pytest.approx(7.0, abs=0.3), "cleared when the stall was noticed"
    assert judge(record.evidence).outcome == "fail"
    assert "while loss acted on the link of client" in progress(record).evidence


def test_faults_of_others_do_not_stop_a_clients_clock() -> None:
    paused = plan(lambda t, s, c, n: t.at(2, t.process_of(n).pause(), until=30))
    stage = Stage(paused, lambda stage: stage.clock.now() - stage.started < 2.0)
    record = stage.play()
    assert judge(record.evidence).outcome == "deadlock"


def test_a_flood_is_counted_although_its_source_cannot_be_asked_any_more() -> None:
    stage = Stage(plan(lambda t, s, c, n: t.at(2, t.process_of(n).kill())), free)
    stage.flood.event("flood_stopped", sent=123, pps=9.0, each=[{"sent": 123}], streams=[])
    sent = stage.play().evidence.clients[0].flood_sent
    assert sent is not None


def test_pages_that_came_back_wrong_are_named() -> None:
    lost = plan(lambda t, s, c, n: t.at(2, t.process_of(s).kill(data="lost"), until=3))
    stage = Stage(lost, free)
    for page in (3, 4, 5, 9):
        stage.client.event("corrupt_page", task="touch0", page=page)
    record = stage.play()
    assert record.evidence.clients[0].corrupt_pages == {"touch0": ["3-5", "9"]}


def test_events_of_hosts_that_nobody_asked_for_change_nothing() -> None:
    stage = Stage(partition(2.0, 3.0), free)
    stage.coordinator.faults.heard(Event("client", 1.0, "fault_cleared", {"number": 99}))
    assert judge(stage.play().evidence).outcome == "pass"
