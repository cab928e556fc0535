"""From evidence to outcome. Pure: the same evidence always gives the same verdict.

`pass` needs every check; `deadlock` needs a stall that was watched to its end, on a rig whose own accounts are sound
(the network worked, frames and pages add up, the switches did what they say); the rest is `fail`. Nothing but the
check of the switches knows which patches were on. What failed after faults were injected says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.experiment.checks import CHECKS, CheckFunction, Finding
from testbed.experiment.deadlock import diagnose
from testbed.experiment.evidence import ClientEvidence, Missing, RunEvidence
from testbed.experiment.faults.injected import named, on
from testbed.experiment.kernel_checks import KERNEL_CHECKS
from testbed.experiment.result import Check, Outcome

MOST_SHOWN = 20
"""Clients whose evidence a check spells out."""
SOUNDNESS = ("canary before", "conservation", "the switch took effect")
BEFORE_FAULTS = "canary before"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a run and the checks it rests on."""

    outcome: Outcome
    checks: tuple[Check, ...]


def judge(run: RunEvidence) -> Verdict:
    """The verdict on a run."""
    if run.error is not None or not run.clients:
        reason = run.error or "there was no client to watch"
        return Verdict("error", tuple(Check(name, False, f"not evaluated: {reason}") for name in CHECKS))
    checks = tuple(_check(name, run) for name in CHECKS)
    return Verdict(_outcome(run, checks), checks)


def _check(name: str, run: RunEvidence) -> Check:
    findings = [
        _with_faults(name, _find(_function(name, client), client, run), client, run) for client in run.clients
    ]
    if len(findings) == 1:
        return Check(name, *findings[0])
    text = _by_client(run, findings)
    results = {ok for ok, _ in findings}
    ok = False if False in results else (True if True in results else None)
    return Check(name, ok, text)


def _function(name: str, client: ClientEvidence) -> CheckFunction:
    """A real kernel is judged by what it can show."""
    return KERNEL_CHECKS.get(name, CHECKS[name]) if client.host == "kernel" else CHECKS[name]


def _by_client(run: RunEvidence, findings: Sequence[Finding]) -> str:
    """Each client's evidence; of very many clients, that of the worst, and a count of the rest."""
    found = list(zip(run.clients, findings, strict=True))
    shown = found if len(found) <= MOST_SHOWN else sorted(found, key=_severity)[:MOST_SHOWN]
    parts = [f"{client.name}: {words}" for client, (_, words) in shown]
    if hidden := len(found) - len(shown):
        bad = sum(ok is False for _, (ok, _) in found) - sum(ok is False for _, (ok, _) in shown)
        parts.append(f"and {hidden} more clients, {bad} of which failed")
    return "; ".join(parts)


def _severity(found: tuple[ClientEvidence, Finding]) -> bool:
    return found[1][0] is not False


def _find(function: CheckFunction, client: ClientEvidence, run: RunEvidence) -> tuple[bool | None, str]:
    try:
        return function(client, run)
    except Missing as missing:
        return False, f"could not be checked: no {missing}"


def _with_faults(name: str, finding: Finding, client: ClientEvidence, run: RunEvidence) -> Finding:
    """A failure, with the faults that can have had a part in it: all but one check look at what came after them."""
    ok, words = finding
    faults = [fault for fault in on(client.path | client.sources, run.faults) if str(fault) not in words]
    if ok is not False or not faults or name == BEFORE_FAULTS:
        return finding
    return ok, f"{words} (faults: {named(faults)})"


def _outcome(run: RunEvidence, checks: Sequence[Check]) -> Outcome:
    sound = all(check.ok for check in checks if check.name in SOUNDNESS)
    diagnoses = [
        diagnose(client.stall, run.stall_limit, on(client.path, run.faults))
        for client in run.clients
        if client.stall is not None
    ]
    if sound and any(diagnosis.deadlock for diagnosis in diagnoses):
        return "deadlock"
    return "pass" if all(check.ok is not False for check in checks) else "fail"
