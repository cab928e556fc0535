"""The backlog of a socket that a task owns (net/core/sock.c): what arrives meanwhile waits until it is released.

A task owns a socket while it faults in a user's page, or waits for memory to send with, inside a system call. With
patch 12 an skb in reserve memory is then processed with PF_MEMALLOC, and only a SOCK_MEMALLOC socket may have one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from testbed.mm.sched import Task
from testbed.net.drop_reason import DropReason
from testbed.net.skbuff import SkBuff

if TYPE_CHECKING:
    from testbed.net.sock import Sock, SocketMemory

BacklogRcv = Callable[[SkBuff], None]
"""`sk->sk_backlog_rcv`: what the protocol does with an skb once the socket is free. It frees or queues it."""


class KernelBug(Exception):
    """A BUG_ON of the kernel was hit in a softirq: the machine stops. The message is the condition and its place."""


class Backlog:
    """`sk->sk_backlog`. `length` is the true size of what waits, bytes."""

    __slots__ = ("_entries", "_sk", "_socket_memory", "length")

    def __init__(self, sk: Sock, socket_memory: SocketMemory) -> None:
        self._sk = sk
        self._socket_memory = socket_memory
        self._entries: deque[tuple[SkBuff, BacklogRcv]] = deque()
        self.length = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def frames(self) -> int:
        """Wire frames that wait: an skb of several merged segments counts for each."""
        return sum(skb.gso_segs for skb, _ in self._entries)

    def sk_add_backlog(self, skb: SkBuff, limit: int, rcv: BacklogRcv) -> DropReason | None:
        """Let `skb` wait; why not, if backlog and receive queue hold more than `limit` bytes without it.

        From 4.3 on a reserve skb for an ordinary socket is refused too. Before, nothing stopped it.
        """
        if self.length + self._sk.rmem_alloc > limit:
            return DropReason.SOCKET_BACKLOG
        socket_memory = self._socket_memory
        if socket_memory.switches.rules.sk_add_backlog_filter and not socket_memory.sk_filter(self._sk, skb):
            return DropReason.PFMEMALLOC
        self._entries.append((skb, rcv))
        self.length += skb.truesize
        return None

    def release(self, current: Task) -> None:
        """`__release_sock`: process what waits, in order, on behalf of `current`. Raises KernelBug."""
        while self._entries:
            skb, rcv = self._entries.popleft()
            self.length -= skb.truesize
            self._sk_backlog_rcv(skb, rcv, current)

    def _sk_backlog_rcv(self, skb: SkBuff, rcv: BacklogRcv, current: Task) -> None:
        if not self._socket_memory.receive_pf_memalloc(skb):
            rcv(skb)
            return
        if not self._sk.memalloc:
            self._entries.appendleft((skb, rcv))
            self.length += skb.truesize
            raise KernelBug("kernel BUG in __sk_backlog_rcv: BUG_ON(!sock_flag(sk, SOCK_MEMALLOC))")
        saved = current.pf_memalloc
        current.pf_memalloc = True
        try:
            rcv(skb)
        finally:
            current.pf_memalloc = saved

    def drop(self, kfree_skb: Callable[[SkBuff], None]) -> None:
        """The socket is closed: free what waits."""
        while self._entries:
            kfree_skb(self._entries.popleft()[0])
        self.length = 0
