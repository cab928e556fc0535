"""The accounts of those in the middle of links: every frame that came in has an end, as the kernel counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.experiment.evidence import Missing
from testbed.experiment.result import LinkFrames

_COUNTS = (
    *("interface_packets", "ring_packets", "ring_drops", "taken", "duplicated", "altered", "held"),
    *("tx_packets", "tx_dropped"),
)


def link_complaint(link: tuple[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with the account of a link, given as (host, report); None if nothing is. Raises Missing."""
    name, report = link
    for direction in ("to", "from"):
        if direction not in report:
            raise Missing(f"account of the link of {name}")
        if complaint := _complaint(report[direction]):
            return f"the link of {name}, frames {direction} it: {complaint}"
    return None


def _complaint(way: Mapping[str, Any]) -> str | None:
    if missing := [name for name in _COUNTS if name not in way]:
        raise Missing(f"{missing[0]} in the account of a link")
    seen = way["ring_packets"] + way["ring_drops"]
    if way["interface_packets"] != seen:
        return f"the kernel counted {way['interface_packets']} frames, but {seen} were seen"
    if way["ring_packets"] != way["taken"]:
        return f"{way['ring_packets']} frames came in, but {way['taken']} were taken"
    lost = sum(way["dropped"].values())
    ends = way["tx_packets"] + way["tx_dropped"] + way["held"] + lost
    if way["taken"] + way["duplicated"] != ends:
        return f"{way['taken']} frames and {way['duplicated']} copies of them, but {ends} were sent, held or dropped"
    return None


def altered_frames(links: Mapping[str, Mapping[str, Any]]) -> int:
    """Frames that went on with other bytes, on all links together, whose accounts have no complaint."""
    return sum(way["altered"] for report in links.values() for way in report.values())


def link_frames(report: Mapping[str, Any]) -> dict[str, LinkFrames]:
    """A link's section of the result, from its account."""
    return {direction: _frames(way) for direction, way in report.items()}


def _frames(way: Mapping[str, Any]) -> LinkFrames:
    kernel = {"ring": way["ring_drops"], "interface": way["tx_dropped"]}
    return LinkFrames(
        received=way["interface_packets"],
        sent=way["tx_packets"],
        duplicated=way["duplicated"],
        altered=way["altered"],
        held=way["held"],
        dropped=dict(way["dropped"]) | {reason: count for reason, count in kernel.items() if count},
    )
