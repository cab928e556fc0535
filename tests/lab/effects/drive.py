"""Frames through an effect or a stack, by the list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from testbed.lab.effects import make
from testbed.lab.effects.stack import Stack

HEADER = bytes.fromhex("02000000000b02000000000a0800")


def udp_frame(number: int, size: int = 100, port: int = 9, protocol: int = 17) -> bytes:
    """A frame whose IPv4 header says `protocol`; its number is in the last four bytes."""
    ip = bytes.fromhex("4500") + (size - 14).to_bytes(2) + bytes(5) + bytes([protocol]) + bytes(10)
    transport = (5000).to_bytes(2) + port.to_bytes(2) + bytes(4)
    if protocol == 6:
        transport += bytes(4) + b"\x50" + bytes(7)
    head = HEADER + ip + transport
    return head + bytes(size - len(head) - 4) + number.to_bytes(4)


def through(stack: Stack[bytes], frames: Iterable[bytes], interval: float = 0.001) -> list[tuple[float, bytes]]:
    """Put a frame in every `interval` seconds, looking just then, and wait for the last; (when, frame) as they left."""
    seen: list[tuple[float, bytes]] = []
    now = 0.0
    for frame in frames:
        while stack.next_due is not None and stack.next_due < now:
            due = stack.next_due
            seen += [(due, each) for each in stack.due(due)]
        stack.put(frame, now)
        seen += [(now, each) for each in stack.due(now)]
        now += interval
    while stack.next_due is not None:
        due = stack.next_due
        seen += [(due, each) for each in stack.due(due)]
    return seen


def stack_of(*effects: tuple[str, dict[str, Any]], seed: int = 1) -> Stack[bytes]:
    """A stack of effects set at 0 s."""
    stack: Stack[bytes] = Stack()
    for number, (kind, arguments) in enumerate(effects, start=1):
        stack.add(number, make(kind, arguments, seed * 100 + number), 0.0)
    return stack


def lost(frames: int, kind: str, seed: int = 1, **arguments: Any) -> list[int]:
    """Which of so many frames an effect loses."""
    left = {frame for _, frame in through(stack_of((kind, arguments), seed=seed), map(udp_frame, range(frames)))}
    return [number for number in range(frames) if udp_frame(number) not in left]
