"""Tests that need a privilege or a program, and what it means when those are not there.

Skips are the plugin's (testbed/pytest_plugin.py); `root`, `program(name)` and `kernel_image(slab)` are short for what
they need of it. On anybody's machine such a test is skipped. With TESTBED_REQUIRE_ALL=1 (CI) that is a failure, and so
is a skip by the test itself, so that nothing passes because it was never run; what no CI can have is listed here by
name.

Tests may run on several workers (scripts/test has two). Those on sockets follow each other on one of them, so that what
is judged by the time it takes shares the machine with computing at most.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

from testbed.experiment.capabilities import PACKAGES, PROGRAM

pytest_plugins = ("testbed.pytest_plugin",)

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")

ALLOWED_SKIPS = {
    "sch_netem": "not every kernel has it, and none can be given it from a container",
    "/dev/nbd0": "a container has no nbd block devices, and loading the module changes the machine for everybody",
}
"""Words in a skip's reason, and why such a skip is no failure even where all tests are required."""
NOT_REQUIRED = {
    "nbd-device": "as above",
    "netem": "a kernel may be built without it",
}
"""Capabilities that CI may lack, and why."""

ON_SOCKETS = (
    "tests/integration/",
    "tests/lab/",
    "tests/hosts/",
    "tests/nbd/test_interop.py",
    "tests/experiment/test_pytest_plugin.py",
    "tests/experiment/test_kernel_host_refusals.py",
)
"""How the names of tests begin that run one at a time."""
BY_ITSELF = "tests/lab/test_netem_in_uml.py"
"""A machine of its own, that nothing else is measured against."""


def required_of_all() -> bool:
    """Whether every test must run."""
    return os.environ.get("TESTBED_REQUIRE_ALL") == "1"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and all it starts
    if required_of_all():
        config.option.testbed_require = ",".join(["all", *(f"-{name}" for name in NOT_REQUIRED)])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.needs("root"))
        for marker in item.iter_markers("program"):
            names = [name if name in PACKAGES else f"{PROGRAM}{name}" for name in marker.args]
            item.add_marker(pytest.mark.needs(*names))
        for marker in item.iter_markers("kernel_image"):
            item.add_marker(pytest.mark.needs(*(f"kernel-{slab}" for slab in marker.args)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files are handed to workers whole, and all on sockets to the same. (`--dist loadgroup` groups nothing here:
    pytest-xdist 3.8 sets `Item._nodeid`, which pytest 9.2 does not have.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneRunAtATime(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "sockets" if file.startswith(ON_SOCKETS) and file != BY_ITSELF else file

    return OneRunAtATime(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if required_of_all() and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("needs"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        allowed = [*ALLOWED_SKIPS, *(f"needs {name}: " for name in NOT_REQUIRED)]
        if not any(words in reason for words in allowed):
            report.outcome = "failed"
            report.longrepr = f"skipped ({reason}), but TESTBED_REQUIRE_ALL=1 allows no skip of this test"
    return report
