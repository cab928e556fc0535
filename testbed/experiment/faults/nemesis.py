"""A schedule drawn at random: the same seed, plan and wishes always give the same one.

What it sets it clears before its time is over, so that a run can always end; only a flood that it kills stays dead.
No host has two faults of one kind at a time, and none is killed while it is paused; any other faults may meet, on one
host or on several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from testbed.experiment.faults.hosts import Hosts
from testbed.experiment.faults.kinds import KINDS, LAYERS, SIMULATED, layer_of
from testbed.experiment.faults.step import BadSchedule, Layer, Schedule, Step, numbered
from testbed.experiment.plan import Plan
from testbed.nbd.faults.disconnect import POINTS

SHORTEST_S, LONGEST_S = 0.1, 3.0
"""How long one fault lasts."""
FAULTS_PER_S = 0.6
NEMESIS_S = 20.0
MOST_FAULTS = 1000
EXCLUSIVE = frozenset({"kill", "pause"})
DIRECTIONS = ("both", "both", "to", "from")
DATA = ("kept", "kept", "kept", "lost")
TRIES = 20
"""Draws for each fault that is wanted: those that would meet another of their kind are thrown away."""
KBYTE = 1024

Numbers = Callable[[Random, Hosts, str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Nemesis:
    """What may be drawn: from which layers, within how many seconds, and how many faults (None: 0.6 a second)."""

    layers: tuple[Layer, ...] = LAYERS
    duration: float = NEMESIS_S
    faults: int | None = None


def draw(plan: Plan, wishes: Nemesis, seed: int, *, simulated: bool = False) -> Schedule:
    """A schedule for `plan`, if `simulated` of faults that there are on virtual time.

    Raises BadSchedule if none of its hosts can have a fault of these layers.
    """
    random = Random(f"nemesis {seed}")
    hosts = Hosts(plan)
    kinds = [kind for layer in wishes.layers for kind in KINDS[layer] if not simulated or kind in SIMULATED]
    able = {kind: names for kind in kinds if (names := hosts.able(kind))}
    if not able:
        where = " on virtual time" if simulated else ""
        raise BadSchedule(f"no host can have a fault of {', '.join(wishes.layers)}{where}")
    count = max(1, round(FAULTS_PER_S * wishes.duration)) if wishes.faults is None else wishes.faults
    steps: list[Step] = []
    taken: list[tuple[tuple[str, str], float, float]] = []
    for _ in range(TRIES * count):
        if len(taken) == count:
            break
        kind = random.choice(list(able))
        target = random.choice(able[kind])
        begin, end = _span(random, wishes.duration)
        arguments = _arguments(random, hosts, target, kind)
        slot = target, "process" if kind in EXCLUSIVE else kind
        if kind == "kill" and target in hosts.neighbours:
            end = float("inf")
        if not any(slot == other and begin <= until and since <= end for other, since, until in taken):
            taken.append((slot, begin, end))
            steps += _pair(begin, end, target, kind, arguments)
    return numbered(steps)


def _span(random: Random, duration: float) -> tuple[float, float]:
    length = min(random.uniform(SHORTEST_S, LONGEST_S), duration / 2)
    begin = random.uniform(0.0, duration - length)
    return round(begin, 3), round(begin + length, 3)


def _pair(begin: float, end: float, target: str, kind: str, arguments: dict[str, Any]) -> Iterator[Step]:
    yield Step(begin, "set", target, kind, arguments)
    if end != float("inf"):
        yield Step(end, "clear", target, kind)


def _arguments(random: Random, hosts: Hosts, target: str, kind: str) -> dict[str, Any]:
    numbers = ARGUMENTS[kind](random, hosts, target) if kind in ARGUMENTS else {}
    if layer_of(kind) == "link":
        numbers["direction"] = random.choice(DIRECTIONS)
    return numbers


def _uniform(**ranges: tuple[float, float]) -> Numbers:
    """Each number from its range, to three digits after the point."""
    return lambda random, _hosts, _target: {
        name: round(random.uniform(*between), 3) for name, between in ranges.items()
    }


def _whole(**ranges: tuple[int, int]) -> Numbers:
    return lambda random, _hosts, _target: {name: random.randint(*between) for name, between in ranges.items()}


def _port(random: Random, hosts: Hosts, target: str) -> dict[str, Any]:
    return {"port": random.choice(hosts.ports(target))}


def _kill(random: Random, hosts: Hosts, target: str) -> dict[str, Any]:
    data = random.choice(DATA)
    return {"data": "kept" if hosts.has_file(target) else data} if target in hosts.servers else {}


def _match_loss(random: Random, _hosts: Hosts, _target: str) -> dict[str, Any]:
    length = random.choice(({"smallest": 1000}, {"largest": 100}))
    return {"probability": round(random.uniform(0.01, 0.5), 3), **length}


def _once(random: Random, _hosts: Hosts, _target: str) -> dict[str, Any]:
    """One request somewhere: the connection does not survive it."""
    return {"after": random.randint(0, 500), "times": 1}


def _garbled_reply(random: Random, hosts: Hosts, target: str) -> dict[str, Any]:
    return {"part": random.choice(("magic", "data"))} | _once(random, hosts, target)


def _disconnect(random: Random, hosts: Hosts, target: str) -> dict[str, Any]:
    return {"point": random.choice(POINTS)} | _once(random, hosts, target)


def _torn_write(random: Random, hosts: Hosts, target: str) -> dict[str, Any]:
    fraction = round(random.uniform(0.0, 0.9), 3)
    return {"fraction": fraction, "told": random.choice(("error", "success"))} | _once(random, hosts, target)


def _min_free_kbytes(random: Random, hosts: Hosts, target: str) -> dict[str, Any]:
    usual = hosts.clients[target].min_free_kbytes
    return {"kbytes": max(1, round(usual * random.choice((0.25, 0.5, 2, 4))))}


def _memory_taken(random: Random, hosts: Hosts, target: str) -> dict[str, Any]:
    return {"bytes": round(hosts.clients[target].memory * random.uniform(0.05, 0.4))}


ARGUMENTS: dict[str, Numbers] = {
    "delay": _uniform(seconds=(0.0, 0.1), jitter=(0.0, 0.05)),
    "rate": _whole(bytes_per_second=(200 * KBYTE, 8192 * KBYTE), queue=(16 * KBYTE, 512 * KBYTE)),
    "loss": _uniform(probability=(0.001, 0.3)),
    "burst_loss": _uniform(p=(0.001, 0.02), r=(0.05, 0.5)),
    "every_nth": _whole(n=(2, 200)),
    "match_loss": _match_loss,
    "duplicate": _uniform(probability=(0.01, 0.5)),
    "reorder": _uniform(seconds=(0.001, 0.05), probability=(0.1, 0.9)),
    "corrupt": _uniform(probability=(0.001, 0.05)),
    "truncate": _uniform(probability=(0.001, 0.05)),
    "flap": _uniform(period=(0.1, 1.0), down=(0.1, 0.9)),
    "mtu": _whole(mtu=(576, 1400)),
    "eio_read": _uniform(probability=(0.001, 0.05)),
    "eio_write": _uniform(probability=(0.001, 0.3)),
    "eio_flush": _uniform(probability=(0.1, 1.0)),
    "enospc": _uniform(probability=(0.001, 0.3)),
    "slow": _uniform(seconds=(0.0, 0.02), jitter=(0.0, 0.02)),
    "stall": _uniform(seconds=(0.1, 2.0)),
    "short_reply": _once,
    "garbled_reply": _garbled_reply,
    "wrong_handle": _once,
    "out_of_order": _uniform(probability=(0.1, 1.0)),
    "twice": _once,
    "disconnect": _disconnect,
    "torn_write": _torn_write,
    "kill": _kill,
    "stop_reading": _port,
    "min_free_kbytes": _min_free_kbytes,
    "memory_taken": _memory_taken,
}
"""Numbers for each kind that takes any: bad enough to be felt, not so bad that nothing gets through."""
