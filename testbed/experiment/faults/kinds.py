"""Every kind of fault there is: which layer it is of, which host can have it, and whether swap can go on under it.

A kind is a dataclass of its numbers that refuses bad ones. Those of links and of storage live where they are carried
out; those of processes and of memory are here, since who carries them out is not one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from testbed.experiment.faults.step import BadSchedule, Layer
from testbed.lab.effects import EFFECTS, WITHOUT_BYTES
from testbed.lab.effects.link_faults import effects_of
from testbed.nbd import faults as storage

DATA = ("kept", "lost")


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL. Clearing it starts the server again on the same port, with its `data` kept or lost."""

    data: Literal["kept", "lost"] = "kept"

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise ValueError(f"data must be kept or lost, not {self.data!r}")


@dataclass(frozen=True, slots=True)
class Pause:
    """SIGSTOP, and SIGCONT when it is cleared."""


@dataclass(frozen=True, slots=True)
class StopReading:
    """Nobody reads from the bystander on `port` (None: from any) until it is cleared."""

    port: int | None = None

    def __post_init__(self) -> None:
        if self.port is not None:
            _check_count(self.port, "port", 65535)


@dataclass(frozen=True, slots=True)
class MinFreeKbytes:
    """/proc/sys/vm/min_free_kbytes is set to `kbytes`, and back when it is cleared."""

    kbytes: int

    def __post_init__(self) -> None:
        _check_count(self.kbytes, "kbytes", 1 << 30)


@dataclass(frozen=True, slots=True)
class MemoryTaken:
    """A balloon takes `bytes` of memory, as far as reclaim gives it any, until it is cleared."""

    bytes: int

    def __post_init__(self) -> None:
        _check_count(self.bytes, "bytes", 1 << 50)


def _check_count(value: object, what: str, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{what} must be a whole number from 1 to {most}, not {value!r}")


def _own(kind: str, arguments: Mapping[str, Any]) -> None:
    try:
        OWN[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{kind}: {str(error).rpartition('__init__() ')[2]}") from None


def _link(kind: str, arguments: Mapping[str, Any]) -> None:
    numbers = dict(arguments)
    if not isinstance(numbers.pop("netem", False), bool):
        raise ValueError(f"{kind}: netem must be True or False, not {arguments['netem']!r}")
    effects_of(kind, numbers, 0)


PROCESS: dict[str, type] = {"kill": Kill, "pause": Pause, "stop_reading": StopReading}
MEMORY: dict[str, type] = {"min_free_kbytes": MinFreeKbytes, "memory_taken": MemoryTaken}
OWN = PROCESS | MEMORY
KINDS: dict[Layer, Mapping[str, type]] = {
    "link": EFFECTS,
    "storage": storage.FAULTS,
    "process": PROCESS,
    "memory": MEMORY,
}
CHECKS: dict[Layer, Callable[[str, dict[str, Any]], object]] = {
    "link": _link,
    "storage": lambda kind, arguments: storage.make(kind, arguments, 0),
    "process": _own,
    "memory": _own,
}
LAYERS: tuple[Layer, ...] = tuple(KINDS)
SIMULATED = frozenset({*WITHOUT_BYTES, *MEMORY, "stop_reading"})
"""The kinds that there are on virtual time."""
BLOCKING: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "kill": lambda _: True,
    "pause": lambda _: True,
    "partition": lambda _: True,
    "loss": lambda numbers: numbers["probability"] == 1,
    "every_nth": lambda numbers: numbers["n"] == 1,
    "flap": lambda numbers: numbers.get("down") == 1,
    "hang": lambda numbers: not numbers,
    "stall": lambda numbers: not set(numbers) - {"seconds"},
}
"""Kinds under which no swap request of the host, or of its clients, can complete, and with which numbers."""


def layer_of(kind: str) -> Layer:
    """The layer that a kind belongs to. Raises BadSchedule for one that does not exist."""
    for layer, kinds in KINDS.items():
        if kind in kinds:
            return layer
    everything = sorted(kind for kinds in KINDS.values() for kind in kinds)
    raise BadSchedule(f"there is no fault {kind!r}: choose one of {', '.join(everything)}")


def check_arguments(kind: str, arguments: Mapping[str, Any]) -> None:
    """Raises BadSchedule for numbers that the kind does not take."""
    try:
        CHECKS[layer_of(kind)](kind, dict(arguments))
    except (TypeError, ValueError) as error:
        raise BadSchedule(str(error)) from None


def blocks(kind: str, arguments: Mapping[str, Any]) -> bool:
    """Can no swap request of the host, or of its clients, complete while the fault acts?"""
    return kind in BLOCKING and BLOCKING[kind](arguments)
