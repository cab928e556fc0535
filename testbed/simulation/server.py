"""A simulated host that serves swap areas: the NBD protocol of our own server, on virtual time.

As with the real one, a connection's requests are carried out one after the other, those that came in together are
answered together, and a server with a bandwidth takes as long as a disk would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from testbed.hosts.messages import Command, Finished, Message, Shutdown
from testbed.hosts.plan import ServerPlan, SwapArea
from testbed.nbd.connection import MAX_BATCH
from testbed.nbd.export import Export
from testbed.nbd.replies import simple_reply
from testbed.nbd.server_protocol import Event as Request
from testbed.nbd.server_protocol import Read, Refused, ServerProtocol, Write
from testbed.simulation.arp import arp_frame
from testbed.simulation.datagrams import Datagrams
from testbed.simulation.link import Frames, LinkSpeed, Port
from testbed.simulation.segments import Segments
from testbed.simulation.stream_socket import StreamSocket

Storage = Callable[[SwapArea], Export]
"""Makes what a swap area is kept in."""


class SimulatedServer:
    """Serves the areas of its plan; segments for it, and requests for its address, come in through its `port`."""

    def __init__(self, plan: ServerPlan, speed: LinkSpeed, storage: Storage) -> None:
        self.name = plan.name
        self.port = Port(speed, self._receive)
        self.connections: list[ServedConnection] = []
        self._exports: dict[SwapArea, Export] = {}
        self._storage = storage
        self._said: list[Message] = []

    def accept(self, area: SwapArea, connect: Callable[[int], StreamSocket]) -> int:
        """Serve a client's connection to its area: `connect` is given its number, and makes this end of it."""
        number = len(self.connections)
        if area not in self._exports:
            self._exports[area] = self._storage(area)
        self.connections.append(ServedConnection(connect(number), area, self._exports[area]))
        return number

    def _receive(self, group: Frames) -> None:
        if isinstance(group, Datagrams):
            self.port.up.send(arp_frame(self.port, group.source))
            return
        assert isinstance(group, Segments)
        assert isinstance(group.connection, int)
        runs = [(group.seq, group.data)] if group.data else []
        self.connections[group.connection].socket.received(group, runs, group.frames)

    def send(self, command: Command) -> bool:
        """Obey the runner."""
        if isinstance(command, Shutdown):
            for connection in self.connections:
                connection.close()
            for export in self._exports.values():
                export.close()
            self._said.append(Finished(self.name))
        return True

    def messages(self) -> list[Message]:
        """What was said since the last call."""
        said, self._said = self._said, []
        return said


class ServedConnection:
    """One client's connection, and the task that serves it."""

    def __init__(self, socket: StreamSocket, area: SwapArea, export: Export) -> None:
        self.socket = socket
        self.export = export
        self._protocol = ServerProtocol({area.export: export})
        self._bandwidth = area.bandwidth
        self._free_at = 0.0
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._serve())
        self._loop.add_reader(socket.fileno(), self._changed.set)
        self._loop.add_writer(socket.fileno(), self._changed.set)

    async def _serve(self) -> None:
        await self._send([self._protocol.data_to_send()])
        while True:
            try:
                count = self.socket.recvmsg_into(self._protocol.next_buffers())[0]
            except BlockingIOError:
                await self._change()
                continue
            events = self._protocol.received(count)
            if self._protocol.answering:
                await self._send([self._protocol.data_to_send()])
            await self._carry_out(events)

    async def _carry_out(self, events: list[Request]) -> None:
        pieces: list[bytes | memoryview] = []
        gathered = 0
        for event in events:
            if isinstance(event, Read):
                await self._disk(event.length)
                pieces += simple_reply(event.handle), self.export.read(event.offset, event.length)
                gathered += event.length
            elif isinstance(event, Write):
                await self._disk(len(event.data))
                self.export.commit(event.offset, event.data)
                pieces.append(simple_reply(event.handle))
            elif isinstance(event, Refused):
                pieces.append(simple_reply(event.handle, event.error))
            if gathered >= MAX_BATCH:
                await self._send(pieces)
                pieces, gathered = [], 0
        if pieces:
            await self._send(pieces)

    async def _disk(self, length: int) -> None:
        """Wait until the disk has moved so many bytes."""
        if self._bandwidth is not None:
            self._free_at = max(self._free_at, self._loop.time()) + length / self._bandwidth
            await asyncio.sleep(self._free_at - self._loop.time())

    async def _send(self, pieces: list[bytes | memoryview]) -> None:
        data = memoryview(b"".join(pieces))
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        self.socket.close()
