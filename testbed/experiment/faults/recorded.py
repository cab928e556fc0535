"""A schedule from a file: one written by hand, or what an earlier run left (its directory, result or event log).

A `result.json` has the schedule under `schedule`, an event log in its event of that name. A file written by hand is a
list of steps, or an object with such a list under `schedule`; numbers and seeds may be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from testbed.experiment.errors import CannotRun
from testbed.experiment.faults.step import BadSchedule, Schedule, Step, numbered

LOG, RESULT = "events.jsonl", "result.json"
EVENT = "schedule"


def load_schedule(path: Path) -> Schedule:
    """The schedule in a file or in a run's directory. Raises CannotRun, in one line."""
    file = path / LOG if path.is_dir() else path
    try:
        found = next(_candidates(file.read_bytes(), lines=file.suffix == ".jsonl"), None)
        if found is None:
            raise CannotRun(f"{file}: there is no schedule of faults in it")
        steps = msgspec.convert(found, Schedule)
        return steps if all(step.number for step in steps) else numbered(steps)
    except OSError as error:
        raise CannotRun(f"{file}: {error.strerror or error}") from None
    except (msgspec.MsgspecError, BadSchedule) as error:
        raise CannotRun(f"{file}: {' '.join(str(error).split())}") from None


def _candidates(text: bytes, *, lines: bool) -> Iterator[Any]:
    """What may be a list of steps: a file's own list, or what is called `schedule`."""
    for document in text.splitlines() if lines else [text]:
        data = msgspec.json.decode(document)
        if isinstance(data, list):
            yield data
        elif isinstance(data, dict) and EVENT in data:
            yield data[EVENT]
        elif isinstance(data, dict) and data.get("name") == EVENT:
            yield data["fields"]["steps"]


def as_plain(schedule: tuple[Step, ...]) -> list[dict[str, Any]]:
    """The schedule as it stands in files."""
    return [dict(msgspec.to_builtins(step)) for step in schedule]
