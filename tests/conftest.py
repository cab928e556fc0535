"""Tests that need a privilege or a program, and what it means when those are not there.

On anybody's machine such a test is skipped. With TESTBED_REQUIRE_ALL=1 (CI) a skip of a test marked `root`, `program`
or `kernel_image` is a failure, so that nothing passes because it was never run; what no CI can have is listed here by
name.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
from collections.abc import Generator

import pytest
from hypothesis import settings

from testbed.hosts.kernel.catalogue import images

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")

ALLOWED_SKIPS = {
    "/dev/nbd0": "a container has no nbd block devices, and loading the module changes the machine for everybody",
}
"""Words in a skip's reason, and why such a skip is no failure even where all tests are required."""

CLONE_NEWNET = 0x40000000
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


@functools.cache
def can_make_namespaces() -> bool:
    """Whether a child of ours can make a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        os._exit(0 if libc.unshare(CLONE_NEWNET) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@functools.cache
def built_kernels() -> frozenset[str]:
    """The slab allocators for which there is a kernel that we built."""
    return frozenset(image.slab for image in images() if image.built)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and not can_make_namespaces():
        pytest.skip("needs root: run it with sudo")
    for marker in item.iter_markers("program"):
        for name in marker.args:
            if shutil.which(name, path=SEARCH_PATH) is None:
                pytest.skip(f"needs the program {name}: install it")
    for marker in item.iter_markers("kernel_image"):
        for slab in marker.args:
            if slab not in built_kernels():
                pytest.skip(f"needs a built kernel with {slab.upper()}: testbed kernel build --slab {slab}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        os.environ.get("TESTBED_REQUIRE_ALL") == "1"
        and report.skipped
        and not hasattr(report, "wasxfail")
        and any(item.get_closest_marker(name) for name in ("root", "program", "kernel_image"))
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(words in reason for words in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped ({reason}), but TESTBED_REQUIRE_ALL=1 allows no skip of this test"
    return report
