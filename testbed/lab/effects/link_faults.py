"""The faults of one link: a stack of effects for each way, and which of the two a fault acts on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal

from testbed.lab.effects import make
from testbed.lab.effects.effect import AnyEffect, Frame
from testbed.lab.effects.stack import Stack

Way = Literal["to", "from"]
WAYS: tuple[Way, ...] = ("to", "from")
"""Towards the host whose link it is, and away from it."""


def split(arguments: Mapping[str, Any]) -> tuple[tuple[Way, ...], dict[str, Any]]:
    """Which ways a fault acts ("direction": "both" unless it says "to" or "from"), and its effect's own numbers.

    Raises ValueError.
    """
    numbers = dict(arguments)
    direction = numbers.pop("direction", "both")
    if direction == "both":
        return WAYS, numbers
    if direction not in WAYS:
        raise ValueError(f'direction must be "both", "to" or "from", not {direction!r}')
    return (direction,), numbers


def effects_of(kind: str, arguments: Mapping[str, Any], seed: int) -> dict[Way, AnyEffect]:
    """A fault's effects, each way with a seed of its own. Raises ValueError for a fault that no link can have."""
    ways, numbers = split(arguments)
    return {way: make(kind, numbers, len(WAYS) * seed + WAYS.index(way)) for way in ways}


class LinkFaults(Generic[Frame]):
    """The two stacks of a link."""

    def __init__(self) -> None:
        self.stacks: dict[Way, Stack[Frame]] = {way: Stack() for way in WAYS}

    def set(self, number: int, effects: Mapping[Way, AnyEffect], now: float) -> None:
        """Have fault `number` act from `now` on. Raises ValueError if it does so already."""
        for way, effect in effects.items():
            self.stacks[way].add(number, effect, now)

    def clear(self, number: int) -> dict[str, int]:
        """End a fault, if there is one of that number; how many frames it lost and altered."""
        gone = [effect for stack in self.stacks.values() if (effect := stack.remove(number)) is not None]
        return {
            "frames_lost": sum(effect.drops.total() for effect in gone),
            "frames_altered": sum(effect.altered for effect in gone),
        }
