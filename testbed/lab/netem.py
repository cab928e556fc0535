"""The same faults by the kernel's own netem, where it has one: a queueing discipline on the interface frames leave by.

A fault's numbers become `struct tc_netem_qopt` and the attributes behind it (linux/pkt_sched.h, net/sched/sch_netem.c);
pyroute2 knows neither the loss model nor delay distributions, so the message is packed here. All faults of a
direction share one netem, which has one of each kind at most.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist
from typing import Any

from testbed.lab.effects.burst_loss import BurstLoss
from testbed.lab.effects.corrupt import Corrupt
from testbed.lab.effects.delay import Delay
from testbed.lab.effects.duplicate import Duplicate
from testbed.lab.effects.loss import Loss
from testbed.lab.effects.partition import Partition
from testbed.lab.effects.rate import Rate
from testbed.lab.effects.reorder import Reorder
from testbed.lab.errors import LabError
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.rtnetlink import NLM_F_CREATE, NLM_F_REPLACE, attributes

_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2, _TCA_STATS_QUEUE = 1, 2, 7, 3
_DELAY_DIST, _REORDER, _CORRUPT, _LOSS, _RATE, _RATE64, _LATENCY64, _JITTER64 = 2, 3, 4, 5, 6, 8, 10, 11
_LOSS_GE = 2
_NESTED = 0x8000
_ROOT = 0xFFFFFFFF
_HANDLE = 1 << 16
_ALWAYS = 0xFFFFFFFF
_DIST_SCALE, _DIST_SIZE = 8192, 4096
_LIMIT = 100_000
"""Frames that netem holds at most, where no rate says otherwise (its own default, 1,000, is soon too few)."""
_LARGEST_FRAME = 1514
_QOPT = struct.Struct("=6I")
_TCMSG = struct.Struct("=B3xiIII")
_QUEUE = struct.Struct("=5I")


@dataclass
class NetemOptions:
    """What one netem is told. Times in nanoseconds; probabilities as shares of 2^32 - 1."""

    limit: int = _LIMIT
    loss: int = 0
    gap: int = 0
    duplicate: int = 0
    attributes: dict[int, bytes] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """`struct tc_netem_qopt`, whose own times are in ticks and stay 0, and the attributes."""
        head = _QOPT.pack(0, self.limit, self.loss, self.gap, self.duplicate, 0)
        return head + b"".join(attribute(kind, value) for kind, value in sorted(self.attributes.items()))


def attribute(kind: int, value: bytes) -> bytes:
    """A netlink attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def netem_options(faults: Iterable[Any]) -> NetemOptions:
    """One netem for all these faults, given by their numbers.

    Raises ValueError, in one line, for what netem lacks, and for two faults that claim the same of its parameters.
    """
    options = NetemOptions()
    claimed: dict[str, str] = {}
    for numbers in faults:
        name = type(numbers).__name__
        if type(numbers) not in _PARAMETERS:
            able = ", ".join(kind.__name__ for kind in _PARAMETERS)
            raise ValueError(f"netem has no {name}, only {able}: leave it to the relay")
        parameter, apply = _PARAMETERS[type(numbers)]
        if parameter in claimed:
            raise ValueError(f"netem has one {parameter}, which {claimed[parameter]} has taken from {name}")
        claimed[parameter] = name
        apply(numbers, options)
    return options


def _share(probability: float) -> int:
    return round(probability * _ALWAYS)


def _time(options: NetemOptions, kind: int, seconds: float) -> None:
    options.attributes[kind] = struct.pack("=q", round(seconds * 1e9))


def _delay(numbers: Delay, options: NetemOptions) -> None:
    if numbers.keep_order and numbers.jitter:
        raise ValueError("netem's jitter lets frames overtake each other: leave keep_order to the relay")
    _time(options, _LATENCY64, numbers.seconds)
    _time(options, _JITTER64, numbers.jitter)
    if numbers.distribution == "normal":
        options.attributes[_DELAY_DIST] = normal_table()


@cache
def normal_table() -> bytes:
    """Quantiles of the normal distribution as iproute2's normal.dist has them: 4,096 in units of sigma / 8,192."""
    normal = NormalDist()
    quantiles = (normal.inv_cdf((number + 0.5) / _DIST_SIZE) for number in range(_DIST_SIZE))
    return struct.pack(f"={_DIST_SIZE}h", *(max(-32768, min(32767, round(each * _DIST_SCALE))) for each in quantiles))


def _rate(numbers: Rate, options: NetemOptions) -> None:
    """Netem's queue is in frames: as many as of full size fit."""
    rate = round(numbers.bytes_per_second)
    options.limit = max(1, numbers.queue // _LARGEST_FRAME)
    options.attributes[_RATE] = struct.pack("=IiIi", min(rate, _ALWAYS), 0, 0, 0)
    options.attributes[_RATE64] = struct.pack("=Q", rate)


def _loss(numbers: Loss, options: NetemOptions) -> None:
    options.loss = _share(numbers.probability)


def _partition(numbers: Partition, options: NetemOptions) -> None:
    options.loss = _ALWAYS


def _burst_loss(numbers: BurstLoss, options: NetemOptions) -> None:
    """`struct tc_netem_gemodel`: p, r, h (a bad link lets through), 1 - k (a good one loses)."""
    shares = (numbers.p, numbers.r, 1 - numbers.loss_in_bad, numbers.loss_in_good)
    model = struct.pack("=4I", *map(_share, shares))
    options.attributes[_LOSS | _NESTED] = attribute(_LOSS_GE, model)


def _duplicate(numbers: Duplicate, options: NetemOptions) -> None:
    options.duplicate = _share(numbers.probability)


def _reorder(numbers: Reorder, options: NetemOptions) -> None:
    options.gap = numbers.gap
    _time(options, _LATENCY64, numbers.seconds)
    options.attributes[_REORDER] = struct.pack("=II", _share(numbers.probability), 0)


def _corrupt(numbers: Corrupt, options: NetemOptions) -> None:
    if numbers.bits != 1 or numbers.keep_headers:
        raise ValueError("netem flips one bit, anywhere in the frame: leave bits and keep_headers to the relay")
    options.attributes[_CORRUPT] = struct.pack("=II", _share(numbers.probability), 0)


_PARAMETERS: dict[type, tuple[str, Callable[[Any, NetemOptions], None]]] = {
    Delay: ("delay", _delay),
    Rate: ("rate", _rate),
    Loss: ("loss", _loss),
    BurstLoss: ("loss", _burst_loss),
    Partition: ("loss", _partition),
    Duplicate: ("duplicate", _duplicate),
    Reorder: ("delay", _reorder),
    Corrupt: ("corrupt", _corrupt),
}
"""How each kind of numbers is told to netem, and which of its parameters that takes."""


class Netem:
    """The netem of one interface, there while it has faults. Frames it loses are gone with `drops`."""

    def __init__(self, namespace: NetworkNamespace, ifname: str) -> None:
        self._route = namespace.route
        self._ifname = ifname
        self._index = namespace.route.index(ifname)
        self._there = False
        self._dropped_before = 0

    def set(self, faults: Iterable[Any]) -> None:
        """Have exactly these faults act, given by their numbers. Raises ValueError as above, LabError without netem.

        When none is left the frames that netem holds are lost.
        """
        wanted = tuple(faults)
        options = netem_options(wanted)
        if wanted:
            body = self._message() + attribute(_TCA_KIND, b"netem\0") + attribute(_TCA_OPTIONS, options.encoded())
            flags = 0 if self._there else NLM_F_CREATE | NLM_F_REPLACE
            self._route.request_bytes(_RTM_NEWQDISC, body, f"setting netem on {self._ifname}", flags)
            self._there = True
        elif self._there:
            drops, held = self.statistics()
            self._dropped_before = drops + held
            self._route.request_bytes(_RTM_DELQDISC, self._message(), f"removing netem from {self._ifname}")
            self._there = False

    def statistics(self) -> tuple[int, int]:
        """(frames lost, frames held), duplicates that netem has made of them among the latter."""
        if not self._there:
            return self._dropped_before, 0
        for answer in self._route.dump(_RTM_GETQDISC, self._message(), doing=f"reading netem of {self._ifname}"):
            if _TCMSG.unpack_from(answer)[1:3] == (self._index, _HANDLE):
                statistics = attributes(attributes(answer[_TCMSG.size :])[_TCA_STATS2])
                held, _, drops, _, _ = _QUEUE.unpack_from(statistics[_TCA_STATS_QUEUE])
                return self._dropped_before + drops, held
        raise LabError(f"the netem on {self._ifname} is gone: somebody else has removed it")

    def _message(self) -> bytes:
        return _TCMSG.pack(0, self._index, _HANDLE, _ROOT, 0)


def missing_netem() -> str | None:
    """Why this kernel's netem cannot be used, in one line; None if it can. Tries it in a namespace of its own."""
    namespace = NetworkNamespace.create()
    try:
        netem = Netem(namespace, "lo")
        netem.set([Loss(0.5)])
        netem.statistics()
        netem.set([])
    except LabError as error:
        return f"this kernel has no netem (sch_netem): {error}"
    finally:
        namespace.close()
    return None
