"""How a simulated TCP connection to a client's listening socket begins: a SYN, the answer to it, and who accepts it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from testbed.simulation.link import Port
from testbed.simulation.segments import Connection
from testbed.simulation.stream_socket import StreamSocket
from testbed.simulation.virtual_time import SimulatedFile, VirtualTimeLoop

Peer = tuple[str, int]
"""IPv4 address and port of who connects."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A SYN from `peer` for `port`, or the SYN-ACK that answers it and says how much may be sent, `window` bytes."""

    source: Port
    destination: Port
    connection: Connection
    peer: Peer
    port: int
    window: int = 0

    def answer(self, window: int) -> Opening:
        """The SYN-ACK."""
        return replace(self, source=self.destination, destination=self.source, window=window)

    @property
    def frames(self) -> int:
        """Frames on the wire."""
        return 1

    @property
    def size(self) -> int:
        """Ethernet, IPv4, and TCP with its options, bytes."""
        return 14 + 20 + 40

    def first(self, frames: int) -> Opening:
        """All of it."""
        return self

    def one(self, number: int) -> Opening:
        """All of it."""
        return self


class SimulatedListener(SimulatedFile):
    """A listening socket that never blocks; connections whose SYN got through are put into it."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__(loop)
        self._waiting: deque[tuple[StreamSocket, Peer]] = deque()

    def put(self, connection: StreamSocket, peer: Peer) -> None:
        """A connection waits to be accepted."""
        self._waiting.append((connection, peer))
        self.notify()

    def ready_to_read(self) -> bool:
        """Does a connection wait?"""
        return bool(self._waiting)

    def accept(self) -> tuple[StreamSocket, Peer]:
        """The connection that has waited longest. Raises BlockingIOError when there is none."""
        if not self._waiting:
            raise BlockingIOError
        accepted = self._waiting.popleft()
        if self._waiting:
            self.notify()
        return accepted
