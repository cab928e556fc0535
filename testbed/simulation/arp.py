"""How a simulated client finds its swap server's address, where its neighbour entry for it does not last.

What is for the server waits in the entry until the answer is in. A request takes memory like everything that the host
sends, and the answer comes in like any other frame: it is lost if there is no buffer for it, but not for lying in the
reserve, since ARP is on the list of what may (patch 12).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from testbed.hosts.classifier import stack_name
from testbed.net.dev import ETH_P_ARP, Kind
from testbed.net.neigh import Neighbour, NeighParms
from testbed.simulation.datagrams import Datagrams
from testbed.simulation.link import Frames, Port
from testbed.simulation.segments import Segments

ARP = Kind(ETH_P_ARP, None, stack_name(ETH_P_ARP, 0))
ARP_FRAME = 60
"""The shortest Ethernet frame without its checksum, bytes."""


def arp_frame(source: Port, destination: Port) -> Datagrams:
    """A request, or the answer to one."""
    return Datagrams(source, destination, ARP_FRAME, np.zeros(1, np.intp), (ARP,))


class ServerNeighbour:
    """The neighbour entry of a swap server.

    Args:
        timeout: after how many seconds without progress the address is asked for again; it is used meanwhile.
        put_on_wire: sends what may go out.
        request: sends an ARP request if there is memory for one.
    """

    def __init__(self, timeout: float, put_on_wire: Callable[[Frames], None], request: Callable[[], None]) -> None:
        self.discarded = 0
        """Frames dropped because too many waited, or nobody answered."""
        self._entry: Neighbour[Segments] = Neighbour(NeighParms(base_reachable_time=timeout, delay_probe_time=0.0))
        self._put_on_wire = put_on_wire
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def send(self, group: Segments) -> None:
        """Send a group of frames to the server, now or once its address is known."""
        if self._entry.neigh_event_send(group, group.size, self._loop.time()):
            self._put_on_wire(group)
        else:
            self._discard(self._entry.overflow())
        self._go_on()

    def answered(self) -> None:
        """An ARP reply is in."""
        for group in self._entry.neigh_update(self._loop.time()):
            self._put_on_wire(group)
        self._go_on()

    def confirm(self) -> None:
        """The server has acknowledged something new."""
        self._entry.confirm(self._loop.time())

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        self._timer = None
        self._discard(self._entry.timer(self._loop.time()))
        self._go_on()

    def _discard(self, groups: list[Segments]) -> None:
        self.discarded += sum(group.frames for group in groups)

    def _go_on(self) -> None:
        """Send the request that is due, and have the entry's timer run when it is."""
        entry = self._entry
        if entry.solicit:
            entry.solicited()
            self._request()
        self.close()
        if entry.expires is not None:
            self._timer = self._loop.call_at(entry.expires, self._expired)
