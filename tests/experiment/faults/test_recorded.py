"""A schedule survives every file it is written to, and files that hold none are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed.experiment.errors import CannotRun
from testbed.experiment.faults.nemesis import Nemesis, draw
from testbed.experiment.faults.planning import FaultOptions, scheduled
from testbed.experiment.faults.recorded import as_plain, load_schedule
from testbed.experiment.faults.step import Schedule, Step, seeded
from testbed.experiment.result import Result, encode
from tests.experiment.faults.faulty import faulty_plan

PLAN = faulty_plan()


@pytest.fixture
def schedule() -> Schedule:
    return seeded(draw(PLAN, Nemesis(), 7), 7)


def events(schedule: Schedule) -> str:
    fields = {"start": "steady", "steps": as_plain(schedule)}
    lines = [{"name": "workload_started", "fields": {}}, {"name": "schedule", "fields": fields}]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_result_an_event_log_a_directory_and_a_plain_list_all_hold_it(tmp_path: Path, schedule: Schedule) -> None:
    result = Result(outcome="pass", schedule=as_plain(schedule), faults_start="steady")
    (tmp_path / "result.json").write_bytes(encode(result))
    (tmp_path / "events.jsonl").write_text(events(schedule))
    (tmp_path / "list.json").write_bytes(msgspec.json.encode(schedule))
    for path in (tmp_path / "result.json", tmp_path / "events.jsonl", tmp_path):
        assert load_schedule(path) == (schedule, "steady")
    assert load_schedule(tmp_path / "list.json") == (schedule, "workload")


def test_a_replay_has_the_same_steps_whatever_the_seed_of_the_run(tmp_path: Path, schedule: Schedule) -> None:
    (tmp_path / "events.jsonl").write_text(events(schedule))
    replayed = scheduled(PLAN, FaultOptions(schedule=tmp_path), seed=99, time_limit=30.0)
    assert (replayed.schedule, replayed.faults_start) == (schedule, "steady")


def test_a_list_written_by_hand_needs_neither_numbers_nor_seeds(tmp_path: Path) -> None:
    steps = [
        {"time": 2, "action": "clear", "target": "client", "kind": "partition"},
        {"time": 1, "action": "set", "target": "client", "kind": "partition"},
    ]
    (tmp_path / "mine.json").write_text(json.dumps({"schedule": steps}))
    assert load_schedule(tmp_path / "mine.json")[0] == (
        Step(1.0, "set", "client", "partition", number=1),
        Step(2.0, "clear", "client", "partition", number=1),
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("not JSON", "malformed"),
        ("{}", "no schedule of faults"),
        ('{"outcome": "pass"}', "no schedule of faults"),
        ('[{"time": 1}]', "missing required field"),
        ('{"schedule": [], "faults_start": "never"}', "Invalid enum value 'never'"),
        ('[{"time": 1, "action": "clear", "target": "client", "kind": "partition"}]', "has no partition"),
    ],
)
def test_what_is_no_schedule_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CannotRun) as caught:
        load_schedule(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"target": "nobody", "kind": "partition"}, "there is no host 'nobody'"),
        ({"target": "client", "kind": "melt"}, "there is no fault 'melt'"),
        ({"target": "server", "kind": "memory_taken", "arguments": {"bytes": 1}}, "it is not a swap client"),
        ({"target": "client", "kind": "loss"}, "probability"),
        ({"target": "client", "kind": "loss", "arguments": {"probability": 7}}, "probability must be"),
    ],
)
def test_a_schedule_of_another_plan_is_refused(tmp_path: Path, step: dict[str, Any], words: str) -> None:
    (tmp_path / "file.json").write_text(json.dumps([{"time": 1, "action": "set", **step}]))
    with pytest.raises((CannotRun, ValueError), match=words):
        scheduled(PLAN, FaultOptions(schedule=tmp_path / "file.json"), seed=1, time_limit=10.0)
