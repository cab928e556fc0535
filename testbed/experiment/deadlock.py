"""Hung for ever, or merely starved? Decided from what a stalled client did, and from nothing else.

A deadlock: tasks wait, memory is short, and for the whole stall limit no swap request completes, no page is reclaimed
and no page is touched; then the floods stop and for as long again the same. A kernel without the series stays hung when
the flood ends, since the memory its swap needs is held by what waits for swap. A host that moves again was starved, and
one with memory to spare is stuck on something else, unless that memory is in blocks too small for a receive buffer, or
its own swap server waits in direct reclaim: for a request, which only that server could end. Faults are cleared
together with the floods: a host that goes on without them was held up by them, and one that a fault holds for good (a
server that was killed) is not deadlocked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.experiment.evidence import Missing, Stall, gauge, moved
from testbed.experiment.faults.injected import Injected, named

SERVER_TOO = "; the swap server is on this machine, and waits in direct reclaim for swap"
TOO_SMALL = ", in blocks too small for a receive buffer"
RISING = {"allocstall": "allocstall", "rx_refill_fail": "RX refill failures"}
TOLERANCE = 0.001
"""Seconds by which a wait may miss its limit: clocks are read a moment apart."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Whether a stall was a deadlock, and the line that says why."""

    deadlock: bool
    text: str


def diagnose(stall: Stall, stall_limit: float, faults: Sequence[Injected] = ()) -> Diagnosis:
    """Judge one stall; `stall_limit` in seconds, `faults` are those that acted on the client or its server.

    What cannot be judged is no deadlock.
    """
    try:
        return _diagnose(stall, stall_limit, during(stall, faults))
    except Missing as missing:
        return Diagnosis(False, f"it stalled, but whether for ever could not be checked: no {missing}")


def during(stall: Stall, faults: Sequence[Injected]) -> list[Injected]:
    """The faults that can have had a part in a stall."""
    moved, noticed = stall.last_moved.time, stall.noticed.time
    return [fault for fault in faults if fault.began <= noticed and fault.felt_until >= moved]


def _diagnose(stall: Stall, stall_limit: float, faults: Sequence[Injected]) -> Diagnosis:
    still = stall.noticed.time - stall.last_moved.time
    confirmed = stall.after.time - max(stall.flood_stopped, stall.noticed.time)
    waiting = [gauge(each, "tasks_waiting") for each in (stall.noticed, stall.after)]
    if still < stall_limit - TOLERANCE or confirmed < stall_limit - TOLERANCE:
        return Diagnosis(
            False,
            f"it stalled, but was watched for {still:.1f} s and then {confirmed:.1f} s only, "
            f"less than the stall limit of {stall_limit:.1f} s: not enough to call it a deadlock",
        )
    if before := moved(stall.last_moved, stall.noticed):
        return Diagnosis(False, f"slow, not deadlocked: within {still:.1f} s {_changes(before)}")
    if after := moved(stall.noticed, stall.after):
        if faults:
            return Diagnosis(
                False, f"no progress for {still:.1f} s while {named(faults)}; without faults {_changes(after)}"
            )
        return Diagnosis(
            False,
            f"starved, not deadlocked: nothing moved for {still:.1f} s, then the flood stopped and {_changes(after)}",
        )
    if min(waiting) == 0:
        return Diagnosis(False, f"nothing moved for {still:.1f} s, but no task was waiting: idle, not deadlocked")
    if lasting := [fault for fault in faults if fault.blocks and fault.ended is None]:
        return Diagnosis(False, f"no progress for {still:.1f} s while {named(lasting)}, which nothing has ended")
    if any(stall_at.counters.get("nbd_live_connections") == 0 for stall_at in (stall.noticed, stall.after)):
        return Diagnosis(
            False,
            f"the swap server was away, no deadlock: nothing moved for {still:.1f} s, nor for {confirmed:.1f} s after "
            "the flood had stopped, and there was no connection to it",
        )
    free = gauge(stall.after, "nr_free_pages")
    refused = gauge(stall.after, "rx_refill_fail") - gauge(stall.noticed, "rx_refill_fail")
    reclaiming = any(each.counters.get("nbd_server_reclaiming") for each in (stall.noticed, stall.after))
    if free > stall.scarce and not refused and not reclaiming:
        return Diagnosis(
            False,
            f"stuck, but not for memory: nothing moved for {still:.1f} s, nor for {confirmed:.1f} s after the flood "
            f"had stopped, with {free} pages free: any request is granted while more than {stall.scarce} are",
        )
    return Diagnosis(
        True,
        f"deadlock: no swap completion, no page reclaimed, no page touched for {still:.1f} s while {waiting[0]} tasks "
        f"waited, nor for {confirmed:.1f} s after the flood had stopped{_cleared(faults)}{SERVER_TOO * reclaiming}; "
        f"{signature(stall)}{TOO_SMALL * (free > stall.scarce and refused > 0)}",
    )


def signature(stall: Stall) -> str:
    """The counters that mark a swap deadlock, in one line. Raises Missing.

    What should stand still is compared over the second wait, since the first one begins with the last requests being
    queued; what should rise, over both.
    """
    first, noticed, last = stall.last_moved, stall.noticed, stall.after
    submitted = gauge(last, "pswpout") - gauge(noticed, "pswpout")
    before, writeback = gauge(noticed, "nr_writeback"), gauge(last, "nr_writeback")
    parts = [
        f"pswpout +{submitted}" if submitted else f"pswpout flat at {gauge(last, 'pswpout')}",
        f"nr_writeback {'constant at' if before == writeback else f'{before} to'} {writeback}",
        *(f"{words} +{gauge(last, name) - gauge(first, name)}" for name, words in RISING.items()),
        f"{gauge(last, 'nr_free_pages')} pages free",
    ]
    return ", ".join(parts)


def _cleared(faults: Sequence[Injected]) -> str:
    return f" and faults had been cleared ({named(faults)})" if faults else ""


def _changes(changes: dict[str, int]) -> str:
    return ", ".join(f"{name} went up by {change}" for name, change in changes.items())
