"""The fuzzer's targets with hypothesis in place of the fuzzer: whole conversations, cut, spliced and flipped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.fuzzing.seeds import SEEDS
from scripts.fuzzing.targets import TARGETS


@st.composite
def spoilt(draw: st.DrawFn, target: str) -> bytes:
    """A conversation with some of its bytes replaced by others, of any number."""
    data = draw(st.sampled_from(SEEDS[target]))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=12)) + data[at + draw(st.integers(0, 12)) :]
    return bytes([draw(st.integers(0, 255))]) + data


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    for seed in SEEDS[target]:
        for portions in (b"\0", b"\1", b"\xff"):
            TARGETS[target](portions + seed)


@pytest.mark.parametrize("target", TARGETS)
@given(st.data())
def test_spoilt_conversations(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(spoilt(target)))


@pytest.mark.parametrize("target", TARGETS)
@given(st.binary(max_size=400))
def test_any_bytes(target: str, data: bytes) -> None:
    TARGETS[target](data)
