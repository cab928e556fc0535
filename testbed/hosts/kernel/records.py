"""What the guest says on its control line: records, a head "NAME LENGTH" and a newline, then LENGTH bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that the guest said."""

    name: str
    text: str


class RecordReader:
    """Cuts a stream of bytes into records."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that `data` completes. Raises ValueError for a head that is none."""
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            name, _, length = self._rest[:end].decode("ascii", "replace").rpartition(" ")
            if not name or not length.isdigit():
                raise ValueError(f"the guest said {self._rest[:80]!r}, which is no record")
            start, after = end + 1, end + 1 + int(length)
            if len(self._rest) < after:
                return
            text = self._rest[start:after].decode("utf-8", "replace")
            self._rest = self._rest[after:]
            yield Record(name, text)
