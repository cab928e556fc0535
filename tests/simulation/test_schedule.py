"""Schedules on virtual time: the same steps, and a run that is the same every time."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.experiment import simulate
from testbed.experiment.coordinator import Limits, RunRecord
from testbed.experiment.faults.planning import NO_OTHERS, scheduled
from testbed.experiment.plan import Plan
from testbed.experiment.verdict import judge
from testbed.lab.errors import LabError
from testbed.patches import PATCHES
from tests.experiment.faults.faulty import MIB, faulty_plan
from tests.integration.small_run import Silent

LIMITS = Limits(time=60.0, stall=3.0)


def plan(declare: Any) -> Plan:
    return scheduled(faulty_plan(declare, server={"bandwidth": "16M"}), NO_OTHERS, seed=1, time_limit=60.0)


def run(what: Plan) -> tuple[RunRecord, list[tuple[float, str, dict[str, Any]]]]:
    observer = Silent()
    record = simulate.execute(what, frozenset(PATCHES), 1, LIMITS, observer)
    return record, [(event.time, event.name, event.fields) for event in observer.events]


def everything(topology: Any, server: Any, client: Any, noise: Any) -> None:
    topology.at(0.25, topology.link_of(client).partition(), until=4.25)
    topology.at(5.0, topology.memory_of(client).memory_taken(bytes=2 * MIB), until=6.0)
    topology.at(5.5, topology.memory_of(client).min_free_kbytes(kbytes=1024), until=6.0)
    topology.at(5.6, topology.process_of(client).stop_reading(port=7000), until=5.9)


def test_a_schedule_is_carried_out_to_the_moment_and_the_same_every_time() -> None:
    first, events = run(plan(everything))
    assert first.evidence.workload_started is not None
    steps = [(time - first.evidence.workload_started, fields) for time, name, fields in events if name == "fault"]
    assert [round(time, 6) for time, _ in steps] == [0.25, 4.25, 5.0, 5.5, 5.6, 5.9, 6.0, 6.0]
    assert all(fields["late"] == 0 for _, fields in steps)
    assert all(fault.confirmed for fault in first.evidence.faults)
    progress = next(check for check in judge(first.evidence).checks if check.name == "progress")
    assert "the link of client was partitioned from 0.2 to 4.2 s" in progress.evidence
    assert first.evidence.clients[0].stall is None, "it was cut off for longer than the stall limit, but went on"
    again, events_again = run(plan(everything))
    assert events_again == events
    assert again.evidence.clients[0].report == first.evidence.clients[0].report


def write_twice(topology: Any, server: Any, client: Any, noise: Any) -> None:
    memory = topology.memory_of(client)
    topology.at(0.25, memory.min_free_kbytes(kbytes=1024), until=0.5).at(0.25, memory.min_free_kbytes(kbytes=512))


@pytest.mark.parametrize(
    ("off", "serialized", "mixed", "words"),
    [(set(), 2, 0, "seen at work: patch 1,"), ({1}, 0, 2, "seen to be off: patch 1")],
)
def test_with_patch_01_the_second_writer_of_min_free_kbytes_waits_for_the_first(
    off: set[int], serialized: int, mixed: int, words: str
) -> None:
    two_zones = faulty_plan(write_twice, memory="24M", zones="x86_64", server={"bandwidth": "16M"})
    what = scheduled(two_zones, NO_OTHERS, seed=1, time_limit=60.0)
    evidence = simulate.execute(what, frozenset(PATCHES) - off, 1, LIMITS, Silent()).evidence
    assert evidence.clients[0].report is not None
    counters = evidence.clients[0].report["counters"]
    assert (counters["wmark_setups_serialized"], counters["wmark_setups_mixed"]) == (serialized, mixed)
    (switches,) = (check for check in judge(evidence).checks if check.name == "the switch took effect")
    assert (switches.ok, words in switches.evidence) == (True, True), switches.evidence


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda t, s, c, n: t.at(1, t.process_of(s).pause(), until=2), "the simulator has no pause"),
        (lambda t, s, c, n: t.at(1, t.storage_of(s).hang(), until=2), "the simulator has no hang"),
        (lambda t, s, c, n: t.at(1, t.link_of(c).corrupt(probability=0.1)), "have no bytes, which corrupt needs"),
    ],
)
def test_what_the_simulator_lacks_is_refused_before_anything_runs(declare: Any, words: str) -> None:
    with pytest.raises(LabError, match=words):
        run(plan(declare))
