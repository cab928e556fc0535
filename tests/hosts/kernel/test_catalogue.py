"""Which kernels are found, which one is chosen, and what is said when there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.hosts.kernel import catalogue
from testbed.hosts.kernel.image import ABOUT, identify
from testbed.hosts.kernel.recipe import CHANGES, Recipe, recipe
from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError
from testbed.patches import PATCHES
from tests.hosts.kernel.fakes import kernel, program

ALL = frozenset(PATCHES)


class Machine:
    """A machine with only the kernels that a test puts there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def package(self) -> Path:
        return kernel(self.directory / "bin" / "linux.uml", version="6.1.1")

    def built(self, slab: SlabAllocator, **changed: str) -> Path:
        made: Recipe = replace(recipe("6.1.0-1", "gcc", slab), **changed)  # type: ignore[arg-type]
        path = kernel(self.directory / "testbed" / "kernels" / made.name / "linux", slab)
        path.with_name(ABOUT).write_text(json.dumps(made.about()))
        return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Machine(tmp_path)


def test_the_packaged_kernel_serves_when_all_patches_are_on(machine: Machine) -> None:
    path = machine.package()
    image, parameters = catalogue.choose("slub", ALL)
    assert (image.path, image.built, image.changes, parameters) == (path, False, (), ())


def test_a_built_kernel_is_preferred_and_says_what_is_ours(machine: Machine) -> None:
    machine.package()
    built = machine.built("slub")
    image, parameters = catalogue.choose("slub", ALL)
    assert (image.path, image.built, image.changes) == (built, True, CHANGES)
    assert parameters == ("testbed.highatomic_reserve=0",)
    assert image.identity(parameters) == {
        "version": "6.1.0-fake",
        "config_hash": identify(built).config_hash,
        "slab": "slub",
        "built": True,
        "changes": list(CHANGES),
        "boot_parameters": ["testbed.highatomic_reserve=0"],
        "path": str(built),
    }


def test_the_slab_allocator_chooses_the_kernel(machine: Machine) -> None:
    slabs: tuple[SlabAllocator, ...] = ("slub", "slab")
    paths = {slab: machine.built(slab) for slab in slabs}
    for slab in slabs:
        assert catalogue.choose(slab, ALL - {15})[0].path == paths[slab]
    hashes = {image.config_hash for image in catalogue.images()}
    assert len(hashes) == 2


@pytest.mark.parametrize("changed", [{"patch": "0"}, {"configuration": "0"}])
def test_a_kernel_made_with_another_patch_or_configuration_is_passed_over(
    machine: Machine, changed: dict[str, str]
) -> None:
    machine.built("slub", **changed)
    assert catalogue.images() == []


@pytest.mark.parametrize(
    ("packaged", "slab", "patches", "words"),
    [
        (False, "slub", ALL, "apt install user-mode-linux, or testbed kernel build"),
        (True, "slab", ALL, "testbed kernel build --slab slab"),
        (True, "slub", ALL - {15}, "packaged kernel cannot undo patch 15: testbed kernel build --slab slub"),
        (True, "slub", frozenset(), "testbed kernel build --slab slub"),
        (True, "slub", ALL - {6}, "one memory node"),
    ],
)
def test_what_is_missing_is_said_in_one_line_with_how_to_get_it(
    machine: Machine, packaged: bool, slab: SlabAllocator, patches: frozenset[int], words: str
) -> None:
    if packaged:
        machine.package()
    with pytest.raises(LabError) as caught:
        catalogue.choose(slab, patches)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_program_that_is_no_kernel_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="not a User Mode Linux kernel"):
        identify(program(tmp_path / "linux", "exit 3"))


@pytest.mark.parametrize("value", ["", "relative"])
def test_without_a_cache_directory_of_its_own_it_is_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalogue.cache_directory() == tmp_path / ".cache" / "testbed" / "kernels"
