"""Namespaces for the tests, gone again when each test ends; skips what this user may not do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.lab.link import add_veth, set_up, wait_up
from testbed.lab.namespace import NetworkNamespace, wait_gone

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def missing_capability() -> str | None:
    status = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    held = int(status, 16)
    return next((name for name, bit in CAPABILITIES.items() if not held >> bit & 1), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = missing_capability()
    for item in items:
        if missing and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=f"needs {missing}"))


class Lab:
    """Makes namespaces for one test."""

    def __init__(self) -> None:
        self.namespaces: list[NetworkNamespace] = []

    def namespace(self) -> NetworkNamespace:
        self.namespaces.append(NetworkNamespace.create())
        return self.namespaces[-1]


@dataclass
class Wire:
    """Two namespaces joined by a veth whose ends are both called eth0 and up, without addresses."""

    a: NetworkNamespace
    b: NetworkNamespace


@dataclass
class Path3:
    """Hosts a and b (eth0 each) with a middle namespace between them (left and right), all up, not joined inside."""

    a: NetworkNamespace
    middle: NetworkNamespace
    b: NetworkNamespace


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    wait_gone(made.namespaces)


@pytest.fixture
def wire(lab: Lab) -> Wire:
    pair = Wire(lab.namespace(), lab.namespace())
    add_veth((pair.a, "eth0"), (pair.b, "eth0"), mac_a=MAC_A, mac_b=MAC_B)
    for namespace in (pair.a, pair.b):
        set_up(namespace, "eth0")
    for namespace in (pair.a, pair.b):
        wait_up(namespace, "eth0")
    return pair


@pytest.fixture
def path(lab: Lab) -> Path3:
    three = Path3(lab.namespace(), lab.namespace(), lab.namespace())
    add_veth((three.a, "eth0"), (three.middle, "left"), mac_a=MAC_A)
    add_veth((three.b, "eth0"), (three.middle, "right"), mac_a=MAC_B)
    ends = ((three.a, "eth0"), (three.middle, "left"), (three.middle, "right"), (three.b, "eth0"))
    for namespace, ifname in ends:
        set_up(namespace, ifname)
    for namespace, ifname in ends:
        wait_up(namespace, ifname)
    return three


@pytest.fixture
def descriptors() -> Iterator[None]:
    """The test leaves no descriptor open in this process."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
