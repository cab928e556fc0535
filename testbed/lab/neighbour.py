"""A host that only makes noise: several floods and TCP streams at once, and the canary, under command of the runner.

`flood_main` is the main of a HostProcess. It says Ready with its templates built, a Sample ten times a second, and
sends nothing before it is told to. The canary goes through an ordinary UDP socket, as any program's traffic would.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multiprocess.connection import Connection

from testbed.hosts.messages import Event, Finished, Ready, Sample, SendCanary, Shutdown, StartFlood, StopFlood
from testbed.lab.errors import LabError, lab_error
from testbed.lab.flood import TICK_S, Flood
from testbed.lab.stream import Stream, StreamProfile
from testbed.lab.templates import Endpoints, build

SAMPLE_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class FloodProfile:
    """One flood: its kind (templates.BUILDERS), rate and frame size in bytes (Ethernet header included), who to whom.

    `pps` None: as fast as possible; 0: none. `source_ports`: a range to draw source ports from, if wanted.
    """

    kind: str
    pps: float | None
    size: int
    source_mac: str
    destination_mac: str
    source_ip: str
    destination_ip: str
    ports: Sequence[int] = (9,)
    source_ports: tuple[int, int] | None = None
    vary_ip_id: bool = False


@dataclass(frozen=True, slots=True)
class CanaryProfile:
    """Where the canary's datagrams go, and the bytes of UDP payload each has (8 of them its sequence number)."""

    destination_ip: str
    port: int
    size: int = 64


@dataclass(frozen=True, slots=True)
class FloodSpec:
    """What `flood_main` needs to know. `seed` determines the varied ports and identifications."""

    host: str
    ifname: str
    floods: Sequence[FloodProfile] = ()
    canary: CanaryProfile | None = None
    seed: int = 0
    streams: Sequence[StreamProfile] = ()


def flood_main(channel: Connection, spec: FloodSpec) -> None:
    """Obey StartFlood, StopFlood, SendCanary and Shutdown until Shutdown. Raises LabError for a spec it cannot do."""
    with contextlib.ExitStack() as stack:
        floods = [stack.enter_context(_flood(spec, number)) for number in range(len(spec.floods))]
        canary = None if spec.canary is None else stack.enter_context(contextlib.closing(Canary(spec.canary)))
        streams = [stack.enter_context(contextlib.closing(Stream(profile))) for profile in spec.streams]
        _Neighbour(channel, spec.host, floods, streams, canary).run()


def _flood(spec: FloodSpec, number: int) -> Flood:
    profile = spec.floods[number]
    ends = Endpoints(profile.source_mac, profile.destination_mac, profile.source_ip, profile.destination_ip)
    templates = build(profile.kind, ends, profile.ports, profile.size)
    return Flood(
        *(spec.ifname, templates, profile.pps),
        source_ports=profile.source_ports,
        vary_ip_id=profile.vary_ip_id,
        seed=spec.seed + number,
    )


class Canary:
    """Datagrams numbered from 0 over its whole life, paced evenly over the time each order gives."""

    def __init__(self, profile: CanaryProfile) -> None:
        self.sent = 0
        self.refused = 0
        self._profile = profile
        self._orders: list[tuple[float, float, int]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def order(self, command: SendCanary, now: float) -> None:
        """Have `command.count` datagrams sent, evenly from `now` to `now + command.seconds`."""
        interval = command.seconds / max(1, command.count - 1)
        self._orders.append((now, interval, command.count))

    def step(self, now: float) -> bool:
        """Send what is due; True when that completed an order."""
        completed = False
        left: list[tuple[float, float, int]] = []
        for due, interval, count in self._orders:
            while count and due <= now:
                self._send()
                due, count = due + interval, count - 1
            completed |= not count
            if count:
                left.append((due, interval, count))
        self._orders = left
        return completed

    def next(self) -> float:
        """When the next datagram is due, CLOCK_MONOTONIC seconds; infinity when none is."""
        return min((due for due, _, _ in self._orders), default=float("inf"))

    def _send(self) -> None:
        number = self.sent + self.refused
        payload = number.to_bytes(8, "big") + bytes(max(0, self._profile.size - 8))
        try:
            self._socket.sendto(payload, (self._profile.destination_ip, self._profile.port))
            self.sent += 1
        except (ConnectionRefusedError, BlockingIOError):
            self.refused += 1
        except OSError as error:
            raise lab_error(f"sending the canary to {self._profile.destination_ip}", error.errno or 0) from error

    def close(self) -> None:
        self._socket.close()


class _Neighbour:
    def __init__(
        self, channel: Connection, host: str, floods: list[Flood], streams: list[Stream], canary: Canary | None
    ) -> None:
        self._channel = channel
        self._host = host
        self._floods = floods
        self._streams = streams
        self._canary = canary
        self._flooding = False

    def run(self) -> None:
        self._channel.send(Ready(self._host, {"floods": len(self._floods)}))
        sample_at = time.monotonic()
        with contextlib.closing(select.epoll()) as poller:
            poller.register(self._channel.fileno(), select.EPOLLIN)
            while True:
                now = time.monotonic()
                wake = min(self._work(now), sample_at)
                if now >= sample_at:
                    self._channel.send(Sample(self._host, now, self._counters()))
                    sample_at = max(sample_at + SAMPLE_EVERY_S, now)
                pause = max(0.0, wake - time.monotonic())
                if poller.poll(max(TICK_S, pause) if pause else 0) and self._obey(self._channel.recv()):
                    self._channel.send(Finished(self._host, self._report()))
                    return

    def _work(self, now: float) -> float:
        """Send all that is due; when to come back."""
        wake = float("inf")
        if self._flooding:
            wake = min([flood.step(now) for flood in self._floods], default=wake)
            wake = min([stream.step(now) for stream in self._streams], default=wake)
        if self._canary is not None:
            if self._canary.step(now):
                self._say("canary_sent", {"sent": self._canary.sent, "refused": self._canary.refused})
            wake = min(wake, self._canary.next())
        return wake

    def _obey(self, command: Any) -> bool:
        """Carry out a command; True for Shutdown."""
        match command:
            case StartFlood():
                self._start()
            case StopFlood():
                self._flooding = False
                self._say("flood_stopped", self._report())
            case SendCanary():
                if self._canary is None:
                    raise LabError(f"host {self._host} was given no canary: name its destination in the spec")
                self._canary.order(command, time.monotonic())
            case Shutdown():
                return True
            case _:
                raise LabError(f"host {self._host} cannot do {type(command).__name__}: it only floods")
        return False

    def _start(self) -> None:
        if not self._flooding:
            for flood in self._floods:
                flood.restart()
            for stream in self._streams:
                stream.start()
            self._flooding = True
            self._say("flood_started", {})

    def _counters(self) -> dict[str, int]:
        counters = {
            "flood_sent": sum(flood.sent for flood in self._floods),
            "flood_lost": sum(flood.lost for flood in self._floods),
            "flood_pps": round(sum(flood.pps for flood in self._floods)),
        }
        if self._canary is not None:
            counters["canary_sent"] = self._canary.sent
        return counters

    def _report(self) -> dict[str, Any]:
        counters = self._counters()
        return {"sent": counters["flood_sent"], "lost": counters["flood_lost"], "pps": counters["flood_pps"]} | {
            "each": [{"sent": flood.sent, "lost": flood.lost, "pps": flood.pps} for flood in self._floods],
            "streams": [stream.report() for stream in self._streams],
            "canary_sent": counters.get("canary_sent", 0),
        }

    def _say(self, name: str, fields: dict[str, Any]) -> None:
        self._channel.send(Event(self._host, time.monotonic(), name, fields))
