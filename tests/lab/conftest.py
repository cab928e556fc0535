"""Namespaces for the tests, gone again when each test ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from testbed.lab.builder import Lab
from testbed.lab.namespace import NetworkNamespace

__all__ = ["MAC_A", "MAC_B", "Lab", "Path3", "Wire"]

MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


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
def wire(lab: Lab) -> Wire:
    pair = Wire(lab.namespace(), lab.namespace())
    lab.link((pair.a, "eth0"), (pair.b, "eth0"), mac_a=MAC_A, mac_b=MAC_B)
    return pair


@pytest.fixture
def path(lab: Lab) -> Path3:
    three = Path3(lab.namespace(), lab.namespace(), lab.namespace())
    lab.link((three.a, "eth0"), (three.middle, "left"), mac_a=MAC_A)
    lab.link((three.b, "eth0"), (three.middle, "right"), mac_a=MAC_B)
    return three


@pytest.fixture
def descriptors() -> Iterator[None]:
    """The test leaves no descriptor open in this process."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
