"""The lines of a run's `events.jsonl` and `counters.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec


class Line(msgspec.Struct):
    """An event, which has a `name`, or a sample, which has `counters`; `time` is in seconds."""

    time: float
    host: str
    name: str = ""
    counters: dict[str, int] = {}


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of one of these files. Raises OSError, msgspec.MsgspecError."""
    for line in path.read_bytes().splitlines():
        yield msgspec.json.decode(line, type=Line)
