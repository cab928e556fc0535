"""What every link effect is: numbers that were checked, a random generator of its own, and `apply`.

An effect is pure. It is told of one frame and the time, and answers with the frames that leave it and when each does:
none if the frame is lost (and counted in `drops`), the same frame later, two of them, another one. Time is whatever
the caller's clock shows, in seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sized
from random import Random
from typing import ClassVar, Generic, Protocol, TypeVar

Numbers = TypeVar("Numbers")
Frame = TypeVar("Frame", bound=Sized)
ETHERNET_HEADER = 14


class Effect(ABC, Generic[Numbers]):
    """One effect on one direction of a link.

    `drops` counts lost frames by reason, `altered` those whose bytes it changed. A subclass with `needs_bytes` looks
    into frames, which must be bytes-like; for the others anything with a length (Ethernet header included) will do.
    """

    needs_bytes: ClassVar[bool] = False

    def __init__(self, numbers: Numbers, seed: int) -> None:
        self.numbers = numbers
        self.random = Random(seed)
        self.drops: Counter[str] = Counter()
        self.altered = 0

    @abstractmethod
    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        """(when, frame) of everything that leaves because `frame` came at `now`; never earlier than `now`."""

    def begin(self, now: float) -> None:
        """The effect is switched on at `now`; what has a rhythm counts from here."""
        return

    def lose(self, reason: str) -> tuple[()]:
        """Count a lost frame; what `apply` returns for it."""
        self.drops[reason] += 1
        return ()


class AnyEffect(Protocol):
    """An effect, whatever its numbers are."""

    drops: Counter[str]
    altered: int

    @property
    def needs_bytes(self) -> bool: ...

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]: ...

    def begin(self, now: float) -> None: ...


def check_probability(value: float, name: str) -> None:
    """Raises ValueError unless `value` is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, not {value:g}")


def check_positive(value: float, name: str) -> None:
    """Raises ValueError unless `value` is above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0, not {value:g}")


def check_not_negative(value: float, name: str) -> None:
    """Raises ValueError unless `value` is 0 or more and finite."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must not be below 0, not {value:g}")
