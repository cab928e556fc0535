"""Records arrive whole, however the stream is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.hosts.kernel.records import Record, RecordReader

RECORDS = st.lists(
    st.builds(
        Record,
        st.from_regex(r"[a-z0-9_]{1,16}", fullmatch=True),
        st.text(st.characters(codec="ascii"), max_size=200),
    ),
    max_size=8,
)


@given(RECORDS, st.lists(st.integers(0, 2000), max_size=20))
def test_any_cut_gives_the_same_records(records: list[Record], cuts: list[int]) -> None:
    stream = b"".join(f"{each.name} {len(each.text)}\n{each.text}".encode() for each in records)
    reader = RecordReader()
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    heard = [record for start, end in pairwise(places) for record in reader.feed(stream[start:end])]
    assert heard == records


@pytest.mark.parametrize("head", ["nonsense\n", "name many\n", " 3\nabc"])
def test_what_is_no_record_is_said(head: str) -> None:
    with pytest.raises(ValueError, match="no record"):
        list(RecordReader().feed(head.encode()))
