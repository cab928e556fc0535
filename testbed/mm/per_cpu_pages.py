"""Per-cpu page lists (`struct per_cpu_pages`): single pages taken from a zone, and given back, a batch at a time.

Pages on the list do not count as free, so the watermarks do not see them; yet whoever takes one must pass the watermark
test first. A host of this model has one CPU, and so one list for each zone.
"""

from __future__ import annotations

from testbed.mm.page import Page
from testbed.rules import Rules


class PerCpuPages:
    """The list of one zone of `managed` pages: hot pages at its end, the next to be given back at its beginning."""

    __slots__ = ("batch", "high", "pages")

    def __init__(self, managed: int, rules: Rules) -> None:
        size = zone_batchsize(managed, rules)
        self.batch = max(1, size)
        self.high = rules.pcp_high_batches * size
        self.pages: list[Page] = []

    def surplus(self) -> int:
        """How many pages go back once the list has reached `high`: whole batches, until it is below that again."""
        batches = -(-(len(self.pages) - self.high + 1) // self.batch)
        return min(batches * self.batch, len(self.pages))


def zone_batchsize(managed: int, rules: Rules) -> int:
    """`zone_batchsize`: a quarter of a thousandth of the zone, at most, rounded to one less than a power of two.

    Small zones get 0: their lists are always empty.
    """
    batch = max(1, min(managed // 1024, rules.pcp_batch_ceiling) // 4)
    return (1 << (batch + batch // 2).bit_length() - 1) - 1
