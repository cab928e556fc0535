"""A process in the middle of a link that passes frames on, and does to them what it is told.

The link is two veths that end in a namespace of the relay's own. Frames come in by a packet ring on one, go through
the stack of effects for their direction, and leave by a packet socket on the other; with no effect set they are sent
straight from the ring. Both hosts behind the link need their offloads off: frames are then whole, with checksums that
notice when their bytes change. A fault with `netem` among its arguments is left to the kernel's netem.

The loop waits in select(2), which takes microseconds; epoll would round every delay up to a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multiprocess.connection import Connection

from testbed.hosts.messages import ClearFault, Command, Event, Finished, Ready, Sample, SetFault, Shutdown
from testbed.lab.effects import numbers_of
from testbed.lab.effects.link_faults import LinkFaults, Way, effects_of, split
from testbed.lab.effects.stack import Stack
from testbed.lab.errors import LabError
from testbed.lab.link import interface_statistics
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.netem import Netem
from testbed.lab.packet_ring import STATUS_VLAN_VALID, FrameBlock, PacketRing
from testbed.lab.packet_sender import PacketSender, tagged_frame

HOST_SIDE, NETWORK_SIDE = "host", "network"
"""The relay's interfaces: behind one is the host whose link this is, behind the other everybody else."""
ENDS: dict[Way, tuple[str, str]] = {"to": (NETWORK_SIDE, HOST_SIDE), "from": (HOST_SIDE, NETWORK_SIDE)}
SLOTS = 8192
BUDGET = 512
"""Frames taken in a row before the other direction gets its turn."""
SAMPLE_INTERVAL = 0.1
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class FaultRelaySpec:
    """What the relay is called, in its messages and in the result."""

    name: str


def relay_name(host: str) -> str:
    """The name of the relay on a host's link."""
    return f"link of {host}"


def fault_relay_main(channel: Connection, spec: FaultRelaySpec) -> None:
    """Pass frames on until told to shut down.

    Raises LabError when the namespace lacks the two interfaces, and for a fault that no link can have.
    """
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_Relay(channel, spec.name).run())


def _new_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class Direction:
    """One way through the relay: from the interface `source` to the interface `sink`, through `stack`."""

    def __init__(self, source: str, sink: str, stack: Stack[bytes]) -> None:
        self.stack = stack
        self._namespace = NetworkNamespace.current()
        self._source = source
        self._ring = PacketRing(source, slots=SLOTS)
        self._sender = PacketSender(sink)
        self._netem = Netem(self._namespace, sink)
        self._netem_faults: dict[int, Any] = {}
        self._before = self._interface_packets()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._ring.fileno(), self.receive)

    def receive(self) -> bool:
        """Take the frames that are there, up to a budget; False when there were none."""
        block = self._ring.ready(BUDGET)
        if block is None:
            return False
        if self.stack.idle:
            self._sender.send(block)
            self.stack.passed(block.count)
        else:
            now = self._loop.time()
            for frame in _frames(block):
                self.stack.put(frame, now)
        self._ring.release(block)
        self.forward()
        return True

    def forward(self) -> None:
        """Send what is due, and come back when the next frame is."""
        if frames := self.stack.due(self._loop.time()):
            self._sender.send_bytes(frames)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.stack.next_due
        if due is not None:
            self._timer = self._loop.call_at(due, self.forward)

    def set_netem(self, number: int, numbers: Any) -> None:
        """Leave a fault to the kernel, which has its netem on the sink. Raises ValueError, LabError."""
        self._netem.set([*self._netem_faults.values(), numbers])
        self._netem_faults[number] = numbers

    def clear_netem(self, number: int) -> None:
        """End a fault that was left to the kernel, if there is one of that number."""
        if self._netem_faults.pop(number, None) is not None:
            self._netem.set(self._netem_faults.values())

    def settled(self) -> bool:
        """Take in what is left in the ring; whether that was all the kernel has counted. What is held stays held."""
        packets = self._interface_packets()
        while self.receive():
            pass
        return packets - self._before == sum(self._ring.statistics())

    def counters(self) -> dict[str, Any]:
        """Where all frames are; `interface_packets` is the kernel's own count of those that came.

        What a netem loses or holds has left the relay, so it is no longer among the `tx_packets`.
        """
        captured, ring_drops = self._ring.statistics()
        lost, queued = self._netem.statistics()
        return {
            "interface_packets": self._interface_packets() - self._before,
            "ring_packets": captured,
            "ring_drops": ring_drops,
            "taken": self.stack.taken,
            "duplicated": self.stack.duplicated,
            "altered": self.stack.altered,
            "held": self.stack.held + queued,
            "dropped": dict(self.stack.drops) | ({"netem": lost} if lost else {}),
            "tx_packets": self._sender.tx_packets - lost - queued,
            "tx_dropped": self._sender.tx_dropped + self._sender.tx_truncated,
        }

    def _interface_packets(self) -> int:
        return interface_statistics(self._namespace, self._source)["rx_packets"]

    def close(self) -> None:
        """Let go of ring and socket."""
        self._loop.remove_reader(self._ring.fileno())
        self._ring.close()
        self._sender.close()


def _frames(block: FrameBlock) -> list[bytes]:
    """Copies of a block's frames, VLAN tags back in place. One that its slot cut short is copied as far as it is."""
    tagged = block.status & STATUS_VLAN_VALID
    if tagged.any():
        return [
            tagged_frame(block, number) if tagged[number] else bytes(block.frame(number))
            for number in range(block.count)
        ]
    return [bytes(block.frame(number)) for number in range(block.count)]


class _Relay:
    def __init__(self, channel: Connection, name: str) -> None:
        self._channel = channel
        self._name = name
        self._faults: LinkFaults[bytes] = LinkFaults()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(self._failed)
        with contextlib.ExitStack() as stack:
            self.ways: dict[Way, Direction] = {
                way: stack.enter_context(contextlib.closing(Direction(*ends, self._faults.stacks[way])))
                for way, ends in ENDS.items()
            }
            self._loop.add_reader(self._channel.fileno(), self._take_commands)
            stack.callback(self._loop.remove_reader, self._channel.fileno())
            self._channel.send(Ready(self._name))
            self._sample()
            await self._over
            await self._settle()
            self._channel.send(Finished(self._name, self._counters()))

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._over.done():
            self._over.set_exception(context.get("exception") or LabError(context["message"]))

    def _sample(self) -> None:
        self._channel.send(Sample(self._name, self._loop.time(), flat(self._counters())))
        self._loop.call_later(SAMPLE_INTERVAL, self._sample)

    def _take_commands(self) -> None:
        while not self._over.done() and self._channel.poll():
            self._obey(self._channel.recv())

    def _obey(self, command: Command) -> None:
        match command:
            case SetFault():
                self._set(command)
                self._say("fault_set", {"number": command.number})
            case ClearFault(number):
                for way in self.ways.values():
                    way.clear_netem(number)
                self._say("fault_cleared", {"number": number} | self._faults.clear(number))
            case Shutdown():
                self._over.set_result(None)
            case _:
                raise LabError(f"{self._name} cannot do {type(command).__name__}: it only passes frames on")

    def _set(self, fault: SetFault) -> None:
        arguments = dict(fault.arguments)
        by_netem = arguments.pop("netem", False)
        try:
            if by_netem:
                ways, numbers = split(arguments)
                for way in ways:
                    self.ways[way].set_netem(fault.number, numbers_of(fault.kind, numbers))
            else:
                effects = effects_of(fault.kind, arguments, fault.seed)
                self._faults.set(fault.number, effects, self._loop.time())
        except ValueError as error:
            raise LabError(f"{self._name}: {error}") from None

    def _say(self, name: str, fields: dict[str, int]) -> None:
        self._channel.send(Event(self._name, self._loop.time(), name, fields))

    def _counters(self) -> dict[str, dict[str, Any]]:
        return {name: way.counters() for name, way in self.ways.items()}

    async def _settle(self) -> None:
        """Wait, a moment at most, until the frames under way have come, so that the accounts can be closed."""
        deadline = self._loop.time() + SETTLE_S
        while {way.settled() for way in self.ways.values()} != {True} and self._loop.time() < deadline:
            await asyncio.sleep(SETTLE_S / 100)


def flat(counters: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """Nested counters by one name each: `to_dropped_loss`."""
    named: dict[str, int] = {}
    for name, value in counters.items():
        named |= flat(value, f"{prefix}{name}_") if isinstance(value, Mapping) else {prefix + name: value}
    return named
