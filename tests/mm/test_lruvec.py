"""How far each list of a zone is scanned."""

from __future__ import annotations

import pytest

from testbed.mm.lruvec import Lruvec, ScanCount
from testbed.mm.page import Page
from testbed.mm.watermarks import PAGE_SIZE, Watermarks
from testbed.mm.zone import Zone

MARKS = Watermarks(400, 100, 125, 150)


def lists(*, active: int = 0, inactive: int = 0, file: int = 0, free: int = 1) -> Lruvec:
    zone = Zone(memoryview(bytearray((active + inactive + file + free) * PAGE_SIZE)), MARKS)
    for pages, count in ((zone.active_anon, active), (zone.inactive_anon, inactive), (zone.file, file)):
        pages.update(dict.fromkeys(zone.free.take(count)))
    return Lruvec(zone)


@pytest.mark.parametrize(
    ("priority", "swap_full", "force_scan", "expected"),
    [
        (12, False, False, (0, 0, 0)),
        (12, False, True, (32, 32, 0)),
        (4, False, False, (37, 18, 0)),
        (1, False, False, (300, 150, 0)),
        (0, False, False, (600, 300, 20)),
        (0, True, False, (0, 0, 20)),
        (1, True, False, (0, 0, 10)),
        (12, True, True, (0, 0, 20)),
    ],
)
def test_priority_full_swap_and_force(
    priority: int, swap_full: bool, force_scan: bool, expected: tuple[int, int, int]
) -> None:
    lruvec = lists(active=600, inactive=300, file=20, free=80)
    assert lruvec.get_scan_count(priority, swap_full=swap_full, force_scan=force_scan) == ScanCount(*expected)


@pytest.mark.parametrize(("priority", "only_cache"), [(7, True), (8, False)])
def test_in_cache_trim_mode_memory_is_left_alone_while_there_is_cache_enough(priority: int, only_cache: bool) -> None:
    lruvec = lists(active=400, inactive=400, file=200)
    count = lruvec.get_scan_count(priority, swap_full=False, force_scan=False, cache_trim_mode=True)
    assert (count == ScanCount(0, 0, 1)) == only_cache


def test_page_cache_is_scanned_more_than_memory_and_more_so_if_that_is_in_use() -> None:
    lruvec = lists(active=400, inactive=400, file=800)
    fresh = lruvec.get_scan_count(1, swap_full=False, force_scan=False)
    assert fresh.file > fresh.active_anon + fresh.inactive_anon > 0
    lruvec.recent_scanned[0] = lruvec.recent_rotated[0] = 150
    lruvec.recent_scanned[1] = 150
    used = lruvec.get_scan_count(1, swap_full=False, force_scan=False)
    assert used.file > fresh.file
    assert used.inactive_anon < fresh.inactive_anon


class Large:
    """As much of a zone as the ratio needs, without its memory."""

    def __init__(self, managed: int) -> None:
        self.managed = managed
        self.active_anon: dict[Page, None] = {}
        self.inactive_anon: dict[Page, None] = {}


@pytest.mark.parametrize(("mib", "ratio"), [(64, 1), (1023, 1), (1024, 3), (2048, 4), (4096, 6), (16384, 12)])
def test_the_inactive_ratio_grows_with_the_zone(mib: int, ratio: int) -> None:
    assert Lruvec(Large(mib << 8)).inactive_ratio == ratio  # type: ignore[arg-type]


@pytest.mark.parametrize(("active", "inactive", "low"), [(10, 10, False), (11, 10, True), (0, 0, False)])
def test_inactive_is_low_when_there_are_more_active_pages(active: int, inactive: int, low: bool) -> None:
    assert lists(active=active, inactive=inactive).inactive_anon_is_low() == low
