"""Which zones a machine has, how they share min_free_kbytes, and what lower ones keep from requests for higher ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.watermarks import SERIES, Watermarks, compute, setup_per_zone_wmarks, zone_watermarks
from testbed.mm.zone_layout import LAYOUTS, ZoneSpan, ZoneType, lowmem_reserve, zone_spans
from tests.mm.zones import DMA, DMA32, HIGHMEM, NORMAL, spans_of

MIB = 256


@pytest.mark.parametrize(
    ("mib", "layout", "nodes", "expected"),
    [
        (64, "normal", 1, [(NORMAL, 0, 64)]),
        (8, "x86_64", 1, [(DMA, 0, 8)]),
        (64, "x86_64", 1, [(DMA, 0, 16), (DMA32, 0, 48)]),
        (6144, "x86_64", 1, [(DMA, 0, 16), (DMA32, 0, 4080), (NORMAL, 0, 2048)]),
        (512, "i386", 1, [(DMA, 0, 16), (NORMAL, 0, 496)]),
        (2048, "i386", 1, [(DMA, 0, 16), (NORMAL, 0, 880), (HIGHMEM, 0, 1152)]),
        (64, "x86_64", 2, [(DMA, 0, 16), (DMA32, 0, 16), (DMA32, 1, 32)]),
        (6144, "x86_64", 2, [(DMA, 0, 16), (DMA32, 0, 3056), (DMA32, 1, 1024), (NORMAL, 1, 2048)]),
    ],
)
def test_zones_by_address(mib: int, layout: str, nodes: int, expected: list[tuple[ZoneType, int, int]]) -> None:
    spans = zone_spans(mib * MIB, layout, nodes)
    assert [(span.kind, span.node, span.pages // MIB) for span in spans] == expected


@given(st.integers(2, 1 << 21), st.sampled_from(sorted(LAYOUTS)), st.integers(1, 2))
def test_zones_cover_memory_without_a_gap(pages: int, layout: str, nodes: int) -> None:
    spans = zone_spans(pages, layout, nodes)
    assert [span.start for span in spans] == [0, *(span.start + span.pages for span in spans[:-1])]
    assert sum(span.pages for span in spans) == pages
    assert {span.node for span in spans} == set(range(nodes))


@pytest.mark.parametrize(("layout", "nodes"), [("vax", 1), ("normal", 0), ("normal", 3)])
def test_a_layout_that_is_not_there_is_refused(layout: str, nodes: int) -> None:
    with pytest.raises(ValueError, match=r"zone layout|memory nodes"):
        zone_spans(16384, layout, nodes)


TWO_GIB = spans_of((DMA, 0, 3976), (DMA32, 0, 519000))


@pytest.mark.parametrize(
    ("span", "lowmem", "series", "expected"),
    [
        (TWO_GIB[0], 522976, "3.6", (11, 13, 16)),
        (TWO_GIB[1], 522976, "3.6", (1436, 1795, 2154)),
        (ZoneSpan(HIGHMEM, 0, 0, 65536), 229376, "3.6", (64, 167, 270)),
        (ZoneSpan(HIGHMEM, 0, 0, 1048576), 229376, "3.6", (128, 1782, 3437)),
        (ZoneSpan(HIGHMEM, 0, 0, 10000), 229376, "3.6", (32, 47, 63)),
        (ZoneSpan(HIGHMEM, 0, 0, 65536), 229376, "6.1", (64, 167, 270)),
        (ZoneSpan(HIGHMEM, 0, 0, 10000), 1048576, "6.1", (32, 42, 52)),
    ],
)
def test_the_watermarks_of_one_zone(span: ZoneSpan, lowmem: int, series: str, expected: tuple[int, int, int]) -> None:
    marks = zone_watermarks(span, lowmem, 5792, SERIES[series])
    assert (marks.min, marks.low, marks.high) == expected


@given(
    st.integers(32 * MIB, 1 << 21),
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(1, 2),
    st.sampled_from(sorted(SERIES)),
)
def test_low_memory_shares_min_free_kbytes(pages: int, layout: str, nodes: int, series: str) -> None:
    spans = zone_spans(pages, layout, nodes)
    marks = setup_per_zone_wmarks(spans, None, SERIES[series])
    low = [mark for mark, span in zip(marks, spans, strict=True) if span.kind < HIGHMEM]
    pages_min = marks[0].min_free_kbytes // 4
    assert pages_min - len(low) < sum(mark.min for mark in low) <= pages_min
    assert all(0 < mark.min < mark.low < mark.high < span.pages for mark, span in zip(marks, spans, strict=True))
    whole = compute(pages, None, SERIES[series], layout, nodes)
    sums = [sum(getattr(mark, name) for mark in low) for name in ("min", "low", "high")]
    assert whole == Watermarks(marks[0].min_free_kbytes, *sums)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        (TWO_GIB, [(0, 2027, 2027, 2027), (0, 0, 0, 0)]),
        (
            spans_of((DMA, 0, 4096), (DMA32, 0, 1044480), (NORMAL, 0, 524288)),
            [(0, 4080, 6128, 6128), (0, 0, 2048, 2048), (0, 0, 0, 0)],
        ),
        (
            spans_of((DMA, 0, 4096), (NORMAL, 0, 225280), (HIGHMEM, 0, 294912)),
            [(0, 0, 880, 2032), (0, 0, 0, 9216), (0, 0, 0, 0)],
        ),
        (spans_of((DMA, 0, 4096), (DMA32, 0, 25600), (DMA32, 1, 51200)), [(0, 100, 100, 100), (0,) * 4, (0,) * 4]),
    ],
)
def test_lowmem_reserve(spans: list[ZoneSpan], expected: list[tuple[int, ...]]) -> None:
    assert [lowmem_reserve(span, spans) for span in spans] == expected
