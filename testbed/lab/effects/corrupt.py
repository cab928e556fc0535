"""Bits that flip on the wire, after the sender's checksum was made: TCP, UDP and IP are there to notice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from testbed.lab.effects.effect import Effect, Frame, check_probability
from testbed.lab.effects.headers import parse


@dataclass(frozen=True, slots=True)
class Corrupt:
    """With this probability `bits` different bits of a frame flip, anywhere in it.

    With `keep_headers` only what comes after its Ethernet, IP and TCP or UDP headers: a frame without such bytes
    stays as it is.
    """

    probability: float
    bits: int = 1
    keep_headers: bool = False

    def __post_init__(self) -> None:
        check_probability(self.probability, "probability")
        if self.bits < 1:
            raise ValueError(f"bits must be at least 1, not {self.bits}")


class CorruptEffect(Effect[Corrupt]):
    needs_bytes = True

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        if self.random.random() < self.numbers.probability:
            frame = cast(Frame, self._corrupted(cast(bytes, frame)))
        return ((now, frame),)

    def _corrupted(self, frame: bytes) -> bytes:
        first = 8 * parse(frame).end if self.numbers.keep_headers else 0
        bits = range(first, 8 * len(frame))
        flipped = bytearray(frame)
        for bit in self.random.sample(bits, min(self.numbers.bits, len(bits))):
            flipped[bit // 8] ^= 1 << bit % 8
        self.altered += flipped != frame
        return bytes(flipped)
