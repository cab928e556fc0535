"""Faults inside a client: set, cleared, overlapping, and nothing of them left at the end."""

from __future__ import annotations

import asyncio
import mmap
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.hosts.bystander import DATAGRAMS_AT_ONCE, Bystander, UdpSocket
from testbed.hosts.client_faults import ClientFaults
from testbed.hosts.messages import SetFault
from testbed.lab.errors import LabError
from testbed.mm.node import Node
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.dev import NetDevice
from tests.mm.machine import SERIES, FakeSwapDevice
from tests.virtual_time import simulate

RAM_PAGES = 512
USUAL_KBYTES = 128


class Host:
    """A node, its faults, and what they said."""

    def __init__(self, *bystanders: Bystander) -> None:
        ram = memoryview(mmap.mmap(-1, RAM_PAGES * PAGE_SIZE))
        self.node = Node(ram, FakeSwapDevice(16, 0.001), 16, SERIES, min_free_kbytes=USUAL_KBYTES)
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.faults = ClientFaults(self.node, bystanders, lambda name, fields: self.said.append((name, fields)))

    def kbytes(self) -> set[int]:
        return {zone.watermarks.min_free_kbytes for zone in self.node.zones} | {self.node.min_free_kbytes.value}


def fault(number: int, kind: str, **arguments: Any) -> SetFault:
    return SetFault(number, kind, arguments, seed=1)


def test_memory_is_taken_and_given_back() -> None:
    async def play() -> None:
        host = Host()
        free = host.node.page_alloc.nr_free_pages
        host.faults.set(fault(1, "memory_taken", bytes=100 * PAGE_SIZE))
        await asyncio.sleep(1.0)
        assert host.node.page_alloc.nr_free_pages <= free - 100
        host.faults.clear(1)
        assert host.said == [("fault_set", {"number": 1}), ("fault_cleared", {"number": 1, "pages": 100})]
        assert host.node.pages_leaked() == 0

    simulate(play())


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(16, 512)), max_size=20))
def test_the_last_min_free_kbytes_that_is_set_counts(acts: list[tuple[bool, int, int]]) -> None:
    async def play() -> None:
        host, active = Host(), dict[int, int]()
        for clears, number, kbytes in acts:
            if clears:
                active.pop(number, None)
                host.faults.clear(number)
            elif number not in active:
                active[number] = kbytes
                host.faults.set(fault(number, "min_free_kbytes", kbytes=kbytes))
            await asyncio.sleep(0.1)
            assert host.kbytes() == {active[max(active)] if active else USUAL_KBYTES}

    simulate(play())


def test_closing_ends_everything_without_a_word() -> None:
    async def play() -> None:
        host = Host()
        host.faults.set(fault(1, "memory_taken", bytes=50 * PAGE_SIZE))
        host.faults.set(fault(2, "min_free_kbytes", kbytes=512))
        await asyncio.sleep(1.0)
        host.faults.close()
        await asyncio.sleep(1.0)
        assert [name for name, _ in host.said] == ["fault_set"] * 2
        assert host.node.pages_leaked() == 0
        assert host.kbytes() == {USUAL_KBYTES}

    simulate(play())


def test_what_a_client_cannot_have_is_refused() -> None:
    async def play() -> None:
        with pytest.raises(LabError, match="cannot have the fault partition"):
            Host().faults.set(fault(1, "partition"))

    simulate(play())


class CountingBystander(Bystander):
    """Counts the datagrams that its reader takes."""

    def read(self, device: NetDevice) -> int:
        count = self.real.discard(DATAGRAMS_AT_ONCE)
        self.received += count
        return count


@pytest.fixture
def pair() -> Iterator[tuple[UdpSocket, socket.socket]]:
    near, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours = UdpSocket(fileno=near.detach())
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("port", [None, 7000])
def test_nobody_reads_until_it_is_cleared(pair: tuple[UdpSocket, socket.socket], port: int | None) -> None:
    async def play() -> None:
        bystander = CountingBystander("prompt", 7000, 1 << 16, pair[0])
        host = Host(bystander)
        bystander.read_promptly(cast(NetDevice, None))
        pair[1].send(b"x")
        await asyncio.sleep(0.01)
        assert bystander.received == 1
        host.faults.set(fault(1, "stop_reading", port=port))
        pair[1].send(b"x")
        await asyncio.sleep(0.01)
        assert bystander.received == 1
        host.faults.clear(1)
        assert bystander.received == 2
        pair[1].send(b"x")
        await asyncio.sleep(0.01)
        assert bystander.received == 3
        bystander._forget_reader()

    asyncio.run(play())


def test_other_ports_are_left_alone(pair: tuple[UdpSocket, socket.socket]) -> None:
    async def play() -> None:
        bystander = CountingBystander("prompt", 7000, 1 << 16, pair[0])
        Host(bystander).faults.set(fault(1, "stop_reading", port=7001))
        assert bystander.reading

    asyncio.run(play())
