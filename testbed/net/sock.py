"""Sockets as receive memory sees them (net/core/sock.c): SOCK_MEMALLOC, sk_allocation, the receive buffer."""

from __future__ import annotations

from collections import deque

from testbed.mm.gfp import GFP_KERNEL, GFP_MEMALLOC
from testbed.net.skbuff import SkBuff
from testbed.net.snmp import NetStat
from testbed.patches import Switches


class Sock:
    """`struct sock`: its receive queue holds the skbs of datagrams that nobody has read yet.

    Args:
        rcvbuf: SO_RCVBUF limit on the true size of queued skbs, bytes.
    """

    __slots__ = ("memalloc", "name", "rcvbuf", "receive_queue", "rmem_alloc", "sk_allocation", "swap")

    def __init__(self, name: str, rcvbuf: int, *, swap: bool = False) -> None:
        self.name = name
        self.rcvbuf = rcvbuf
        self.swap = swap
        self.memalloc = False
        self.sk_allocation = GFP_KERNEL
        self.rmem_alloc = 0
        self.receive_queue: deque[SkBuff] = deque()

    def __repr__(self) -> str:
        return f"Sock({self.name!r})"


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
        """Patch 07's `sk_allocation(sk, gfp)`: add the socket's __GFP_MEMALLOC to a fixed mask."""
        if sk is None:
            return gfp_mask
        if not self.switches.sk_allocation:
            self.netstat.sk_allocation_missing += sk.swap
            return gfp_mask
        added = sk.sk_allocation & GFP_MEMALLOC
        self.netstat.sk_allocation_memalloc += bool(added)
        return gfp_mask | added

    def sk_filter(self, sk: Sock, skb: SkBuff) -> bool:
        """Patch 09: False (the kernel's -ENOMEM) for an skb in reserve memory if `sk` is not SOCK_MEMALLOC."""
        return not skb.pfmemalloc or sk.memalloc or not self.switches.skb_pfmemalloc
