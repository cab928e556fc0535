"""A host for workloads without memory pressure: the models of memory and sockets, and no network or swap behind them.

Nothing here may swap, so a request to the swap device is a mistake and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.skbuff import SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.patches import Switches

MTU = 1500
RCVBUF = 212992
"""net.core.rmem_default, bytes."""
SWAP_PAGES = 64


class UnexpectedSwap(RuntimeError):
    """A workload that is meant to fit in memory has swapped."""


class NoSwapDevice:
    """A swap device that nothing may be asked of."""

    async def submit_write(self, pages: Sequence[Page], nice: int) -> None:
        raise UnexpectedSwap(f"{len(pages)} pages were to be swapped out")

    async def submit_read(self, pages: Sequence[Page], nice: int) -> None:
        raise UnexpectedSwap(f"{len(pages)} pages were to be swapped in")


class Host:
    """The models of one host with `pages` pages of RAM; with `memalloc` it has a SOCK_MEMALLOC socket."""

    def __init__(self, switches: Switches, pages: int, *, memalloc: bool = False) -> None:
        self.node = Node(memoryview(bytearray(pages * PAGE_SIZE)), NoSwapDevice(), SWAP_PAGES, switches)
        self.netstat = NetStat()
        self.socket_memory = SocketMemory(switches, self.netstat)
        self.skb_memory = SkbMemory(self.node, self.netstat, MTU)
        if memalloc:
            self.socket_memory.sk_set_memalloc(Sock("swap", RCVBUF, swap=True))


class Workload(Protocol):
    """Work that can be counted, on a host of its own."""

    async def run(self, operations: int) -> int:
        """Do at least so many operations, and give everything back; returns how many were done."""
        ...
