"""A schedule from a file: one written by hand, or what an earlier run left (its directory, result or event log).

A `result.json` has the schedule under `schedule`, and what its times count from under `faults_start`; an event log has
both in its event `schedule`. A file written by hand is a list of steps, or an object like `result.json`; numbers, seeds
and `faults_start` may be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from testbed.experiment.errors import CannotRun
from testbed.experiment.faults.step import BadSchedule, Schedule, Step, numbered
from testbed.experiment.topology import Start

LOG, RESULT = "events.jsonl", "result.json"
EVENT = "schedule"
DEFAULT_START: Start = "workload"


def load_schedule(path: Path) -> tuple[Schedule, Start]:
    """The schedule in a file or in a run's directory, and what its times count from. Raises CannotRun, in one line."""
    file = path / LOG if path.is_dir() else path
    try:
        found = next(_candidates(file.read_bytes(), lines=file.suffix == ".jsonl"), None)
        if found is None:
            raise CannotRun(f"{file}: there is no schedule of faults in it")
        steps, start = msgspec.convert(found[0], Schedule), msgspec.convert(found[1], Start)
        return steps if all(step.number for step in steps) else numbered(steps), start
    except OSError as error:
        raise CannotRun(f"{file}: {error.strerror or error}") from None
    except (msgspec.MsgspecError, BadSchedule) as error:
        raise CannotRun(f"{file}: {' '.join(str(error).split())}") from None


def _candidates(text: bytes, *, lines: bool) -> Iterator[tuple[Any, Any]]:
    """What may be a list of steps, a file's own or what is called `schedule`, and what may be its start."""
    for document in text.splitlines() if lines else [text]:
        data = msgspec.json.decode(document)
        if isinstance(data, list):
            yield data, DEFAULT_START
        elif isinstance(data, dict) and EVENT in data:
            yield data[EVENT], data.get("faults_start", DEFAULT_START)
        elif isinstance(data, dict) and data.get("name") == EVENT:
            yield data["fields"]["steps"], data["fields"].get("start", DEFAULT_START)


def as_plain(schedule: tuple[Step, ...]) -> list[dict[str, Any]]:
    """The schedule as it stands in files."""
    return [dict(msgspec.to_builtins(step)) for step in schedule]
