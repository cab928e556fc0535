"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.size import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("4K", 4096), ("64M", 64 << 20), (" 2g ", 2 << 30), ("3TiB", 3 << 40), ("7MB", 7 << 20)],
)
def test_parse(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1M", "1.5M", "64 M", "64Q", "0x10", "1_000", "٣", "64MiBB", "4\N{KELVIN SIGN}"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 70))
def test_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("size", "text"), [(0, "0"), (1536, "1536"), (64 << 20, "64M"), (1 << 50, "1P")])
def test_format(size: int, text: str) -> None:
    assert format_size(size) == text


def test_no_size_is_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_size(-1)
