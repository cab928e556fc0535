"""The kernel's text files as numbers: /proc/vmstat, meminfo, zoneinfo, stat, /proc/net/*, /sys/block/*/stat.

Every function takes the whole text of one file; a line that does not look as it should is passed over, since a kernel
may print more than this knows of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PAGE_KB = 4
USER_HZ = 100
_DEV_COLUMNS = (
    *("rx_bytes", "rx_packets", "rx_errs", "rx_drop", "rx_fifo", "rx_frame", "rx_compressed", "rx_multicast"),
    *("tx_bytes", "tx_packets", "tx_errs", "tx_drop", "tx_fifo", "tx_colls", "tx_carrier", "tx_compressed"),
)
_FREE_BLOCKS = re.compile(r"\b(\d+)\*(\d+)kB\b")
_NUMBER = re.compile(r"-?\d+")


def pairs(text: str) -> dict[str, int]:
    """Lines of a name and a number, as in /proc/vmstat."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if _NUMBER.fullmatch(value.strip()):
            found[name] = int(value)
    return found


def meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in pages."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words[1:] == ["kB"]:
            found[name] = int(words[0]) // PAGE_KB
    return found


def tables(text: str) -> dict[str, dict[str, int]]:
    """/proc/net/snmp and /proc/net/netstat: a line of names and a line of numbers for each protocol."""
    found: dict[str, dict[str, int]] = {}
    lines = text.splitlines()
    for heads, values in zip(lines[::2], lines[1::2], strict=False):
        protocol, _, names = heads.partition(":")
        same, _, numbers = values.partition(":")
        if protocol == same:
            found[protocol] = dict(zip(names.split(), map(int, numbers.split()), strict=False))
    return found


def net_dev(text: str) -> dict[str, dict[str, int]]:
    """/proc/net/dev by interface."""
    rows = (line.partition(":") for line in text.splitlines()[2:])
    return {name.strip(): dict(zip(_DEV_COLUMNS, map(int, values.split()), strict=False)) for name, _, values in rows}


def udp_drops(text: str) -> dict[int, int]:
    """/proc/net/udp: what each socket has dropped, by its port."""
    rows = (line.split() for line in text.splitlines()[1:])
    return {int(row[1].rpartition(":")[2], 16): int(row[-1]) for row in rows if len(row) > 12}


def softnet_stat(text: str) -> dict[str, int]:
    """/proc/net/softnet_stat, all processors together."""
    rows = [[int(word, 16) for word in line.split()[:3]] for line in text.splitlines()]
    return {name: sum(row[at] for row in rows) for at, name in enumerate(("processed", "dropped", "time_squeeze"))}


def cpu_seconds(text: str) -> dict[str, float]:
    """The first line of /proc/stat in seconds: what all processors together spent on what."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    words = text.partition("\n")[0].split()[1:]
    return dict(zip(names, (int(word) / USER_HZ for word in words), strict=False))


def block_pages(text: str) -> int:
    """/sys/block/*/stat: pages read and written so far, each counted when its request has been answered."""
    fields = text.split()
    return (int(fields[2]) + int(fields[6])) // 8 if len(fields) > 6 else 0


@dataclass(frozen=True, slots=True)
class Zones:
    """/proc/zoneinfo, all zones together, in pages."""

    managed: int
    min: int
    low: int
    high: int


def zoneinfo(text: str) -> Zones:
    """Sums over the zones that have memory."""
    found = dict.fromkeys(("managed", "min", "low", "high"), 0)
    for name, value in _zone_lines(text):
        if name in found:
            found[name] += value
    return Zones(**found)


def _zone_lines(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and _NUMBER.fullmatch(words[1]):
            yield words[0], int(words[1])


@dataclass(frozen=True, slots=True)
class Switch:
    """A line of /proc/testbed: whether a built kernel's switch is on, and how often that made a difference."""

    on: bool
    count: int


def switches(text: str) -> dict[str, Switch]:
    """/proc/testbed of a built kernel, by name."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: Switch(row[1] not in ("0", "N"), int(row[2])) for row in rows if len(row) == 3 and row[2].isdigit()}


def largest_free_block(memory: str) -> int | None:
    """The pages of the largest free block that the kernel's memory dump (`show_free_areas`) tells of; None if it does
    not.
    """
    blocks = [(int(size), int(count)) for count, size in _FREE_BLOCKS.findall(memory)]
    return max((size // PAGE_KB for size, count in blocks if count), default=0) if blocks else None
