"""The eight checks of a run, each a function from one client's evidence to (ok, evidence in words).

A check says True only for what it has seen. Evidence that is missing raises `Missing`, which the verdict turns into a
failed check. `None` (nothing to check) exists for the two checks about the flood, when none was asked for or faults
kept it away. What else faults may explain is said in `faults.injected`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from testbed.experiment.deadlock import diagnose
from testbed.experiment.evidence import (
    Canary,
    ClientEvidence,
    Missing,
    Observation,
    RunEvidence,
    gauge,
    number,
    seconds,
    section,
)
from testbed.experiment.faults.injected import Injected, named, on, outside, spans
from testbed.experiment.faults.kinds import layer_of
from testbed.experiment.link_accounts import altered_frames, link_complaint
from testbed.net.drop_reason import DropReason

MOST_TASKS, MOST_SPANS = 4, 3
"""Tasks, and runs of pages of each, that the evidence names."""
Finding = tuple[bool | None, str]
MOST_NAMED = 8
"""Tasks or slots that a line of evidence names."""
CheckFunction = Callable[[ClientEvidence, RunEvidence], Finding]


def canary_before(client: ClientEvidence, _: RunEvidence) -> Finding:
    """Unrelated traffic arrives before there is pressure: all of it, since nothing is in its way yet."""
    canary = _canary(client.canary_before, "the canary before the workload")
    text = f"{canary.received} of {canary.sent} datagrams arrived before the workload"
    return canary.received == canary.sent, text


def drops_happen(client: ClientEvidence, run: RunEvidence) -> Finding:
    """Under the flood, frames for unrelated sockets sat in reserve memory, and each of them was dropped."""
    found = number(client.report, "frames", "unrelated_pfmemalloc")
    delivered = number(client.report, "frames", "unrelated_pfmemalloc_delivered")
    dropped = number(client.report, "frames", "unrelated_pfmemalloc_dropped")
    everything = sum(_counts(client.report, "frames", "dropped").values())
    if delivered:
        return False, f"{delivered} of {found} pfmemalloc frames for unrelated sockets were delivered"
    if found != dropped:
        return False, f"{found} pfmemalloc frames for unrelated sockets, but {dropped} of them were dropped"
    if everything < dropped:
        return False, f"{dropped} pfmemalloc frames were dropped, but only {everything} drops have a reason"
    if not client.flood_asked:
        return (None, "no flood: nothing that would have to be dropped") if not found else (True, _all_dropped(found))
    kept_away = [fault for fault in on(client.path | client.sources, run.faults) if _keeps_away(fault)]
    if not found and kept_away:
        return None, f"no pressure was seen, while {named(kept_away)}; the flood sent {client.flood_sent or 0}"
    if not client.flood_sent:
        return False, "the flood sent nothing"
    if not found:
        return False, (
            f"the flood sent {client.flood_sent} frames, and none of them sat in memory marked pfmemalloc: there was "
            "no pressure, or nothing marks such memory"
        )
    return True, f"{_all_dropped(found)}; the flood sent {client.flood_sent}"


def swap_is_spared(client: ClientEvidence, run: RunEvidence) -> Finding:
    """The socket filter dropped no frame of the swap connection."""
    filtered = number(client.report, "frames", "swap_socket_filtered")
    pages = number(client.report, "swap", "pages_out")
    if filtered:
        return False, f"the socket filter dropped {filtered} frames of the swap connection"
    if not client.flood_asked:
        return None, "no flood: nothing that swap would have to be told apart from"
    stopped = [fault for fault in on(client.sources, run.faults) if fault.step.kind in ("kill", "pause")]
    if not client.flood_sent and stopped:
        return None, f"the flood sent nothing: {named(stopped)}"
    if not client.flood_sent:
        return False, "the flood sent nothing"
    if not pages:
        return False, "no page was swapped out: the swap connection carried nothing that could be spared"
    return True, f"no frame of the swap connection was filtered while {pages} pages went out"


def progress(client: ClientEvidence, run: RunEvidence) -> Finding:
    """The workload finishes, and swap never stops for longer than the stall limit."""
    if panic := (client.report or {}).get("panic"):
        return False, f"the machine stopped: {panic}"
    if client.stall is not None:
        return False, diagnose(client.stall, run.stall_limit, on(client.path, run.faults)).text
    tasks = number(client.report, "workload", "tasks")
    finished = number(client.report, "workload", "finished_tasks")
    pages_in, pages_out = (number(client.report, "swap", key) for key in ("pages_in", "pages_out"))
    pause = _pauses(client, run)
    done = f"{finished} of {tasks} tasks finished{_killed(client)}, {pages_out} pages out and {pages_in} in"
    if run.out_of_time:
        return False, f"not finished within {run.time_limit:.0f} s, though still moving: {done}"
    if not tasks or finished != tasks:
        return False, done
    if not pages_out:
        return False, f"{done}: nothing was swapped, so nothing was tested"
    last = client.samples[-1]
    if gauge(last, "pswpout") > pages_out or gauge(last, "pswpin") > pages_in:
        return False, f"{done}, but its last sample had {gauge(last, 'pswpout')} out and {gauge(last, 'pswpin')} in"
    if pause.counted > run.stall_limit:
        return False, f"{done}, but swap stopped for {pause.counted:.1f} s (stall limit {run.stall_limit:.1f} s)"
    if pause.silent > run.stall_limit:
        return False, f"{done}, but the client said nothing for {pause.silent:.1f} s"
    return True, f"{done}; longest pause {pause.longest:.2f} s{pause.reason}"


@dataclass(frozen=True, slots=True)
class _Pauses:
    """Seconds: the longest pause of swap, what of it counts, and the longest silence; and why not all of it counts."""

    longest: float
    counted: float
    silent: float
    reason: str


def _pauses(client: ClientEvidence, run: RunEvidence) -> _Pauses:
    """The pauses of a client; those in which a fault let no swap request through count only outside it."""
    gap = seconds(client.report, "swap", "max_gap_s")
    seen, silent = longest_pause(client.samples)
    longest = max(gap, seen)
    blocking = [fault for fault in on(client.path, run.faults) if fault.blocks]
    if not blocking:
        return _Pauses(longest, longest, silent, "")
    moves = _moves(client.samples)
    held = spans(blocking, moves)
    paused = spans([fault for fault in blocking if fault.step.what == (client.name, "pause")], moves)
    counted, _ = longest_pause([replace(each, time=outside(each.time, held)) for each in client.samples])
    _, silent = longest_pause([replace(each, time=outside(each.time, paused)) for each in client.samples])
    return _Pauses(longest, counted, silent, f", {counted:.2f} s without what held it up: {named(blocking)}")


def _moves(samples: Sequence[Observation]) -> list[float]:
    """When swap requests were seen to have completed."""
    return [
        later.time
        for earlier, later in pairwise(samples)
        if gauge(later, "swap_completions") != gauge(earlier, "swap_completions")
    ]


def _killed(client: ClientEvidence) -> str:
    """The tasks that were killed, by what killed them."""
    killed = section(client.report, "workload").get("killed") or {}
    by_cause: dict[str, list[str]] = {}
    for task, cause in killed.items():
        by_cause.setdefault(str(cause), []).append(str(task))
    named = [f"{_some(tasks)} killed by {cause}" for cause, tasks in by_cause.items()]
    if named and (lost := section(client.report, "swap").get("connection_lost")):
        named.append(f"the connection to the swap server was lost: {lost}")
    return f" ({'; '.join(named)})" if named else ""


def _lost_pages(client: ClientEvidence) -> str:
    """The slots that a server which was started again did not have any more."""
    lost = section(client.report, "swap").get("lost_pages") or {}
    if not lost.get("count"):
        return ""
    slots = _some([str(each["slot"]) for each in lost["pages"]], lost["count"])
    return f"; the server had lost {lost['count']} of them after a reconnection: slots {slots}"


def _some(names: Sequence[str], count: int | None = None) -> str:
    """The first few of `count` names."""
    more = (len(names) if count is None else count) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def integrity(client: ClientEvidence, _: RunEvidence) -> Finding:
    """Every page was read back, some of them from swap, and all of them as written."""
    pages = number(client.report, "workload", "pages")
    checked = number(client.report, "workload", "checked")
    corrupt = number(client.report, "workload", "corrupt"), number(client.report, "swap", "corrupt")
    pages_in = number(client.report, "swap", "pages_in")
    if any(corrupt):
        return False, (
            f"{corrupt[0]} pages were not what a task had written ({corrupt[1]} as they came from swap)"
            f"{_which(client.corrupt_pages)}{_lost_pages(client)}"
        )
    if not pages or checked < pages:
        return False, f"only {checked} of {pages} pages were read back"
    if not pages_in:
        return False, f"{checked} checks held, but no page came from swap"
    return True, f"{checked} checks of {pages} pages held, {pages_in} pages having come from swap"


def conservation(client: ClientEvidence, run: RunEvidence) -> Finding:
    """Every frame has one end, every counter beside the model agrees with it, and every page is free again."""
    report = client.report
    received = number(report, "frames", "received")
    delivered = number(report, "frames", "delivered")
    pending = number(report, "frames", "pending")
    dropped = _counts(report, "frames", "dropped")
    lost = sum(dropped.values())
    ends = f"{delivered} delivered + {lost} dropped + {pending} pending"
    if received != delivered + lost + pending:
        return False, f"{received} frames came in, but {ends} = {delivered + lost + pending}"
    complaint = (
        _ledger_complaint(report, dropped, delivered)
        or _interface_complaint(report, received)
        or next(filter(None, map(link_complaint, run.links.items())), None)
        or _socket_complaint(report, altered_frames(run.links))
        or _virtual_machine_complaint(report)
    )
    if complaint:
        return False, complaint
    leaked = number(report, "pages_leaked")
    if leaked:
        return False, f"{leaked} emulated pages were not free after shutdown"
    return True, f"{received} frames = {ends}, as the kernel's counters say; all pages free"


def canary_after(client: ClientEvidence, _: RunEvidence) -> Finding:
    """Unrelated traffic arrives again; only the buffers left over in one ring may still cost it a datagram each."""
    canary = _canary(client.canary_after, "the canary after the workload")
    text = f"{canary.received} of {canary.sent} datagrams arrived after the workload"
    if canary.sent <= client.ring:
        return False, f"{text}: too few to tell, since a stale ring may drop {client.ring}"
    lost = canary.sent - canary.received
    return lost <= client.ring, f"{text} (a stale ring may drop {client.ring})"


def switch_took_effect(client: ClientEvidence, run: RunEvidence) -> Finding:
    """What only a patch does was seen if it is on, and was not seen, though there was occasion for it, if it is off.

    A patch that is off alone must have had its occasion. Of several, one may take away another's (without the patch
    that marks reserve memory, nothing can meet it): one of them at least must show that it is off.
    """
    witnesses = section(client.report, "witnesses")
    off_seen: list[str] = []
    on_seen: list[str] = []
    hidden: dict[str, str] = {}
    wrong: list[str] = []
    for patch in sorted(client.acting):
        on = patch in run.patches
        if str(patch) not in witnesses:
            if not on:
                wrong.append(f"patch {patch} is off, and nothing was watched that would show it")
            continue
        occasions = number(client.report, "witnesses", str(patch), "opportunity")
        seen = number(client.report, "witnesses", str(patch), "witness")
        what = section(client.report, "witnesses", str(patch)).get("what", "its effect")
        if on and occasions and not seen:
            wrong.append(f"patch {patch} is on, but was never seen at work ({what}, {occasions} occasions)")
        elif not on and seen:
            wrong.append(f"patch {patch} is off, but was seen at work {seen} times ({what})")
        elif not on and not occasions:
            hidden[str(patch)] = f"patch {patch} is off, but had no occasion that would show it ({what})"
        elif occasions:
            (on_seen if on else off_seen).append(str(patch))
    if hidden and not off_seen:
        wrong += hidden.values()
    if wrong:
        return False, "; ".join(wrong)
    if not on_seen and not off_seen:
        return False, "no patch had an occasion to show that its switch works"
    return True, "; ".join(
        f"{text} {', '.join(numbers)}"
        for text, numbers in (
            ("seen at work: patch", on_seen),
            ("seen to be off: patch", off_seen),
            ("off, without an occasion to show it: patch", list(hidden)),
        )
        if numbers
    )


CHECKS: dict[str, CheckFunction] = {
    "canary before": canary_before,
    "drops happen": drops_happen,
    "swap is spared": swap_is_spared,
    "progress": progress,
    "integrity": integrity,
    "conservation": conservation,
    "canary after": canary_after,
    "the switch took effect": switch_took_effect,
}


def longest_pause(samples: Iterable[Observation]) -> tuple[float, float]:
    """Seconds of the longest time without a swap completion while tasks waited, and of the longest without a sample.

    A pause counts from the first page swapped out on: to fill a large memory takes a slow machine long. Raises Missing
    with fewer than two samples.
    """
    ordered = list(samples)
    if len(ordered) < 2:
        raise Missing("samples of the client over time")
    pause = silent = 0.0
    since = ordered[0]
    for earlier, later in pairwise(ordered):
        silent = max(silent, later.time - earlier.time)
        swapping = gauge(later, "tasks_waiting") and gauge(later, "pswpout")
        if not swapping or gauge(later, "swap_completions") != gauge(since, "swap_completions"):
            since = later
        pause = max(pause, later.time - since.time)
    return pause, silent


def _keeps_away(fault: Injected) -> bool:
    """Can less of a flood have come, or less pressure have been, because of it?"""
    return layer_of(fault.step.kind) != "memory"


def _which(pages: Mapping[str, Sequence[str]]) -> str:
    """The wrong pages of each task, those of very many only in part."""
    if not pages:
        return ""
    parts = [f"{task}: {', '.join(spans[:MOST_SPANS])}" for task, spans in sorted(pages.items())[:MOST_TASKS]]
    more = len(pages) > MOST_TASKS or any(len(spans) > MOST_SPANS for spans in pages.values())
    return f": pages {'; '.join(parts)}{', and more in result.json' if more else ''}"


def _canary(canary: Canary | None, what: str) -> Canary:
    if canary is None or canary.sent <= 0:
        raise Missing(what)
    return canary


def _all_dropped(found: int) -> str:
    return f"all {found} pfmemalloc frames for unrelated sockets were dropped"


def _counts(report: Mapping[str, Any] | None, *path: str) -> dict[str, int]:
    return {str(key): number(report, *path, str(key)) for key in section(report, *path)}


def _ledger_complaint(report: Mapping[str, Any] | None, dropped: dict[str, int], delivered: int) -> str | None:
    rows = (report or {}).get("ledger")
    if not isinstance(rows, (list, tuple)):
        raise Missing("the ledger in the client's report")
    found: dict[str, int] = {}
    for row in rows:
        reason = section(row).get("reason")
        if not isinstance(reason, str):
            raise Missing("the reason in a ledger row")
        found[reason] = found.get(reason, 0) + number(row, "frames")
    listed = found.pop(DropReason.DELIVERED.name, 0)
    found.pop(DropReason.TX_NOMEM.name, None)
    if listed != delivered:
        return f"{delivered} frames were delivered, but the ledger has {listed}"
    for reason in sorted(set(found) | {reason for reason, count in dropped.items() if count}):
        if found.get(reason, 0) != dropped.get(reason, 0):
            return (
                f"{dropped.get(reason, 0)} frames were dropped as {reason}, but the ledger has {found.get(reason, 0)}"
            )
    return None


def _interface_complaint(report: Mapping[str, Any] | None, received: int) -> str | None:
    wire, taken, lost, inner, handed = (
        number(report, "interfaces", key)
        for key in ("wire_rx_packets", "wire_received", "tp_drops", "inner_rx_packets", "inner_delivered")
    )
    if wire != taken + lost:
        return f"the kernel counted {wire} packets on the wire, but the NIC took {taken} and its socket lost {lost}"
    if received < taken:
        return f"the NIC took {taken} packets, but accounts for {received} frames only"
    if inner != handed:
        return f"the model handed on {handed} packets, but the kernel counted {inner} on the host's interface"
    return None


def _virtual_machine_complaint(report: Mapping[str, Any] | None) -> str | None:
    """Their interfaces also send out what goes to everybody, which the ledger has only once."""
    for name in (report or {}).get("virtual_machines") or ():
        delivered, sent = (number(report, "virtual_machines", str(name), key) for key in ("delivered", "sent_out"))
        if sent < delivered:
            return f"the model forwarded {delivered} frames to {name}, but its interface took {sent}"
    return None


def _socket_complaint(report: Mapping[str, Any] | None, altered: int) -> str | None:
    """Of frames that a link has altered the real socket may refuse some, for their checksum."""
    sockets = section(report, "sockets")
    if not sockets:
        raise Missing("any socket in the client's report")
    for name in sockets:
        modelled = number(report, "sockets", str(name), "delivered")
        real = number(report, "sockets", str(name), "received")
        if not 0 <= modelled - real <= altered:
            return f"the model delivered {modelled} datagrams to {name}, but the real socket got {real}"
    return None
