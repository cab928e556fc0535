"""One run from plan to result: its directory, who watches it, the run itself, the verdict, `result.json`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from testbed.experiment import simulate as simulation
from testbed.experiment.acting import acting
from testbed.experiment.arguments import RunOptions
from testbed.experiment.coordinator import Limits, Observer, RunRecord
from testbed.experiment.errors import CannotRun
from testbed.experiment.evidence import ClientEvidence, RunEvidence
from testbed.experiment.faults.injected import remarks
from testbed.experiment.faults.recorded import as_plain
from testbed.experiment.kernel_checks import kernel_findings
from testbed.experiment.limits import limits_reached
from testbed.experiment.link_accounts import link_frames
from testbed.experiment.live import View, watch
from testbed.experiment.output import RunDirectory
from testbed.experiment.plan import Plan
from testbed.experiment.result import (
    Capture,
    FloodTotals,
    Result,
    add_up,
    client_result,
    fault_results,
    first_stall,
    total_frames,
    total_memory,
    total_swap,
    total_times,
    total_witnesses,
    total_workload,
)
from testbed.experiment.run import execute
from testbed.experiment.verdict import judge
from testbed.experiment.version import project_version
from testbed.hosts.messages import Event, Sample
from testbed.hosts.plan import CapturePlan, TracePlan
from testbed.lab.errors import LabError
from testbed.lab.pcapng import read_statistics
from testbed.patches import without_base


class Recorder:
    """Shows what a run says, and writes it down."""

    def __init__(self, directory: RunDirectory, view: View) -> None:
        self._directory = directory
        self._view = view
        self.under_way = False

    def sample(self, sample: Sample) -> None:
        """A host's counters."""
        self._directory.sample(sample)
        self._view.sample(sample)

    def event(self, event: Event) -> None:
        """Something that happened once."""
        self.under_way = self.under_way or event.name == "workload_started"
        self._directory.event(event)
        self._view.event(event)


Execute = Callable[[Plan, frozenset[int], int, Limits, Observer], RunRecord]


def run(plan: Plan, options: RunOptions, view: View | None = None) -> Result:
    """Run a plan and judge it; `view` watches instead of what suits the terminal.

    A rig that breaks down in the middle of the workload gives the outcome `error`.

    Raises CannotRun or LabError, leaving nothing behind, when it does not get as far as the workload.
    """
    return _session(plan, options, execute, view)


def simulate(plan: Plan, options: RunOptions, view: View | None = None) -> Result:
    """`run` on virtual time. Raises CannotRun or LabError likewise."""
    return _session(plan, options, simulation.execute, view)


def _session(plan: Plan, options: RunOptions, execute: Execute, view: View | None) -> Result:
    started = time.monotonic()
    with RunDirectory.create(plan.name, options.out) as directory:
        with view or watch(plan, options) as watching:
            recorder = Recorder(directory, watching)
            if options.trace:
                plan = _traced(plan, directory)
            if options.capture is not None:
                plan = _captured(plan, directory, options.capture)
            plan = _logged(plan, directory)
            try:
                limits = Limits(options.time_limit, options.stall_limit)
                record = execute(plan, options.patches, options.seed, limits, recorder)
            except LabError as error:
                if not recorder.under_way:
                    raise
                record = _broken(str(error), options)
        for client in record.evidence.clients:
            directory.ledger(client.name, (client.report or {}).get("ledger", []))
            directory.proc(client.name, (client.report or {}).get("proc", {}))
        result = compose(plan, options, record)
        result.captures = captures(plan)
        result.directory = str(directory.path)
        result.wall_s = round(time.monotonic() - started, 3)
        directory.finish(result)
    return result


def _traced(plan: Plan, directory: RunDirectory) -> Plan:
    """The plan with a trace of each client, `trace-CLIENT.txt` and `trace-CLIENT.perfetto-trace`. Raises CannotRun."""
    if kernel := next((client.name for client in plan.clients if client.host == "kernel"), None):
        raise CannotRun(f"{kernel}: --trace is for emulated clients: a real kernel has no tracepoints of ours")
    clients = tuple(
        replace(client, trace=TracePlan(str(directory.file(f"trace-{client.name}")), number))
        for number, client in enumerate(plan.clients)
    )
    return replace(plan, clients=clients)


def _captured(plan: Plan, directory: RunDirectory, snaplen: int) -> Plan:
    """The plan with a capture of each host's link, `capture-HOST.pcapng`."""
    hosts = [interface.host for interface in plan.interfaces]
    paths = [str(directory.file(f"capture-{host}.pcapng")) for host in hosts]
    return replace(plan, captures=tuple(CapturePlan(*each, snaplen) for each in zip(hosts, paths, strict=True)))


def captures(plan: Plan) -> list[Capture]:
    """What the captures of a run that has ended hold."""
    found = []
    for path, host in ((Path(capture.path), capture.host) for capture in plan.captures):
        if path.exists():
            statistics = read_statistics(path)
            counts = (None, None) if statistics is None else (statistics.written, statistics.lost)
            found.append(Capture(host, path.name, *counts))
    return found

def _logged(plan: Plan, directory: RunDirectory) -> Plan:
    """The plan with a console log of each kernel, `console-CLIENT.log`."""
    clients = tuple(
        replace(client, console=str(directory.file(f"console-{client.name}.log")))
        if client.host == "kernel"
        else client
        for client in plan.clients
    )
    return replace(plan, clients=clients)


def compose(plan: Plan, options: RunOptions, record: RunRecord) -> Result:
    """The result of a run: its verdict, and its numbers added up."""
    verdict = judge(record.evidence)
    clients = [
        client_result(
            client.name, client.report or {}, _stalled_after(client, record.evidence), client.corrupt_pages
        )
        for client in record.evidence.clients
    ]
    return Result(
        outcome=verdict.outcome,
        checks=list(verdict.checks),
        patches=sorted(options.patches),
        seed=options.seed,
        elapsed_s=round(record.elapsed_s, 3),
        counters=add_up(client.counters for client in clients),
        frames=total_frames(clients),
        swap=total_swap(clients),
        flood=FloodTotals(record.flood_sent, record.flood_pps),
        memory=total_memory(clients),
        workload=total_workload(clients),
        witnesses=total_witnesses(clients),
        stalled_after_s=first_stall(clients),
        times=total_times(clients),
        arguments=options.as_arguments(),
        clients=clients,
        limits=limits_reached(plan, record.evidence),
        faults=fault_results(plan.schedule, record.evidence.faults),
        schedule=as_plain(plan.schedule),
        faults_start=plan.faults_start,
        links={name: link_frames(report) for name, report in record.evidence.links.items()},
        warnings=[
            *plan.warnings,
            *without_base(options.patches, acting(plan.clients, plan.schedule)),
            *kernel_findings(record.evidence),
            *remarks(plan.schedule, record.evidence.faults),
        ],
        topology=plan.name,
        version=project_version(),
        simulated=record.simulated,
        environment={"kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count() or 0},
        error=record.evidence.error,
    )


def _stalled_after(client: ClientEvidence, run: RunEvidence) -> float | None:
    if client.stall is None or run.workload_started is None:
        return None
    return round(max(0.0, client.stall.last_moved.time - run.workload_started), 3)


def _broken(error: str, options: RunOptions) -> RunRecord:
    evidence = RunEvidence([], options.patches, options.stall_limit, options.time_limit, error=error)
    return RunRecord(evidence, 0, 0.0, 0.0)
