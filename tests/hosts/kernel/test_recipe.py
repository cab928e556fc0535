"""What makes a kernel another kernel, and what it is configured with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.hosts.kernel.recipe import Recipe, configuration, is_current, recipe

BASE = recipe("6.1.192-2", "gcc 12.2.0", "slub")


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, source="6.1.193-1"),
        replace(BASE, compiler="gcc 13"),
        replace(BASE, slab="slab"),
        replace(BASE, patch="0"),
        replace(BASE, configuration="0"),
    ],
)
def test_whatever_differs_names_another_place(other: Recipe) -> None:
    assert other.name != BASE.name


def test_the_same_recipe_names_the_same_place() -> None:
    assert recipe("6.1.192-2", "gcc 12.2.0", "slub").name == BASE.name
    assert BASE.name.startswith("slub-")


def test_each_slab_allocator_has_its_line_and_all_else_is_shared() -> None:
    slub, slab = (set(configuration(kind).splitlines()) for kind in ("slub", "slab"))
    assert slub ^ slab == {"CONFIG_SLUB=y", "CONFIG_SLAB=y"}
    for option in ("SWAP", "BLK_DEV_NBD", "UML_NET_VECTOR", "HOSTFS", "MCONSOLE", "MAGIC_SYSRQ"):
        assert f"CONFIG_{option}=y" in slub


@pytest.mark.parametrize(("changed", "current"), [({}, True), ({"patch": "0"}, False), ({"configuration": "0"}, False)])
def test_a_kernel_of_another_version_of_ours_is_not_current(
    tmp_path: Path, changed: dict[str, str], current: bool
) -> None:
    about = tmp_path / "about.json"
    about.write_text(json.dumps({**BASE.about(), **changed}))
    assert is_current(about) is current
