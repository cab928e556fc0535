"""From a topology and options to an exit status: what `testbed run` and a topology script both do.

Status 0: the expected outcome; 1: another one; 2: the rig could not run, with one line that says why.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from testbed.experiment import leftovers, preflight
from testbed.experiment.acting import acting
from testbed.experiment.arguments import RunOptions, parse_run
from testbed.experiment.errors import CannotRun
from testbed.experiment.faults.planning import scheduled
from testbed.experiment.plan import Plan, resolve
from testbed.experiment.report import show, wide
from testbed.experiment.result import Result, encode
from testbed.experiment.topology import Topology, TopologyError
from testbed.lab.errors import LabError
from testbed.patches import PatchError, check_acting

if TYPE_CHECKING:
    from testbed.experiment.live import View

EXPECTED, UNEXPECTED, CANNOT_RUN = 0, 1, 2


def run_topology(topology: Topology, argv: Sequence[str] | None = None) -> int:
    """Run a topology from its own script: `argv` None means the words after the script's name."""
    return execute(topology, parse_run(argv, sys.argv[0]))


def execute(topology: Topology, options: RunOptions) -> int:
    """Check, run, show; returns the exit status. SIGTERM ends a run in good order, as Ctrl-C does."""
    return _conclude(_on_sockets, topology, options, simulated=False)


def simulate(topology: Topology, options: RunOptions) -> int:
    """`execute` on virtual time; nothing is needed for that but memory."""
    return _conclude(_on_virtual_time, topology, options, simulated=True)


def _conclude(
    once: Callable[[Plan, RunOptions], Result], topology: Topology, options: RunOptions, *, simulated: bool
) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        plan = _plan(topology, options, simulated=simulated)
        check_acting(options.patches, acting(plan.clients, plan.schedule), options.force)
        result = once(plan, options)
    except (CannotRun, LabError, PatchError, TopologyError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return CANNOT_RUN
    except KeyboardInterrupt:
        print("testbed: interrupted", file=sys.stderr)
        return CANNOT_RUN
    publish(result, options)
    return status(result, options)


def run_once(topology: Topology, options: RunOptions, view: View | None = None) -> Result:
    """One run on real sockets. Raises CannotRun, LabError, TopologyError."""
    return _on_sockets(_plan(topology, options), options, view)


def simulate_once(topology: Topology, options: RunOptions, view: View | None = None) -> Result:
    """One run on virtual time. Raises CannotRun, LabError, TopologyError."""
    return _on_virtual_time(_plan(topology, options, simulated=True), options, view)


def _on_sockets(plan: Plan, options: RunOptions, view: View | None = None) -> Result:
    preflight.check(plan)
    leftovers.mark_children()
    from testbed.experiment.session import run

    return run(plan, options, view)


def _on_virtual_time(plan: Plan, options: RunOptions, view: View | None = None) -> Result:
    from testbed.experiment.session import simulate

    return simulate(plan, options, view)


def _plan(topology: Topology, options: RunOptions, *, simulated: bool = False) -> Plan:
    """The plan, with the faults that it is to meet."""
    plan = resolve(topology, options.overrides)
    return scheduled(plan, options.faults, options.seed, options.time_limit, simulated=simulated)


def publish(result: Result, options: RunOptions) -> None:
    """Show the result: as JSON alone on standard output, or as a table."""
    if options.json:
        sys.stdout.buffer.write(encode(result))
        sys.stdout.flush()
    show(wide(Console(stderr=options.json)), result)


def status(result: Result, options: RunOptions) -> int:
    """The exit status for a result."""
    if result.outcome == "error":
        return CANNOT_RUN
    return EXPECTED if result.outcome == options.expect else UNEXPECTED
