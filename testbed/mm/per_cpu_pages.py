"""Per-cpu page lists (`struct per_cpu_pages`): single pages taken from a zone, and given back, a batch at a time.

Pages on the list do not count as free, so the watermarks do not see them; yet whoever takes one must pass the watermark
test first. A host of this model has one CPU, and so one list for each zone.
"""

from __future__ import annotations

from collections.abc import Sequence

from testbed.mm.page import Page
from testbed.rules import Rules

PCP_BATCH_SCALE_MAX = 5
"""CONFIG_PCP_BATCH_SCALE_MAX: a list gives back at most 2**5 batches at once."""


class PerCpuPages:
    """The list of one zone of `managed` pages: hot pages at its end, the next to be given back at its beginning.

    From 5.14 it may hold as much as the low watermark, except while kswapd balances its zone (`reclaim_active`), and
    gives back twice as much each time that nothing was taken from it in between (`free_factor`).
    """

    __slots__ = ("_by_low_watermark", "_high", "_least_high", "batch", "free_factor", "pages", "reclaim_active")

    def __init__(self, managed: int, rules: Rules) -> None:
        size = zone_batchsize(managed, rules)
        self.batch = max(1, size)
        self._by_low_watermark = rules.pcp_high_is_low_watermark
        self._least_high = rules.pcp_high_batches * (self.batch if self._by_low_watermark else size)
        self._high = self._least_high
        self.reclaim_active = False
        self.free_factor = 0
        self.pages: list[Page] = []

    @property
    def high(self) -> int:
        """`nr_pcp_high`: with so many pages the list gives some back."""
        return self._least_high if self.reclaim_active else self._high

    def set_low_watermark(self, low: int) -> None:
        """`zone_highsize`, in pages."""
        if self._by_low_watermark:
            self._high = max(low, self._least_high)

    def add(self, pages: Sequence[Page]) -> list[Page]:
        """`free_unref_page_commit` of one page after the other; those that go back, longest on the list first."""
        count, high, coming, surplus = len(self.pages), self.high, len(pages), 0
        self.pages += pages
        while coming and count + coming >= high:
            step = min(max(1, high - count), coming)
            coming -= step
            count += step
            given = min(self._nr_pcp_free(high), count)
            count -= given
            surplus += given
        given_back = self.pages[:surplus]
        del self.pages[:surplus]
        return given_back

    def _nr_pcp_free(self, high: int) -> int:
        batch = self.batch
        if not self._by_low_watermark:
            return batch
        scaled, most = batch << self.free_factor, high - batch
        if scaled < most and self.free_factor < PCP_BATCH_SCALE_MAX:
            self.free_factor += 1
        return min(max(scaled, batch), most)


def zone_batchsize(managed: int, rules: Rules) -> int:
    """`zone_batchsize`: a quarter of a thousandth of the zone, at most, rounded to one less than a power of two.

    Small zones get 0: their lists are always empty.
    """
    batch = max(1, min(managed // 1024, rules.pcp_batch_ceiling) // 4)
    return (1 << (batch + batch // 2).bit_length() - 1) - 1
