"""A simulated host that makes noise: floods whose frames come at random at a given mean rate, TCP, and canaries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from testbed.hosts.messages import Command, Event, Message, Sample, SendCanary, StartFlood, StopFlood
from testbed.net.dev import Kind
from testbed.simulation.datagrams import Datagrams
from testbed.simulation.link import Port
from testbed.simulation.tcp_stream import SimulatedTcpStream

TICK_S = 0.002
FRAMES_PER_TICK = 4
"""A slow flood takes its turn less often, with so many frames on average."""
DRAWN_AT_ONCE = 1024
CANARY_FRAME = 64 + 42
"""Bytes of payload and headers."""


class SimulatedFlood:
    """`pps` frames a second of `size` bytes, on average, of each of `kinds` in turn (none: for another host)."""

    def __init__(self, source: Port, target: Port, kinds: tuple[Kind, ...], *, pps: int, size: int, seed: int) -> None:
        self.pps = pps
        self.sent = 0
        self._source, self._target, self._size, self._kinds = source, target, size, kinds
        self._turn = 0
        self._tick = max(TICK_S, FRAMES_PER_TICK / pps)
        self._random = np.random.default_rng(seed)
        self._counts: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to send."""
        self._timer = self._loop.call_later(self._tick, self._step)

    def stop(self) -> None:
        """Send no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step(self) -> None:
        if not self._counts:
            self._counts = self._random.poisson(self.pps * self._tick, DRAWN_AT_ONCE).tolist()
        count = self._counts.pop()
        self._timer = self._loop.call_later(self._tick, self._step)
        if count:
            codes = np.arange(self._turn, self._turn + count, dtype=np.intp) % max(1, len(self._kinds))
            self._turn = (self._turn + count) % max(1, len(self._kinds))
            self.sent += count
            self._source.up.send(Datagrams(self._source, self._target, self._size, codes, self._kinds))


class SimulatedNeighbour:
    """The floods and TCP streams of one host that start together, under command of the runner."""

    def __init__(
        self, name: str, floods: Sequence[SimulatedFlood], streams: Sequence[SimulatedTcpStream] = ()
    ) -> None:
        self.name = name
        self._floods = floods
        self._streams = streams
        self._traffic: tuple[SimulatedFlood | SimulatedTcpStream, ...] = (*floods, *streams)
        self._said: list[Message] = []
        self._started: float | None = None
        self._loop = asyncio.get_running_loop()

    def send(self, command: Command) -> bool:
        """Obey the runner."""
        if isinstance(command, StartFlood) and self._started is None:
            self._started = self._loop.time()
            for each in self._traffic:
                each.start()
            self._say("flood_started", {})
        elif isinstance(command, StopFlood):
            for each in self._traffic:
                each.stop()
            self._say("flood_stopped", self._report())
        return True

    def messages(self) -> list[Message]:
        """What was said since the last call, and the counters of this moment once there are any."""
        said, self._said = self._said, []
        if self._started is not None:
            sent = sum(flood.sent for flood in self._floods)
            said.append(Sample(self.name, self._loop.time(), {"flood_sent": sent, "flood_lost": 0}))
        return said

    def _report(self) -> dict[str, Any]:
        now = self._loop.time()
        elapsed = now - (now if self._started is None else self._started)
        each = [
            {"sent": flood.sent, "lost": 0, "pps": flood.sent / elapsed if elapsed else 0.0} for flood in self._floods
        ]
        sent = sum(flood.sent for flood in self._floods)
        streams = [stream.report() for stream in self._streams]
        return {"sent": sent, "lost": 0, "pps": sum(flood["pps"] for flood in each), "each": each, "streams": streams}

    def _say(self, name: str, fields: dict[str, Any]) -> None:
        self._said.append(Event(self.name, self._loop.time(), name, fields))


class SimulatedCanary:
    """Sends a client's canary socket (of the given `kind`) datagrams, evenly over the time that an order gives."""

    def __init__(self, name: str, source: Port, target: Port, kind: Kind) -> None:
        self.name = name
        self._datagram = Datagrams(source, target, CANARY_FRAME, np.zeros(1, np.intp), (kind,))
        self._loop = asyncio.get_running_loop()

    def send(self, command: Command) -> bool:
        """Obey the runner."""
        if isinstance(command, SendCanary):
            interval = command.seconds / max(1, command.count - 1)
            for number in range(command.count):
                self._loop.call_later(number * interval, self._datagram.source.up.send, self._datagram)
        return True

    def messages(self) -> list[Message]:
        """It has nothing to say."""
        return []
