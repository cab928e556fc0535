"""How much a TCP socket may buffer, from the size of the machine (`tcp_init`)."""

from __future__ import annotations

from testbed.mm.watermarks import PAGE_SIZE

TCP_BUFFER_CEILING = 4 << 20
TCP_MEM_SHARE = 7
LEAST_SEND_BUFFER = 128 << 10


def tcp_receive_limit(managed_pages: int) -> int:
    """The most a TCP socket may buffer on a machine of this size, bytes (tcp_init: 1/128 of memory, at most 4 MiB)."""
    return min(TCP_BUFFER_CEILING, managed_pages * PAGE_SIZE >> TCP_MEM_SHARE)


def tcp_send_limit(managed_pages: int) -> int:
    """What SO_SNDBUF is tuned to for a short path, bytes: a quarter of what the machine would allow a long one, or a
    few segments of 64 KiB.

    From 64 MiB of memory on it fits, with the ring's buffers, into the half of the reserve that throttling keeps. A
    real kernel tunes it further up while nothing is lost, by chance as far as its whole reserve: it is told this one.
    """
    return max(LEAST_SEND_BUFFER, tcp_receive_limit(managed_pages) // 4)
