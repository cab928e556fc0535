"""From what was asked for to the schedule of a run: the topology's own, a recorded one, or one drawn from the seed.

Every step is held against the plan before anything is built: the host is there, it can have such a fault, and the time
is within the run's limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.experiment.faults.hosts import Hosts
from testbed.experiment.faults.kinds import layer_of
from testbed.experiment.faults.nemesis import Nemesis, draw
from testbed.experiment.faults.recorded import DEFAULT_START, load_schedule
from testbed.experiment.faults.step import BadSchedule, Schedule, check_clears, seeded
from testbed.experiment.plan import Plan
from testbed.experiment.topology import TopologyError


@dataclass(frozen=True, slots=True)
class FaultOptions:
    """Where the schedule comes from if not from the topology: a file, or a nemesis."""

    schedule: Path | None = None
    nemesis: Nemesis | None = None

    def as_arguments(self) -> dict[str, Any]:
        """The options of the command line that say the same."""
        nemesis = self.nemesis
        return {
            "schedule": None if self.schedule is None else str(self.schedule),
            "nemesis": None if nemesis is None else ",".join(nemesis.layers),
            "nemesis_duration": None if nemesis is None else nemesis.duration,
            "nemesis_faults": None if nemesis is None else nemesis.faults,
        }


NO_OTHERS = FaultOptions()
"""The topology's own faults."""


def scheduled(
    plan: Plan, options: FaultOptions, seed: int, time_limit: float, *, simulated: bool = False
) -> Plan:
    """The plan with the schedule it is to have, each fault with a seed of its own. `simulated`: on virtual time.

    Raises TopologyError for a step that cannot be carried out, and CannotRun for a file that holds no schedule.
    """
    schedule, start = plan.schedule, plan.faults_start
    if options.schedule is not None:
        schedule, start = load_schedule(options.schedule)
    elif options.nemesis is not None:
        schedule, start = draw(plan, options.nemesis, seed, simulated=simulated), DEFAULT_START
    try:
        check(plan, schedule, time_limit)
    except BadSchedule as error:
        raise TopologyError(f"{plan.name}: {error}") from None
    return with_schedule(replace(plan, faults_start=start), seeded(schedule, seed))


def with_schedule(plan: Plan, schedule: Schedule) -> Plan:
    """The plan with this schedule, and a relay in every link that it acts on."""
    links = frozenset(step.target for step in schedule if layer_of(step.kind) == "link")
    return replace(plan, schedule=schedule, fault_links=links)


def check(plan: Plan, schedule: Schedule, time_limit: float) -> None:
    """Raises BadSchedule unless every step can be carried out."""
    hosts = Hosts(plan)
    check_clears(schedule)
    for step in schedule:
        if not 0 <= step.time < time_limit:
            raise BadSchedule(f"at {step.time:g} s: {step.kind} comes after the time limit of {time_limit:g} s")
        if step.action == "set":
            hosts.check(step)
        elif step.kind == "kill" and step.target in hosts.neighbours:
            raise BadSchedule(f"at {step.time:g} s: {step.target} was killed, and only a server can be started again")
