"""The checks that see a real kernel with other eyes than a model: what it counts stands in for what only a model knows.

Frames are followed through three counts that know nothing of each other (the veth's, the packet socket's, the guest's
driver's), the socket filter's drops through those of UDP, and a switch through what the running kernel says of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.experiment.checks import CheckFunction, Finding, progress, switch_took_effect
from testbed.experiment.evidence import ClientEvidence, Missing, RunEvidence, number, section

LARGEST_BLOCK = "its largest free block has"
"""Said of a kernel that hung for want of a block as large as a receive buffer."""
NO_PART = "the driver does not take part: it takes no receive memory from the reserve"


def drops_happen(client: ClientEvidence, _: RunEvidence) -> Finding:
    """Under the flood the socket filter dropped datagrams in reserve memory, and UDP's own errors bear that out."""
    filtered = number(client.report, "frames", "unrelated_pfmemalloc")
    unrelated = number(client.report, "frames", "unrelated_pfmemalloc_dropped")
    errors = number(client.report, "counters", "InErrors")
    named = sum(number(client.report, "counters", name) for name in ("RcvbufErrors", "MemErrors", "InCsumErrors"))
    if errors < named:
        return False, f"UDP counted {errors} errors, but {named} of them by name"
    if errors - named > filtered:
        return False, f"UDP lost {errors - named} datagrams to a filter that counted only {filtered} drops"
    text = f"PFMemallocDrop {filtered}, {unrelated} of them datagrams by UDP's own count"
    if not client.flood_asked:
        return (None, "no flood: nothing that would have to be dropped") if not filtered else (True, text)
    if not client.flood_sent:
        return False, "the flood sent nothing"
    if not filtered:
        why = "there was no pressure, or nothing marks such memory" if _takes_part(client.report) else NO_PART
        return False, f"the flood sent {client.flood_sent} frames, and PFMemallocDrop stayed 0: {why}"
    return True, f"{text}; the flood sent {client.flood_sent}"


def progress_or_hang(client: ClientEvidence, run: RunEvidence) -> Finding:
    """As for the model; a guest that stands still is also looked at from outside."""
    ok, text = progress(client, run)
    hang = (client.report or {}).get("kernel", {}).get("hang")
    if not isinstance(hang, Mapping):
        return ok, text
    silent = max(hang["silent_s"], hang["vmstat_silent_s"])
    heard = f"; its counters were last heard of {silent:.1f} s before the end" if silent > 1 else ""
    return ok, f"{text}; {hang['activity']}{heard}{_too_small(hang)}"


def _too_small(hang: Mapping[str, Any]) -> str:
    largest, wanted = hang.get("largest_free_block"), hang.get("receive_buffer_pages", 0)
    if largest is None or largest >= wanted:
        return ""
    return f"; {LARGEST_BLOCK} {largest} pages, fewer than the {wanted} of a receive buffer"


def conservation(client: ClientEvidence, _: RunEvidence) -> Finding:
    """Every frame on the veth reached the packet socket, and from there the guest's driver, was lost, or still lies
    there; every datagram that UDP handed out was read by somebody; the guest came to an orderly end, unless it hung."""
    report = client.report
    veth, socket, lost, pending, taken, missed = (
        number(report, "interfaces", key)
        for key in ("wire_rx_packets", "socket_packets", "tp_drops", "pending", "rx_packets", "rx_missed")
    )
    if veth != socket:
        return False, f"the veth counted {veth} frames, but the guest's packet socket was given {socket}"
    unseen = socket - lost - pending - taken - missed
    ends = f"{taken} up the guest's stack + {missed} without memory + {lost} lost before the guest + {pending} pending"
    if unseen < 0 or (unseen and not _may_lose_unseen(report)):
        return False, f"{veth} frames came in, but {ends} = {veth - unseen}"
    if unseen:
        ends += f" + {unseen} that the driver had no memory for and does not count"
    if complaint := _reader_complaint(report) or _disorder(report):
        return False, complaint
    return True, f"{veth} frames = {ends}, as veth, packet socket and guest say"


def switches_are_set(client: ClientEvidence, run: RunEvidence) -> Finding:
    """The kernel that runs is the one that was meant; each of its switches stands as asked, and acts so."""
    kernel = section(client.report, "kernel")
    release, version = kernel.get("release"), kernel.get("version")
    if not release or release != version:
        raise Missing(f"kernel {version} in the client's report (it says {release or 'nothing'})")
    if not kernel.get("built"):
        off = sorted(client.acting - run.patches)
        if off:
            return False, f"patch {off[0]} should be off, but the packaged kernel {release} has no switches"
        return True, f"the packaged kernel {release} ran as it is, with all of the series on"
    return switch_took_effect(client, run)


KERNEL_CHECKS: dict[str, CheckFunction] = {
    "drops happen": drops_happen,
    "progress": progress_or_hang,
    "conservation": conservation,
    "the switch took effect": switches_are_set,
}


def kernel_findings(run: RunEvidence) -> list[str]:
    """What a reader of the result should know of the kernels that ran, in lines."""
    return [
        f"{client.name}: {NO_PART}; a kernel from testbed kernel build does"
        for client in run.clients
        if client.host == "kernel" and client.flood_asked and client.report and not _takes_part(client.report)
    ]


def _takes_part(report: Mapping[str, Any] | None) -> bool:
    return bool(section(report, "kernel").get("built"))


def _may_lose_unseen(report: Mapping[str, Any] | None) -> bool:
    """Debian's driver does not count the frames that it has no memory for, which is when free memory is below min."""
    return not _takes_part(report) and number(report, "memory", "reserve_min_free") <= number(report, "memory", "min")


def _reader_complaint(report: Mapping[str, Any] | None) -> str | None:
    """UDP counts a datagram when it is read."""
    sockets = section(report, "sockets")
    if not sockets:
        raise Missing("any socket in the client's report")
    read = sum(number(report, "sockets", str(name), "received") for name in sockets)
    counted = number(report, "counters", "InDatagrams")
    return None if read == counted else f"the guest's readers got {read} datagrams, but its kernel handed out {counted}"


def _disorder(report: Mapping[str, Any] | None) -> str | None:
    disorder = section(report, "kernel").get("disorder")
    return None if disorder is None else f"the guest did not come to an orderly end: {disorder}"
