"""An export as slow as a disk: reads and writes take turns at so many bytes a second, on top of any other export.

With it, how fast swap is does not depend on how fast this machine happens to be, and neither does a scenario's outcome.
"""

from __future__ import annotations

import time

from testbed.nbd.export import Export
from testbed.nbd.replies import Extent

SHORTEST_SLEEP_S = 0.001


class PacedExport(Export):
    """`export`, with at most `bandwidth` bytes read and written a second."""

    def __init__(self, export: Export, bandwidth: int) -> None:
        super().__init__(export.size, export.read_only, export.description, export.block_size)
        self._export = export
        self._bandwidth = bandwidth
        self._busy_until = 0.0

    def _pace(self, length: int) -> None:
        now = time.monotonic()
        self._busy_until = max(self._busy_until, now) + length / self._bandwidth
        if self._busy_until - now >= SHORTEST_SLEEP_S:
            time.sleep(self._busy_until - now)

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """As the export's, once the disk has got round to it."""
        self._pace(length)
        return self._export.read(offset, length)

    def landing(self, offset: int, length: int) -> memoryview:
        """Where a WRITE's payload is put first."""
        return self._export.landing(offset, length)

    def commit(self, offset: int, data: memoryview) -> None:
        """As the export's, once the disk has got round to it."""
        self._pace(len(data))
        self._export.commit(offset, data)

    def flush(self) -> None:
        """As the export's."""
        self._export.flush()

    def trim(self, offset: int, length: int) -> None:
        """As the export's."""
        self._export.trim(offset, length)

    def write_zeroes(self, offset: int, length: int, *, hole: bool, fast: bool) -> None:
        """As the export's: zeroes are not moved."""
        self._export.write_zeroes(offset, length, hole=hole, fast=fast)

    def cache(self, offset: int, length: int) -> None:
        """As the export's."""
        self._export.cache(offset, length)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """As the export's."""
        return self._export.extents(offset, length)

    def close(self) -> None:
        """As the export's."""
        self._export.close()
