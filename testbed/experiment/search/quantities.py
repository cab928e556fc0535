"""What can be searched for: how a value gets into a run, how far it may go, and how people say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace

from testbed.experiment.errors import CannotRun
from testbed.experiment.faults.handles import Fault, Link
from testbed.experiment.plan import Overrides, Plan
from testbed.experiment.topology import MOST_PPS, Topology
from testbed.size import format_size, parse_size

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Setting:
    """The experiment that surrounds a search, as it is without any change."""

    topology: Topology
    overrides: Overrides
    plan: Plan

    @property
    def memory(self) -> str:
        """The memory of the first client; all have the same if the command line says so."""
        return format_size(self.plan.clients[0].memory)

    @property
    def reserve(self) -> str:
        """The reserve of the first client."""
        if self.overrides.min_free_kbytes is None and self.topology.clients[0].min_free_kbytes is None:
            return "the default min_free_kbytes"
        return f"min_free_kbytes {self.plan.clients[0].min_free_kbytes:,}"

    @property
    def host(self) -> str:
        """The first client and what it has to bear."""
        return f"{self.memory} with {self.reserve}, under {self.flood},"

    @property
    def flood(self) -> str:
        """What else the first client has to bear."""
        if not self.plan.floods:
            return "no flood"
        return f"a flood of {self.plan.floods[0].pps:,} frames/s of {self.plan.floods[0].size:,} bytes"


Changed = tuple[Topology, Overrides]
"""An experiment with a value put in."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number of a run, from `least` to `most` of a `unit`. `change` puts a value into a topology and its overrides;
    `current` is what a plan has of it, or where a search may begin; `subject` and `say` are words for the sentence."""

    unit: str
    more_is_harder: bool
    least: float
    most: float
    change: Callable[[Topology, Overrides, float], Changed]
    current: Callable[[Plan], float]
    subject: Callable[[Setting], str]
    say: Callable[[float], str]
    parse: Callable[[str], float] = float


def _from_the_start(topology: Topology, fault: Callable[[Link], Fault]) -> Topology:
    """The topology with a fault on each client's link for all of the workload."""
    changed = copy(topology)
    changed.steps = [*topology.steps]
    for client in topology.clients:
        changed.at(0.0, fault(changed.link_of(client)))
    return changed


QUANTITIES: Mapping[str, Quantity] = {
    "flood": Quantity(
        unit="frames/s",
        more_is_harder=True,
        least=10,
        most=MOST_PPS,
        change=lambda topology, overrides, value: (topology, replace(overrides, flood=round(value))),
        current=lambda plan: plan.floods[0].pps,
        subject=lambda setting: (
            f"{setting.memory} with {setting.reserve} survives floods of {setting.plan.floods[0].size:,}-byte frames"
        ),
        say=lambda value: f"{value:,.0f} frames/s",
    ),
    "min-free-kbytes": Quantity(
        unit="kB",
        more_is_harder=False,
        least=10,
        most=1 << 20,
        change=lambda topology, overrides, value: (topology, replace(overrides, min_free_kbytes=round(value))),
        current=lambda plan: plan.clients[0].min_free_kbytes,
        subject=lambda setting: f"{setting.memory} survives {setting.flood} with min_free_kbytes",
        say=lambda value: f"{value:,.0f} kB",
    ),
    "memory": Quantity(
        unit="MiB",
        more_is_harder=False,
        least=1,
        most=1 << 20,
        change=lambda topology, overrides, value: (topology, replace(overrides, memory=round(value * MIB))),
        current=lambda plan: plan.clients[0].memory / MIB,
        subject=lambda setting: f"{setting.flood}, with {setting.reserve}, is survived with a memory",
        say=lambda value: f"{value:g} MiB",
        parse=lambda text: parse_size(text) / MIB,
    ),
    "rtt": Quantity(
        unit="ms",
        more_is_harder=True,
        least=0.1,
        most=60_000,
        change=lambda topology, overrides, value: (
            _from_the_start(topology, lambda link: link.delay(seconds=value / 2000, keep_order=True)),
            overrides,
        ),
        current=lambda _: 20.0,
        subject=lambda setting: f"{setting.host} survives round trips longer by",
        say=lambda value: f"{value:,g} ms",
    ),
    "loss": Quantity(
        unit="%",
        more_is_harder=True,
        least=0.01,
        most=91,
        change=lambda topology, overrides, value: (
            _from_the_start(topology, lambda link: link.loss(probability=value / 100)),
            overrides,
        ),
        current=lambda _: 2.0,
        subject=lambda setting: f"{setting.host} survives losses each way of",
        say=lambda value: f"{value:g}%",
    ),
}


def quantity(find: str, plan: Plan) -> Quantity:
    """What is to be found. Raises CannotRun if it cannot be changed in this plan."""
    if find == "flood" and not plan.floods:
        raise CannotRun(f"{plan.name} has no flood whose rate could be searched for")
    return QUANTITIES[find]


def bound(chosen: Quantity, text: str, option: str) -> float:
    """A bound from the command line, in the quantity's unit. Raises CannotRun."""
    try:
        value = chosen.parse(text)
    except ValueError as error:
        raise CannotRun(f"{option} {text}: {error}") from None
    if not chosen.least <= value <= chosen.most:
        raise CannotRun(f"{option} {text}: it must be from {chosen.least:,g} to {chosen.most:,g} {chosen.unit}")
    return value
