"""What all sockets of a protocol may hold together (udp_mem, tcp_mem), after net/core/sock.c of 3.4.

A socket takes whole pages of its protocol's allowance and charges skbs to what it has taken (`forward_alloc`). What
it holds is given back as soon as it makes up a page, so a protocol's pages are those its sockets' bytes fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from testbed.mm.watermarks import PAGE_SIZE
from testbed.rules import Rules

if TYPE_CHECKING:
    from testbed.net.sock import Sock

SK_MEM_QUANTUM: Final = PAGE_SIZE
SYSCTL_RMEM_MIN: Final = 4096
"""Bytes that any one socket may hold in each direction, however full its protocol is (udp_rmem_min, tcp_wmem[0])."""
LEAST_LIMIT: Final = 128

Mem = tuple[int, int, int]
"""`sysctl_mem`: pages at which pressure ends, at which it begins, and the most there may be."""


def default_mem(buffer_pages: int, share: int) -> Mem:
    """What `udp_init` and `tcp_init_mem` set for `nr_free_buffer_pages()`, one part in `share` of them."""
    limit = max(buffer_pages // share, LEAST_LIMIT)
    least = limit // 4 * 3
    return least, limit, least * 2


def udp_mem(buffer_pages: int) -> Mem:
    """The kernel's own udp_mem."""
    return default_mem(buffer_pages, 8)


def tcp_mem(buffer_pages: int, rules: Rules) -> Mem:
    """The kernel's own tcp_mem."""
    return default_mem(buffer_pages, rules.tcp_mem_share)


class Proto:
    """`struct proto`: one protocol's allowance. Pages are counted in `memory_allocated`.

    Args:
        sysctl_mem: pages; see `Mem`.
        has_memory_pressure: TCP has, and between its limits refuses only sockets that hold more than their share;
            UDP has not, and refuses everybody above the first limit who holds more than `SYSCTL_RMEM_MIN`.
    """

    __slots__ = (
        "has_memory_pressure",
        "memory_allocated",
        "memory_pressure",
        "memory_pressures",
        "name",
        "pfmemalloc_exempt",
        "sockets_allocated",
        "sysctl_mem",
    )

    def __init__(self, name: str, sysctl_mem: Mem, rules: Rules, *, has_memory_pressure: bool) -> None:
        self.name = name
        self.sysctl_mem = sysctl_mem
        self.has_memory_pressure = has_memory_pressure
        self.pfmemalloc_exempt = rules.sk_rmem_schedule_pfmemalloc
        self.memory_allocated = 0
        self.memory_pressure = False
        self.memory_pressures = 0
        """How often pressure began (TCPMemoryPressures)."""
        self.sockets_allocated = 0

    def sk_mem_schedule(self, sk: Sock, size: int, queued: int, *, sndbuf: int | None = None) -> bool:
        """`__sk_mem_schedule`: let `sk`, with `queued` bytes in this direction, take pages for `size` bytes more.

        `sndbuf` is given for a stream that sends: at its end it may go on, since there it will wait anyway.
        """
        amt = -(-size // SK_MEM_QUANTUM)
        sk.forward_alloc += amt * SK_MEM_QUANTUM
        self.memory_allocated += amt
        if self._allowed(sk, queued) or (sndbuf is not None and queued + size >= sndbuf):
            return True
        sk.forward_alloc -= amt * SK_MEM_QUANTUM
        self.memory_allocated -= amt
        return False

    def _allowed(self, sk: Sock, queued: int) -> bool:
        least, pressure, most = self.sysctl_mem
        if self.memory_allocated <= least:
            self.memory_pressure = False
            return True
        if self.memory_allocated > pressure and self.has_memory_pressure and not self.memory_pressure:
            self.memory_pressure = True
            self.memory_pressures += 1
        if self.memory_allocated > most:
            return False
        if queued < SYSCTL_RMEM_MIN:
            return True
        if not self.has_memory_pressure:
            return False
        held = -(-(sk.wmem_queued + sk.rmem_alloc + sk.forward_alloc) // SK_MEM_QUANTUM)
        return not self.memory_pressure or most > self.sockets_allocated * held

    def sk_mem_reclaim(self, sk: Sock) -> None:
        """`sk_mem_reclaim`: give back the whole pages that `sk` has taken and does not use."""
        pages = sk.forward_alloc // SK_MEM_QUANTUM
        if pages > 0:
            sk.forward_alloc -= pages * SK_MEM_QUANTUM
            self.memory_allocated -= pages
            if self.memory_allocated < self.sysctl_mem[0]:
                self.memory_pressure = False


def sk_rmem_schedule_all(sizes: Mapping[Sock, int]) -> bool:
    """Take pages for many skbs at once, bytes by socket; False, with nothing done, if any might have to be refused."""
    if len(sizes) == 1:
        ((sk, size),) = sizes.items()
        return sk.sk_rmem_schedule_whole(size)
    pages: dict[Proto, int] = {}
    for sk, size in sizes.items():
        if sk.prot is not None:
            pages[sk.prot] = pages.get(sk.prot, 0) + max(0, -((sk.forward_alloc - size) // SK_MEM_QUANTUM))
    if any(prot.memory_allocated + count > prot.sysctl_mem[0] for prot, count in pages.items()):
        return False
    for sk, size in sizes.items():
        sk.sk_rmem_schedule_whole(size)
    return True
