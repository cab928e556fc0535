"""The ledger: where every received frame ended, for whom, in what memory, and how much memory was free just then.

Frames that end in the same way for the same socket within one interval share a row, with the lowest and highest
number of free pages at those moments. Totals are kept by the same keys, so that rows and totals can be compared.
"""

from __future__ import annotations

from typing import Any

from testbed.mm.page_freelist import PageFreelists
from testbed.net.dev import Tally
from testbed.net.drop_reason import SITES, DropReason

Key = tuple[int, str, bool]


class Ledger:
    """Counts frames by (DropReason, socket, lies in reserve memory)."""

    def __init__(self, memory: PageFreelists) -> None:
        self._memory = memory
        self.totals: Tally = {}
        self.rows: list[dict[str, Any]] = []
        self._open: dict[Key, list[int]] = {}
        self.nr_free_pages = memory.nr_free_pages
        """Free pages when frames were last entered."""

    def tally(self, counts: Tally) -> None:
        """Enter the frames of one poll."""
        free = self.nr_free_pages = self._memory.nr_free_pages
        totals, interval = self.totals, self._open
        for key, count in counts.items():
            totals[key] = totals.get(key, 0) + count
            row = interval.get(key)
            if row is None:
                interval[key] = [count, free, free]
            else:
                row[0] += count
                row[1] = min(row[1], free)
                row[2] = max(row[2], free)

    def close_interval(self, time: float) -> None:
        """End the interval at `time` (CLOCK_MONOTONIC seconds): its counts become rows."""
        for (reason, socket, pfmemalloc), (count, low, high) in self._open.items():
            name = DropReason(reason)
            self.rows.append(
                {
                    "time": time,
                    "site": SITES[name],
                    "reason": name.name,
                    "socket": socket,
                    "pfmemalloc": pfmemalloc,
                    "frames": count,
                    "nr_free_pages_min": low,
                    "nr_free_pages_max": high,
                }
            )
        self._open.clear()

    def take_rows(self) -> list[dict[str, Any]]:
        """The rows since the last call."""
        rows, self.rows = self.rows, []
        return rows

    def count(
        self, *, reason: DropReason | None = None, socket: str | None = None, pfmemalloc: bool | None = None
    ) -> int:
        """Frames in all, of those that match what is given."""
        return sum(
            frames
            for (ended, name, reserve), frames in self.totals.items()
            if (reason is None or ended == reason)
            and (socket is None or name == socket)
            and (pfmemalloc is None or reserve == pfmemalloc)
        )

    def dropped(self) -> dict[str, int]:
        """Dropped frames by reason."""
        return {
            reason.name: count
            for reason in DropReason
            if reason not in (DropReason.DELIVERED, DropReason.TX_NOMEM) and (count := self.count(reason=reason))
        }
