"""The table of switches, the kernel's patch it describes, and the boot parameters that follow from it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.hosts.kernel.recipe import CHANGES, PATCH
from testbed.hosts.kernel.switches import ALWAYS_OFF, CANNOT_UNDO, SWITCHES, boot_parameters, refusal
from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError
from testbed.patches import PATCHES, Switches

ALL = frozenset(PATCHES)
ROW = re.compile(r"^\+\tSWITCH\((\d+), (\w+), (\w+)\)", re.MULTILINE)
FIXED = tuple(switch.parameter for switch in ALWAYS_OFF)


def undone(parameters: tuple[str, ...]) -> set[int | None]:
    return {switch.patch for switch in SWITCHES if switch.parameter in parameters and switch not in ALWAYS_OFF}


def test_the_kernel_has_the_switches_of_the_table() -> None:
    rows = {name: int(number) or None for number, name, _ in ROW.findall(PATCH.read_text())}
    assert rows == {switch.name: switch.patch for switch in SWITCHES}
    assert CHANGES[0].startswith(f"{len(SWITCHES)} switches")


@pytest.mark.parametrize("constant", [row[2] for row in ROW.findall(PATCH.read_text())])
def test_the_kernel_asks_for_each_switch(constant: str) -> None:
    added = "\n".join(line for line in PATCH.read_text().splitlines() if line.startswith("+"))
    assert f"testbed_has(TESTBED_{constant})" in added


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_the_patch_explains_each_switch_and_is_made_where_the_table_says(switch: object) -> None:
    from testbed.hosts.kernel.switches import Switch

    assert isinstance(switch, Switch)
    text = PATCH.read_text()
    head, _, changes = text.partition("\n--- ")
    assert switch.name in head
    for file in re.findall(r"[\w/]+\.[ch]\b", switch.where):
        assert f"+++ b/{file}" in changes


def test_every_patch_can_be_undone_or_there_is_a_reason() -> None:
    undoable = {switch.patch for switch in SWITCHES if switch.patch}
    assert undoable | set(CANNOT_UNDO) == ALL
    assert not undoable & set(CANNOT_UNDO)


def test_a_patch_with_one_switch_has_the_name_it_has_in_the_model() -> None:
    flags = [field.name for field in fields(Switches)]
    by_patch: dict[int, list[str]] = {}
    for switch in SWITCHES:
        if switch.patch:
            by_patch.setdefault(switch.patch, []).append(switch.name)
    assert {number: [flags[number - 1]] for number in by_patch if number != 9} == {
        number: names for number, names in by_patch.items() if number != 9
    }


@pytest.mark.parametrize("slab", ["slub", "slab"])
def test_with_all_patches_on_only_what_is_no_patch_is_off(slab: SlabAllocator) -> None:
    assert boot_parameters(ALL, slab) == FIXED == ("testbed.highatomic_reserve=0",)


@pytest.mark.parametrize(("slab", "idle"), [("slub", 13), ("slab", 3)])
def test_before_the_series_all_that_the_kernel_has_is_off(slab: SlabAllocator, idle: int) -> None:
    assert undone(boot_parameters(frozenset(), slab)) == ALL - set(CANNOT_UNDO) - {idle}


@pytest.mark.parametrize(
    ("patch", "names"),
    [
        (8, ["sock_memalloc"]),
        (9, ["skb_alloc_rx", "kmalloc_reserve", "sk_filter_pfmemalloc"]),
        (15, ["throttle_direct_reclaim"]),
    ],
)
def test_one_patch_off(patch: int, names: list[str]) -> None:
    assert boot_parameters(ALL - {patch}, "slub") == (*(f"testbed.{name}=0" for name in names), *FIXED)


@given(st.frozensets(st.sampled_from(sorted(ALL))), st.sampled_from(["slub", "slab"]))
def test_exactly_the_patches_that_are_off_are_undone_or_it_is_refused(off: frozenset[int], slab: SlabAllocator) -> None:
    impossible = off & (set(CANNOT_UNDO) | {13 if slab == "slub" else 3})
    if impossible and off != ALL:
        with pytest.raises(LabError, match=f"^patch {min(impossible)} "):
            boot_parameters(ALL - off, slab)
    else:
        assert undone(boot_parameters(ALL - off, slab)) == off - impossible


@pytest.mark.parametrize(
    ("patch", "words"),
    [(1, "one processor"), (6, "one memory node"), (11, "netdev_alloc_page"), (13, "--slab slab"), (3, "--slab slub")],
)
def test_a_refusal_is_one_line_with_the_reason(patch: int, words: str) -> None:
    assert words in refusal(patch)
    assert "\n" not in refusal(patch)
