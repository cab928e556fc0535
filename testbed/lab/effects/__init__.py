"""Link effects by kind: what may happen to frames on their way. Each is a file of its own; `stack` combines them.

They work on bytes and numbers only; who moves the frames (fault_relay.py, the simulator's links) owns clock and wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.lab.effects.burst_loss import BurstLoss, BurstLossEffect
from testbed.lab.effects.corrupt import Corrupt, CorruptEffect
from testbed.lab.effects.delay import Delay, DelayEffect
from testbed.lab.effects.duplicate import Duplicate, DuplicateEffect
from testbed.lab.effects.effect import AnyEffect, Effect
from testbed.lab.effects.every_nth import EveryNth, EveryNthEffect
from testbed.lab.effects.flap import Flap, FlapEffect
from testbed.lab.effects.loss import Loss, LossEffect
from testbed.lab.effects.match_loss import MatchLoss, MatchLossEffect
from testbed.lab.effects.mtu import Mtu, MtuEffect
from testbed.lab.effects.partition import Partition, PartitionEffect
from testbed.lab.effects.rate import Rate, RateEffect
from testbed.lab.effects.reorder import Reorder, ReorderEffect
from testbed.lab.effects.truncate import Truncate, TruncateEffect

_KINDS: dict[str, tuple[type, type[Effect[Any]]]] = {
    "delay": (Delay, DelayEffect),
    "rate": (Rate, RateEffect),
    "loss": (Loss, LossEffect),
    "burst_loss": (BurstLoss, BurstLossEffect),
    "every_nth": (EveryNth, EveryNthEffect),
    "match_loss": (MatchLoss, MatchLossEffect),
    "duplicate": (Duplicate, DuplicateEffect),
    "reorder": (Reorder, ReorderEffect),
    "corrupt": (Corrupt, CorruptEffect),
    "truncate": (Truncate, TruncateEffect),
    "partition": (Partition, PartitionEffect),
    "flap": (Flap, FlapEffect),
    "mtu": (Mtu, MtuEffect),
}
EFFECTS: dict[str, type] = {kind: numbers for kind, (numbers, _) in _KINDS.items()}
"""The numbers each kind of effect takes: a frozen dataclass that raises ValueError for those that make no sense."""
WITHOUT_BYTES = frozenset(kind for kind, (_, effect) in _KINDS.items() if not effect.needs_bytes)
"""The kinds that do not look into frames."""


def numbers_of(kind: str, arguments: Mapping[str, Any]) -> Any:
    """The numbers of an effect, checked. Raises ValueError, in one line, for an unknown kind, name or value."""
    if kind not in EFFECTS:
        raise ValueError(f"there is no link effect {kind!r}: choose from {', '.join(EFFECTS)}")
    try:
        return EFFECTS[kind](**arguments)
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix(f"{EFFECTS[kind].__name__}.__init__() ")
        raise ValueError(f"{kind}: {text}") from None


def make(kind: str, arguments: Mapping[str, Any], seed: int) -> AnyEffect:
    """An effect that is about to begin; what is random in it comes from `seed`. Raises ValueError as above."""
    numbers = numbers_of(kind, arguments)
    return _KINDS[kind][1](numbers, seed)
