"""Loss of chosen frames only: all ARP, say, or what goes to one port."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from testbed.lab.effects.effect import Effect, Frame, check_probability
from testbed.lab.effects.headers import parse


@dataclass(frozen=True, slots=True)
class MatchLoss:
    """Frames that have every property asked for are lost with this probability; what is None is not asked for.

    `ethertype` as in 0x0806, `ip_protocol` as in 17, `port` is the source or destination port of TCP or UDP,
    `smallest` and `largest` are bytes from the Ethernet header on.
    """

    ethertype: int | None = None
    ip_protocol: int | None = None
    port: int | None = None
    smallest: int | None = None
    largest: int | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self.probability, "probability")
        asked = (self.ethertype, self.ip_protocol, self.port, self.smallest, self.largest)
        if all(value is None for value in asked):
            raise ValueError("say which frames: ethertype, ip_protocol, port, smallest or largest")

    def matches(self, frame: bytes) -> bool:
        """Is this one of the frames?"""
        if self.smallest is not None and len(frame) < self.smallest:
            return False
        if self.largest is not None and len(frame) > self.largest:
            return False
        headers = parse(frame)
        return (
            self.ethertype in (None, headers.ethertype)
            and self.ip_protocol in (None, headers.ip_protocol)
            and (self.port is None or (headers.ports is not None and self.port in headers.ports))
        )


class MatchLossEffect(Effect[MatchLoss]):
    needs_bytes = True

    def apply(self, frame: Frame, now: float) -> Iterable[tuple[float, Frame]]:
        numbers = self.numbers
        if numbers.matches(cast(bytes, frame)) and self.random.random() < numbers.probability:
            return self.lose("match_loss")
        return ((now, frame),)
