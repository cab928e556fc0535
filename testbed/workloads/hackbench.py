"""hackbench: groups of senders that each write small messages to every receiver of their group.

Through pipes a message is copied into the pipe's last page if it fits, else into a page of its own, which is freed
when it has been read (fs/pipe.c). Through sockets (AF_UNIX) each message is an skb, freed by its reader.
"""

from __future__ import annotations

from collections import deque

from testbed.mm.gfp import GFP_HIGHUSER_MOVABLE
from testbed.mm.page import Page
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.sock import Sock
from testbed.workloads.host import RCVBUF, Host

GROUPS = 2
TASKS = 20
"""Senders in a group, and as many receivers."""
MESSAGE = 100
"""Bytes."""


class Pipe:
    """One pipe: its pages, and how many bytes the last of them holds."""

    def __init__(self, host: Host) -> None:
        self._page_alloc = host.node.page_alloc
        self._pages: deque[Page] = deque()
        self._end = PAGE_SIZE

    async def write(self, current: Task) -> None:
        """`pipe_write` of one message."""
        if self._end + MESSAGE > PAGE_SIZE:
            page = await self._page_alloc.alloc_page(GFP_HIGHUSER_MOVABLE, current)
            assert page is not None
            self._pages.append(page)
            self._end = 0
        self._end += MESSAGE

    def read(self) -> None:
        """`pipe_read` of everything in it."""
        while self._pages:
            self._page_alloc.free_page(self._pages.popleft())
        self._end = PAGE_SIZE


class UnixSocket:
    """One connected pair of stream sockets."""

    def __init__(self, host: Host) -> None:
        self._skb_memory = host.skb_memory
        self._socket_memory = host.socket_memory
        self._sk = Sock("unix", RCVBUF)

    async def write(self, current: Task) -> None:
        """`unix_stream_sendmsg` of one message."""
        skb = self._skb_memory.alloc_skb(MESSAGE, self._sk.sk_allocation, current)
        assert skb is not None
        assert self._socket_memory.sk_filter(self._sk, skb)
        self._sk.receive_queue.append(skb)

    def read(self) -> None:
        """`unix_stream_recvmsg` of everything in it."""
        queue = self._sk.receive_queue
        while queue:
            self._skb_memory.kfree_skb(queue.popleft())


class Hackbench:
    """An operation is a message, written and read."""

    def __init__(self, host: Host, channel: type[Pipe | UnixSocket]) -> None:
        self._senders = [Task(f"hackbench{number}") for number in range(GROUPS * TASKS)]
        self._groups = [[channel(host) for _ in range(TASKS)] for _ in range(GROUPS)]

    async def run(self, operations: int) -> int:
        done = 0
        while done < operations:
            for number, sender in enumerate(self._senders):
                for receiver in self._groups[number % GROUPS]:
                    await receiver.write(sender)
            for group in self._groups:
                for receiver in group:
                    receiver.read()
            done += len(self._senders) * TASKS
        return done
