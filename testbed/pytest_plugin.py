"""For tests that need a network, a privilege or a program: fixtures, markers, and what a failed test leaves to look at.

A test says what it needs, `@pytest.mark.needs("root", "nbdkit")`, and is skipped where something of that is missing,
with its name. What `--testbed-require` lists must be there: its absence is a failure, so that nothing passes because
it was never run. A failed test's report has the directories of its runs, their captures and the end of their events.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from testbed.experiment.capabilities import UnknownCapability, check_name, missing
from testbed.experiment.swap_pair import SwapPair
from testbed.lab.builder import Lab

EVENTS_SHOWN = 20
ALL = "all"
_pairs = pytest.StashKey[list[SwapPair]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup("testbed", "tests that need a network, a privilege or a program")
    group.addoption("--testbed-runs", metavar="DIR", type=Path, help="keep the directories of all runs in DIR")
    group.addoption(
        "--testbed-require",
        metavar="CAP[,CAP]",
        default="",
        help="fail tests that need one of these and do not find it, instead of skipping them; "
        "all: whatever they need; -CAP: but not this one",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse to require what there is not."""
    config.addinivalue_line("markers", "needs(capability, ...): skipped, with the name, where one of them is missing")
    for name in required(config):
        if name != ALL:
            _check(name.removeprefix("-"), "--testbed-require")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse markers that name a capability there is not."""
    for item in items:
        for name in needed(item):
            _check(name, item.nodeid)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test that needs what is missing."""
    for name in needed(item):
        need(item.config, name)


def needed(item: pytest.Item) -> list[str]:
    """The capabilities that a test says it needs."""
    return [name for marker in item.iter_markers("needs") for name in marker.args]


def required(config: pytest.Config) -> list[str]:
    """What --testbed-require lists."""
    return [name for name in config.getoption("testbed_require").split(",") if name]


def need(config: pytest.Config, name: str) -> None:
    """Skip the test, or fail it if this is required, unless the capability is there."""
    reason = missing(name)
    if reason is None:
        return
    listed = required(config)
    if name in listed or (ALL in listed and f"-{name}" not in listed):
        pytest.fail(f"needs {name}, which --testbed-require requires: {reason}", pytrace=False)
    pytest.skip(f"needs {name}: {reason}")


def _check(name: str, where: str) -> None:
    try:
        check_name(name)
    except UnknownCapability as error:
        raise pytest.UsageError(f"{where}: {error}") from None


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A builder of network namespaces and links, which are gone when the test ends."""
    need(request.config, "root")
    with Lab() as made:
        yield made


@pytest.fixture
def swap_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SwapPair:
    """A client that swaps to a server, and a neighbour that may flood it: call it for the Result of a run."""
    return _pair(request, SwapPair(_runs(request, tmp_path_factory), lambda name: need(request.config, name)))


@pytest.fixture
def kernel_host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SwapPair:
    """The same with a real kernel in the client's place."""
    need(request.config, "kernel-host")
    runs = _runs(request, tmp_path_factory)
    return _pair(request, SwapPair(runs, lambda name: need(request.config, name), host="kernel"))


def _pair(request: pytest.FixtureRequest, pair: SwapPair) -> SwapPair:
    request.node.stash.setdefault(_pairs, []).append(pair)
    return pair


def _runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test's runs go: below --testbed-runs if that is given."""
    chosen: Path | None = request.config.getoption("testbed_runs")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.nodeid).strip("-")
    return tmp_path_factory.mktemp("testbed") if chosen is None else chosen.absolute() / name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what a failed test's runs have left: sections for people, properties for junit."""
    report = yield
    if report.failed and report.when == "call":
        for directory in [each for pair in item.stash.get(_pairs, []) for each in pair.directories]:
            attach(item, report, directory)
    return report


def attach(item: pytest.Item, report: pytest.TestReport, directory: Path) -> None:
    """Attach one run: its directory, its captures, and its last events."""
    captures = sorted(directory.glob("capture-*.pcapng"))
    events = directory / "events.jsonl"
    lines = events.read_text().splitlines()[-EVENTS_SHOWN:] if events.exists() else []
    report.sections.append((f"testbed run {directory.name}", "\n".join(map(str, [directory, *captures]))))
    report.sections.append((f"last events of {directory.name}", "\n".join(lines)))
    kept = [("testbed_run", str(directory)), *(("testbed_capture", str(capture)) for capture in captures)]
    item.user_properties.extend(kept)
    report.user_properties.extend(kept)
