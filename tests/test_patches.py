"""Choosing patches: what is refused, and with what advice."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.patches import (
    ALWAYS_ACTING,
    PATCHES,
    PRESETS,
    WITHOUT_BASE,
    PatchError,
    Switches,
    check_acting,
    enabled,
    with_bases,
    with_dependents,
    without_base,
)

IDLE = {number for number, patch in PATCHES.items() if patch.acts_on}
ACTIVE = sorted(set(PATCHES) - IDLE)


def refusal(without: set[int], force: bool = False) -> str | None:
    """The message, or None if the choice is accepted."""
    try:
        enabled(without, force)
    except PatchError as error:
        return str(error)
    return None


def test_the_series_has_sixteen_patches_that_build_on_each_other_only() -> None:
    assert sorted(PATCHES) == list(range(1, 17))
    assert all(patch.depends_on <= set(PATCHES) - {number} for number, patch in PATCHES.items())


def test_presets_are_all_and_nothing() -> None:
    assert all(preset.patches == enabled(()) for name, preset in PRESETS.items() if name != "vanilla")
    assert enabled(PATCHES) == PRESETS["vanilla"].patches == frozenset()


@pytest.mark.parametrize("number", [0, -1, 17])
def test_an_unknown_patch_is_refused(number: int) -> None:
    assert str(number) in (refusal({number}) or "")


@pytest.mark.parametrize("number", sorted(IDLE))
def test_a_patch_that_cannot_act_is_refused_even_by_force(number: int) -> None:
    on = enabled({number})
    for force in (False, True):
        with pytest.raises(PatchError, match=f"patch {number} acts only on {PATCHES[number].acts_on}, which no client"):
            check_acting(on, ALWAYS_ACTING, force)
        check_acting(on, ALWAYS_ACTING | {number}, force)


def test_without_any_patch_it_does_not_matter_which_could_act() -> None:
    check_acting(frozenset(), ALWAYS_ACTING)


def test_a_patch_that_can_act_needs_its_base_like_any_other() -> None:
    on, slub = enabled({2, 3}), ALWAYS_ACTING | {3}
    check_acting(on, slub)
    with pytest.raises(PatchError, match=r"patch 3 builds on patch 2, .* use --without 2,3, or"):
        check_acting(enabled({2}), slub)
    check_acting(enabled({2}), ALWAYS_ACTING | {13}, force=True)
    with pytest.raises(PatchError, match=r"patch 10 builds on patch 2, .* use --without 2,3,10, or"):
        check_acting(on, slub | {10})
    check_acting(on, slub | {10}, force=True)
    check_acting(on - {10}, slub | {10})


@pytest.mark.parametrize(
    ("without", "base", "advice"),
    [
        ({4}, 4, {4, 8, 9, 14}),
        ({5}, 5, {5, 12}),
        ({7}, 7, {7, 8, 9, 14}),
        ({8}, 8, {8, 9, 14}),
        ({15}, 15, {15, 16}),
    ],
)
def test_a_patch_whose_base_is_off_is_refused_with_advice(without: set[int], base: int, advice: set[int]) -> None:
    message = refusal(without)
    assert message is not None
    assert f"builds on patch {base}," in message
    assert {int(number) for number in re.findall(r"\d+", message.split("--without")[1])} == advice


@pytest.mark.parametrize("number", [2, 3, 9, 12, 14, 16])
def test_a_patch_that_nothing_builds_on_can_go_alone(number: int) -> None:
    assert enabled([number]) == frozenset(PATCHES) - {number}


def test_the_patches_named_really_build_on_the_base_named() -> None:
    for without in ({2, 4}, {5, 15}, {8, 2}):
        message = refusal(without)
        assert message is not None
        names, base = re.match(r"patch ([\d, ]+) builds on patch (\d+)", message).groups()  # type: ignore[union-attr]
        assert all(int(base) in PATCHES[int(name)].depends_on for name in names.split(","))


@given(st.sets(st.sampled_from(ACTIVE)))
def test_advice_is_accepted_and_messages_are_one_line(without: set[int]) -> None:
    message = refusal(without)
    if message is None:
        on = enabled(without)
        assert on == frozenset(PATCHES) - without
        assert not any(PATCHES[number].depends_on & without for number in on - IDLE)
    else:
        assert "\n" not in message
        advice = {int(number) for number in re.findall(r"\d+", message.split("--without")[1])}
        assert advice > without
        assert refusal(advice) is None


@given(st.sets(st.sampled_from(ACTIVE)))
def test_force_leaves_everything_else_on(without: set[int]) -> None:
    assert enabled(without, force=True) == frozenset(PATCHES) - without


def test_what_a_patch_does_without_its_base_is_written_down_for_each() -> None:
    assert set(WITHOUT_BASE) == {(number, base) for number, patch in PATCHES.items() for base in patch.depends_on}


@given(st.sets(st.sampled_from(sorted(PATCHES))))
def test_closures_are_the_smallest_that_miss_nothing(numbers: set[int]) -> None:
    down, up = with_bases(numbers), with_dependents(numbers)
    assert numbers <= down
    assert numbers <= up
    assert without_base(down) == without_base(frozenset(PATCHES) - up) == []
    assert with_dependents(frozenset(PATCHES) - down) == frozenset(PATCHES) - down, "nothing left out is needed"
    for extra in down - numbers:
        assert without_base(down - {extra}), "each patch that was added is needed by another"


@given(st.sets(st.sampled_from(sorted(PATCHES))))
def test_each_patch_without_its_base_is_named(off: set[int]) -> None:
    on = frozenset(PATCHES) - off
    for acting in (frozenset(PATCHES), ALWAYS_ACTING):
        named = {int(re.findall(r"\d+", line)[0]) for line in without_base(on, acting)}
        assert named == {number for number in on & acting if PATCHES[number].depends_on & off}


@pytest.mark.parametrize("number", sorted(PATCHES))
def test_each_patch_has_its_own_switch(number: int) -> None:
    switches = Switches.of({number})
    names = [item.name for item in fields(Switches) if item.name != "rules"]
    assert [name for name in names if getattr(switches, name)] == [names[number - 1]]


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (2, "slab_pfmemalloc"),
        (3, "slub_unchecked_fast_path"),
        (4, "gfp_memalloc"),
        (5, "softirq_pf_memalloc"),
        (7, "sk_allocation"),
        (8, "sock_memalloc"),
        (9, "skb_pfmemalloc"),
        (12, "receive_pf_memalloc"),
        (14, "nbd_memalloc"),
        (15, "throttle_direct_reclaim"),
        (16, "count_throttle"),
    ],
)
def test_the_switch_is_named_after_what_the_patch_changes(number: int, name: str) -> None:
    assert getattr(Switches.of({number}), name)
    assert not getattr(Switches.of(set(PATCHES) - {number}), name)


def test_switches_default_to_the_whole_series() -> None:
    assert Switches.of(PATCHES) == Switches()
