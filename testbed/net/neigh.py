"""One neighbour entry (net/core/neighbour.c): from address to MAC, by ARP, with what it keeps meanwhile.

Pure: the caller says what time it is, sends what `solicit` allows, and calls `timer` when `expires` has come. The
simulator's hosts use it; where the stack is real, so is its neighbour table.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")

UNRES_QLEN_BYTES = 64 << 10
"""What may wait for an answer, bytes of true size (3.3 on; three packets before)."""


class Nud(Enum):
    """Neighbour unreachability detection: what is known of an entry."""

    NONE = "none"
    INCOMPLETE = "incomplete"
    REACHABLE = "reachable"
    STALE = "stale"
    DELAY = "delay"
    PROBE = "probe"
    FAILED = "failed"


VALID = frozenset({Nud.REACHABLE, Nud.STALE, Nud.DELAY, Nud.PROBE})
"""States in which packets go out with the address known so far."""


@dataclass(frozen=True, slots=True)
class NeighParms:
    """`struct neigh_parms`, the sysctls net.ipv4.neigh.*: seconds, numbers of probes, bytes."""

    base_reachable_time: float = 30.0
    delay_probe_time: float = 5.0
    retrans_time: float = 1.0
    ucast_probes: int = 3
    mcast_probes: int = 3
    queue_len_bytes: int = UNRES_QLEN_BYTES


class Neighbour(Generic[T]):
    """An entry. `T` is the packets that wait in `arp_queue`.

    `expires` is when `timer` is to be called (None: not at all) and `solicit` whether an ARP request is due: the
    caller allocates it with GFP_ATOMIC, in a timer or on behalf of a sender, sends it if it can, and calls
    `solicited`, which counts a request that found no memory like one that nobody answered.
    """

    def __init__(self, parms: NeighParms | None = None) -> None:
        self.parms = parms or NeighParms()
        self.state = Nud.NONE
        self.probes = 0
        self.expires: float | None = None
        self.solicit = False
        self.arp_queue: deque[tuple[T, int]] = deque()
        self.arp_queue_len_bytes = 0
        self.unres_discards = 0
        """Packets dropped because the queue was full, or the entry failed."""
        self._confirmed = 0.0

    def neigh_event_send(self, packet: T, truesize: int, now: float) -> bool:
        """A packet is to go out: True if the address is known. Otherwise the packet waits for it in `arp_queue`."""
        if self.state is Nud.STALE:
            self._enter(Nud.DELAY, now + self.parms.delay_probe_time)
        if self.state in VALID:
            return True
        if self.state is not Nud.INCOMPLETE:
            self._enter(Nud.INCOMPLETE, now + self.parms.retrans_time)
            self.probes = 0
            self.solicit = True
        self.arp_queue.append((packet, truesize))
        self.arp_queue_len_bytes += truesize
        return False

    def overflow(self) -> list[T]:
        """What no longer fits the queue, oldest first: the caller frees it. The newest packet always fits."""
        dropped: list[T] = []
        while self.arp_queue_len_bytes > self.parms.queue_len_bytes and len(self.arp_queue) > 1:
            dropped.append(self._popleft())
        self.unres_discards += len(dropped)
        return dropped

    def solicited(self) -> None:
        """The request that was due has been sent, or found no memory."""
        self.solicit = False
        self.probes += 1

    def neigh_update(self, now: float) -> list[T]:
        """An ARP reply has come: the packets that may go out now."""
        self._confirmed = now
        self.probes = 0
        self.solicit = False
        self._enter(Nud.REACHABLE, now + self.parms.base_reachable_time)
        return self._flush()

    def confirm(self, now: float) -> None:
        """`dst_confirm`: the peer has acknowledged something, so that its address must be right."""
        self._confirmed = now

    def timer(self, now: float) -> list[T]:
        """`neigh_timer_handler`: the packets that are dropped because the entry has failed."""
        if self.expires is None or now < self.expires:
            return []
        parms = self.parms
        if self.state is Nud.REACHABLE:
            if now < self._confirmed + parms.base_reachable_time:
                self.expires = self._confirmed + parms.base_reachable_time
            else:
                self._enter(Nud.STALE, None)
        elif self.state is Nud.DELAY:
            if now < self._confirmed + parms.delay_probe_time:
                self._enter(Nud.REACHABLE, self._confirmed + parms.base_reachable_time)
            else:
                self.probes = 0
                self._probe(Nud.PROBE, now)
        elif self.state in {Nud.INCOMPLETE, Nud.PROBE}:
            most = parms.ucast_probes if self.state is Nud.PROBE else parms.mcast_probes
            if self.probes < most:
                self._probe(self.state, now)
            else:
                return self._fail()
        return []

    def _probe(self, state: Nud, now: float) -> None:
        self._enter(state, now + self.parms.retrans_time)
        self.solicit = True

    def _fail(self) -> list[T]:
        self._enter(Nud.FAILED, None)
        self.solicit = False
        dropped = self._flush()
        self.unres_discards += len(dropped)
        return dropped

    def _enter(self, state: Nud, expires: float | None) -> None:
        self.state = state
        self.expires = expires

    def _popleft(self) -> T:
        packet, truesize = self.arp_queue.popleft()
        self.arp_queue_len_bytes -= truesize
        return packet

    def _flush(self) -> list[T]:
        return [self._popleft() for _ in range(len(self.arp_queue))]
