"""A simulated host's TCP connections that send at a rate, as `testbed.lab.stream` does with real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from testbed.lab.stream import CHUNK, Pacing
from testbed.simulation.handshake import Opening, Peer
from testbed.simulation.link import Frames, LinkSpeed, Port
from testbed.simulation.segments import Connection, Segments
from testbed.simulation.stream_socket import StreamSocket
from testbed.simulation.tcp_sender import TCP_TIMEOUT_INIT
from testbed.simulation.virtual_time import VirtualTimeLoop

TICK_S = 0.002
FIRST_PORT = 40_000


class NeighbourPort(Port):
    """The port of a host that sends: of what comes back, only what is for one of its connections is of interest."""

    def __init__(self, speed: LinkSpeed) -> None:
        super().__init__(speed, self._receive)
        self.connections: dict[Connection, OutgoingConnection] = {}

    def _receive(self, group: Frames) -> None:
        if isinstance(group, (Opening, Segments)) and group.connection in self.connections:
            self.connections[group.connection].received(group)


class OutgoingConnection:
    """A connection from `peer` to a `port` of the host at `target`; its SYN is sent again until it is answered.

    `mss` and `train` are as in `StreamSocket`; `segments` counts frames sent.
    """

    def __init__(  # noqa: PLR0917
        self, loop: VirtualTimeLoop, source: NeighbourPort, target: Port, peer: Peer, port: int, mss: int, train: int
    ) -> None:
        self.segments = 0
        self.socket: StreamSocket | None = None
        self._loop = loop
        self._source, self._target, self._mss, self._train = source, target, mss, train
        self._connection: Connection = (*peer, port)
        self._syn = Opening(source, target, self._connection, peer, port)
        source.connections[self._connection] = self
        self._connect(TCP_TIMEOUT_INIT)

    def _connect(self, timeout: float) -> None:
        self._put_on_wire(self._syn)
        self._timer = self._loop.call_later(timeout, self._connect, timeout * 2)

    def _put_on_wire(self, group: Frames) -> None:
        self.segments += group.frames
        self._source.up.send(group)

    def received(self, group: Opening | Segments) -> None:
        """An answer to the SYN, or an acknowledgement."""
        if isinstance(group, Segments):
            if self.socket is not None:
                self.socket.received(group, [], group.frames)
        elif self.socket is None:
            self._timer.cancel()
            self.socket = StreamSocket(
                *(self._loop, self._put_on_wire, self._target, self._connection),
                mss=self._mss,
                train=self._train,
                first_window=group.window,
            )

    def send(self, data: bytes) -> int:
        """Write what there is room for; 0 when the connection takes nothing now, or is not there yet."""
        if self.socket is None:
            return 0
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    @property
    def retransmits(self) -> int:
        """Segments sent again."""
        return 0 if self.socket is None else self.socket.sender.retransmitted


class SimulatedTcpStream:
    """One connection from `address` to each of `ports` of the host at `target`, opened by `start`.

    `bytes_per_second` are for all of them together. `sent` counts bytes that the connections have taken.
    """

    def __init__(
        self,
        source: NeighbourPort,
        target: Port,
        address: str,
        ports: Sequence[int],
        *,
        bytes_per_second: int,
        mss: int,
        train: int,
    ) -> None:
        self.sent = 0
        self._source, self._target, self._address, self._ports = source, target, address, ports
        self._mss, self._train = mss, train
        self._pacing = Pacing(bytes_per_second)
        self._connections: list[OutgoingConnection] = []
        self._timer: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self._loop = loop

    def start(self) -> None:
        """Open the connections, and begin to send."""
        for port in self._ports:
            peer = self._address, FIRST_PORT + len(self._source.connections)
            self._connections.append(
                OutgoingConnection(self._loop, self._source, self._target, peer, port, self._mss, self._train)
            )
        self._pacing.step(self._loop.time(), ())
        self._timer = self._loop.call_later(TICK_S, self._step)

    def stop(self) -> None:
        """Write no more; TCP goes on with what it has."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step(self) -> None:
        pause = self._pacing.step(self._loop.time(), [partial(self._send, each) for each in self._connections])
        self._timer = self._loop.call_later(max(TICK_S, pause), self._step)

    def _send(self, connection: OutgoingConnection) -> int:
        taken = connection.send(CHUNK)
        self.sent += taken
        return taken

    def report(self) -> dict[str, int]:
        """`sent` bytes, `segments` with those sent again, and `retransmits`, which are only these."""
        return {
            "sent": self.sent,
            "segments": sum(connection.segments for connection in self._connections),
            "retransmits": sum(connection.retransmits for connection in self._connections),
        }
