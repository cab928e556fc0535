"""Sockets as memory sees them (net/core/sock.c): SOCK_MEMALLOC, sk_allocation, what they hold, who owns them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from testbed.mm.gfp import GFP_KERNEL, GFP_MEMALLOC
from testbed.mm.sched import Task
from testbed.net.backlog import Backlog, BacklogRcv
from testbed.net.drop_reason import DropReason
from testbed.net.sk_mem import SK_MEM_QUANTUM, Proto
from testbed.net.skb_queue import SkbQueue
from testbed.net.skbuff import SkBuff
from testbed.net.snmp import NetStat
from testbed.patches import Switches


class Marked(Protocol):
    """An skb, received or sent, as far as the socket filter looks at it."""

    @property
    def pfmemalloc(self) -> bool: ...


class Sock:
    """`struct sock`: its receive queue holds the skbs of datagrams that nobody has read yet.

    Args:
        rcvbuf: SO_RCVBUF limit on the true size of queued skbs, bytes.
        sndbuf: SO_SNDBUF limit on the true size of unacknowledged skbs, bytes.
        prot: the protocol whose memory limits it shares; None for a socket that is not accounted.
    """

    __slots__ = (
        "backlog",
        "forward_alloc",
        "memalloc",
        "name",
        "owner",
        "prot",
        "rcvbuf",
        "receive_queue",
        "rmem_alloc",
        "sk_allocation",
        "sndbuf",
        "swap",
        "wmem_queued",
    )

    def __init__(
        self, name: str, rcvbuf: int, sndbuf: int = 0, *, swap: bool = False, prot: Proto | None = None
    ) -> None:
        self.name = name
        self.rcvbuf = rcvbuf
        self.sndbuf = sndbuf
        self.swap = swap
        self.prot = prot
        if prot is not None:
            prot.sockets_allocated += 1
        self.memalloc = False
        self.sk_allocation = GFP_KERNEL
        self.rmem_alloc = 0
        self.wmem_queued = 0
        self.forward_alloc = 0
        self.receive_queue = SkbQueue()
        self.owner: Task | None = None
        """The task inside a system call that keeps the socket (`sock_owned_by_user`)."""
        self.backlog: Backlog | None = None

    def __repr__(self) -> str:
        return f"Sock({self.name!r})"

    def rcvqueue_room(self, truesize: int) -> int:
        """How many skbs of `truesize` bytes `sock_queue_rcv_skb` takes: any while the buffer is not full (3.3 on), so
        that the last may be more than it has room for.
        """
        return max(0, -((self.rmem_alloc - self.rcvbuf) // truesize))

    def sk_rmem_schedule(self, size: int, pfmemalloc: bool) -> bool:
        """`sk_rmem_schedule`: may `size` more bytes be received? With the swap-over-NFS series the reserve may."""
        prot = self.prot
        missing = size - self.forward_alloc
        if prot is None or missing <= 0 or prot.sk_mem_schedule(self, missing, self.rmem_alloc):
            return True
        return pfmemalloc and prot.pfmemalloc_exempt

    def sk_rmem_schedule_whole(self, size: int) -> bool:
        """`sk_rmem_schedule` for many skbs of `size` bytes together: False if it might depend on each of them."""
        prot = self.prot
        missing = size - self.forward_alloc
        if prot is None or missing <= 0:
            return True
        pages = -(-missing // SK_MEM_QUANTUM)
        if prot.memory_allocated + pages > prot.sysctl_mem[0]:
            return False
        prot.memory_allocated += pages
        prot.memory_pressure = False
        self.forward_alloc += pages * SK_MEM_QUANTUM
        return True

    def sk_wmem_schedule(self, size: int) -> bool:
        """`sk_wmem_schedule`: may `size` more bytes be queued to send? Nobody is exempt, not even swap."""
        prot = self.prot
        missing = size - self.forward_alloc
        if prot is None or missing <= 0:
            return True
        return prot.sk_mem_schedule(self, missing, self.wmem_queued, sndbuf=self.sndbuf)

    def skb_set_owner_r(self, size: int) -> None:
        """Charge `size` bytes of receive memory, for which `sk_rmem_schedule` has found room."""
        self.rmem_alloc += size
        if self.prot is not None:
            self.forward_alloc -= size

    def sock_rfree(self, size: int) -> None:
        """Uncharge `size` bytes of receive memory."""
        self.rmem_alloc -= size
        self._sk_mem_uncharge(size)

    def sk_wmem_queue(self, size: int) -> None:
        """Charge `size` bytes of send memory, for which `sk_wmem_schedule` has found room."""
        self.wmem_queued += size
        if self.prot is not None:
            self.forward_alloc -= size

    def sk_wmem_free(self, size: int) -> None:
        """Uncharge `size` bytes of send memory (`sk_wmem_free_skb`)."""
        self.wmem_queued -= size
        self._sk_mem_uncharge(size)

    @property
    def sk_stream_is_writeable(self) -> bool:
        """`sk_stream_is_writeable`: a third of the send buffer has to be free before who waits for it is woken."""
        return self.sndbuf - self.wmem_queued >= self.wmem_queued >> 1

    def _sk_mem_uncharge(self, size: int) -> None:
        if self.prot is not None:
            self.forward_alloc += size
            if self.forward_alloc >= SK_MEM_QUANTUM:
                self.prot.sk_mem_reclaim(self)

    def sk_free(self) -> None:
        """`sk_free`: the socket, which holds nothing any more, leaves its protocol."""
        if self.prot is not None:
            self.prot.sk_mem_reclaim(self)
            self.prot.sockets_allocated -= 1

    def lock_sock(self, current: Task) -> None:
        """`lock_sock`: from now on what arrives goes to the backlog. Nobody else may own the socket."""
        assert self.owner is None
        self.owner = current

    def release_sock(self, current: Task) -> None:
        """`release_sock`: process the backlog, then let go of the socket. Raises KernelBug."""
        try:
            if self.backlog is not None:
                self.backlog.release(current)
        finally:
            self.owner = None

    @contextmanager
    def locked(self, current: Task) -> Iterator[None]:
        """`lock_sock` to `release_sock`. Raises KernelBug."""
        self.lock_sock(current)
        try:
            yield
        finally:
            self.release_sock(current)


class SocketMemory:
    """The socket side of the series: patches 07 and 08, and the count of SOCK_MEMALLOC sockets."""

    def __init__(self, switches: Switches, netstat: NetStat) -> None:
        self.switches = switches
        self.netstat = netstat
        self.memalloc_socks = 0

    def sk_set_memalloc(self, sk: Sock) -> None:
        """Patch 08: let the socket's allocations use the reserve. Setting it twice counts twice, as in the kernel."""
        if not self.switches.sock_memalloc:
            self.netstat.sk_set_memalloc_missing += 1
            return
        self.netstat.sk_set_memalloc += 1
        sk.memalloc = True
        sk.sk_allocation |= GFP_MEMALLOC
        self.memalloc_socks += 1

    def sk_clear_memalloc(self, sk: Sock) -> None:
        """The reverse of `sk_set_memalloc`."""
        if not self.switches.sock_memalloc:
            return
        sk.memalloc = False
        sk.sk_allocation &= ~GFP_MEMALLOC
        self.memalloc_socks -= 1

    def sk_allocation(self, sk: Sock | None, gfp_mask: int) -> int:
        """Patch 07's `sk_allocation(sk, gfp)`: add the socket's __GFP_MEMALLOC to a mask, which patch 08 has it do.

        It was merged as `sk_gfp_atomic`, which always starts from GFP_ATOMIC, and is `sk_gfp_mask` since 4.4.
        """
        if sk is None:
            return gfp_mask
        if not self.switches.sk_allocation:
            self.netstat.sk_allocation_missing += sk.swap
            return gfp_mask
        if not self.switches.sock_memalloc:
            return gfp_mask
        added = sk.sk_allocation & GFP_MEMALLOC
        self.netstat.sk_allocation_memalloc += bool(added)
        return gfp_mask | added

    def sk_filter(self, sk: Sock, skb: Marked) -> bool:
        """Patch 09: False (the kernel's -ENOMEM) for an skb in reserve memory if `sk` is not SOCK_MEMALLOC."""
        return not skb.pfmemalloc or sk.memalloc or not self.switches.skb_pfmemalloc

    def receive_pf_memalloc(self, skb: SkBuff) -> bool:
        """Is `skb` one that patch 12 has processed with PF_MEMALLOC?"""
        if not skb.pfmemalloc or not self.switches.receive_pf_memalloc:
            return False
        return self.memalloc_socks > 0 or not self.switches.rules.receive_needs_memalloc_socks

    def sk_add_backlog(self, sk: Sock, skb: SkBuff, limit: int, rcv: BacklogRcv) -> DropReason | None:
        """`sk_add_backlog`: as `Backlog.sk_add_backlog`, for a socket that may never have had one."""
        if sk.backlog is None:
            sk.backlog = Backlog(sk, self)
        return sk.backlog.sk_add_backlog(skb, limit, rcv)
