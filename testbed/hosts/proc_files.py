"""The model as its kernel would print it: /proc/vmstat, zoneinfo, buddyinfo, meminfo, swaps, net/snmp, net/netstat.

Names, order and padding are those of 3.6 or of 6.1. Lines whose values the model does not have are left out: readers
of these files go by name. Counters that a kernel keeps for each zone, and the model for the machine, stand under the
highest zone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from testbed.mm.node import Node
from testbed.mm.watermarks import PAGE_SIZE
from testbed.mm.zone import Zone
from testbed.net.snmp import NetStat

PAGE_KB = PAGE_SIZE >> 10
GAUGES = (
    *("nr_free_pages", "nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_isolated_anon", "nr_anon_pages"),
    *("nr_file_pages", "nr_writeback", "nr_slab_unreclaimable", "nr_vmscan_write"),
)
EVENTS_6_1 = (
    *("pgpgin", "pgpgout", "pswpin", "pswpout", "pgalloc_ZONE", "allocstall_ZONE", "pgfree", "pgactivate"),
    *("pgdeactivate", "pgfault", "pgmajfault", "pgrefill", "pgsteal_kswapd", "pgsteal_direct", "pgscan_kswapd"),
    *("pgscan_direct", "pgscan_direct_throttle", "pgscan_anon", "pgscan_file", "pgsteal_anon", "pgsteal_file"),
    *("kswapd_low_wmark_hit_quickly", "kswapd_high_wmark_hit_quickly", "pageoutrun", "oom_kill", "swap_ra"),
    "swap_ra_hit",
)
EVENTS_3_6 = (
    *("pgpgin", "pgpgout", "pswpin", "pswpout", "pgalloc_ZONE", "pgfree", "pgactivate", "pgdeactivate", "pgfault"),
    *("pgmajfault", "pgrefill_ZONE", "pgsteal_kswapd_ZONE", "pgsteal_direct_ZONE", "pgscan_kswapd_ZONE"),
    *("pgscan_direct_ZONE", "pgscan_direct_throttle", "kswapd_low_wmark_hit_quickly"),
    *("kswapd_high_wmark_hit_quickly", "kswapd_skip_congestion_wait", "pageoutrun", "allocstall"),
)
UDP = ("InDatagrams", "InErrors", "RcvbufErrors", "MemErrors")
TCP_EXT = ("TCPBacklogDrop", "PFMemallocDrop", "TCPRcvQDrop", "TCPRetransFail")


def proc_files(node: Node, netstat: NetStat, swap_file: str) -> dict[str, str]:
    """The texts by their path below /proc; `swap_file` is the device that the swap area is on."""
    return {
        "vmstat": vmstat(node),
        "zoneinfo": zoneinfo(node),
        "buddyinfo": buddyinfo(node),
        "meminfo": meminfo(node),
        "swaps": swaps(node, swap_file),
        "net/snmp": _table("Udp", netstat, UDP if _modern(node) else UDP[:-1]),
        "net/netstat": _table("TcpExt", netstat, TCP_EXT if _modern(node) else TCP_EXT[:1]),
    }


def vmstat(node: Node) -> str:
    """/proc/vmstat: a name and a number on each line."""
    counters = node.counters()
    anon = counters["pgscan_anon"], counters["pgsteal_anon"]
    values = counters | {
        "nr_inactive_file": counters["nr_file_pages"],
        "nr_anon_pages": _mapped(node),
        "nr_file_pages": counters["nr_file_pages"] + len(node.swap_cache.pages),
        "pgscan_file": counters["pgscan_kswapd"] + counters["pgscan_direct"] - anon[0],
        "pgsteal_file": counters["pgsteal_kswapd"] + counters["pgsteal_direct"] - anon[1],
    }
    gauges = (*GAUGES, "nr_throttled_written") if _modern(node) else GAUGES
    events: tuple[str, ...] = EVENTS_6_1 if _modern(node) else EVENTS_3_6
    if not node.switches.count_throttle:
        events = tuple(name for name in events if name != "pgscan_direct_throttle")
    lines = [(name, values[name]) for name in gauges]
    for name in events:
        of_zones = name.removesuffix("_ZONE")
        lines += [(name, values[name])] if name == of_zones else _by_zone(node, of_zones, values)
    return "".join(f"{name} {value}\n" for name, value in lines)


def _by_zone(node: Node, name: str, values: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    titles = list(dict.fromkeys(zone.span.kind.title.lower() for zone in node.zones))
    for title in titles:
        yield f"{name}_{title}", values[name] if title == titles[-1] else 0


def _mapped(node: Node) -> int:
    lists = [pages for zone in node.zones for pages in (zone.active_anon, zone.inactive_anon)]
    return sum(page.mapping is not None for pages in lists for page in pages)


def zoneinfo(node: Node) -> str:
    """/proc/zoneinfo: the watermarks and free pages of each zone, in pages."""
    form = _zone_6_1 if _modern(node) else _zone_3_6
    return "".join(f"Node {zone.span.node}, zone {zone.span.kind.title:>8}\n{form(zone)}" for zone in node.zones)


def _zone_6_1(zone: Zone) -> str:
    marks, span = zone.watermarks, zone.span
    numbers = {
        "boost": 0,
        "min": marks.min,
        "low": marks.low,
        "high": marks.high,
        "spanned": span.pages,
        "present": span.pages,
        "managed": zone.managed,
        "cma": 0,
    }
    return (
        _pages(zone, numbers)
        + f"        protection: {_protection(zone)}\n"
        + f"      {'nr_free_pages':<12} {zone.nr_free_pages}\n"
        + _pageset(zone)
        + f"  start_pfn:           {span.start}\n"
    )


def _zone_3_6(zone: Zone) -> str:
    marks, span = zone.watermarks, zone.span
    numbers = {
        "min": marks.min,
        "low": marks.low,
        "high": marks.high,
        "scanned": zone.pages_scanned,
        "spanned": span.pages,
        "present": span.pages,
    }
    return (
        _pages(zone, numbers)
        + f"    {'nr_free_pages':<12} {zone.nr_free_pages}\n"
        + f"        protection: {_protection(zone)}\n"
        + _pageset(zone)
        + f"  all_unreclaimable: {zone.all_unreclaimable:d}\n"
        + f"  start_pfn:         {span.start}\n"
    )


def _pages(zone: Zone, numbers: Mapping[str, int]) -> str:
    lines = [f"        {name:<8} {number}\n" for name, number in numbers.items()]
    return f"  pages free     {zone.nr_free_pages}\n{''.join(lines)}"


def _protection(zone: Zone) -> str:
    return f"({', '.join(map(str, zone.lowmem_reserve))})"


def _pageset(zone: Zone) -> str:
    pcp = zone.pcp
    numbers = {"count": len(pcp.pages), "high": pcp.high, "batch": pcp.batch}
    lines = [f"              {name + ':':<6} {number}\n" for name, number in numbers.items()]
    return f"  pagesets\n    cpu: 0\n{''.join(lines)}"


def buddyinfo(node: Node) -> str:
    """/proc/buddyinfo: free blocks of each order."""
    return "".join(
        f"Node {zone.span.node}, zone {zone.span.kind.title:>8} "
        + "".join(f"{count:6d} " for count in zone.free.counts())
        + "\n"
        for zone in node.zones
    )


def meminfo(node: Node) -> str:
    """/proc/meminfo, in kB."""
    counters, cached, swap = node.counters(), len(node.swap_cache.pages), node.swap
    active, inactive, file = (counters[name] for name in ("nr_active_anon", "nr_inactive_anon", "nr_file_pages"))
    pages = {
        "MemTotal": node.page_alloc.managed,
        "MemFree": counters["nr_free_pages"],
        "Cached": file,
        "SwapCached": cached,
        "Active": active,
        "Inactive": inactive + file,
        "Active(anon)": active,
        "Inactive(anon)": inactive,
        "Active(file)": 0,
        "Inactive(file)": file,
        "SwapTotal": swap.pages,
        "SwapFree": swap.pages - swap.inuse_pages,
        "Dirty": 0,
        "Writeback": counters["nr_writeback"],
        "AnonPages": _mapped(node),
        "Slab": counters["nr_slab_unreclaimable"],
        "SReclaimable": 0,
        "SUnreclaim": counters["nr_slab_unreclaimable"],
    }
    return "".join(f"{name + ':':<16}{number * PAGE_KB:8d} kB\n" for name, number in pages.items())


def swaps(node: Node, swap_file: str) -> str:
    """/proc/swaps: the one area, in KiB."""
    size, used = node.swap.pages * PAGE_KB, node.swap.inuse_pages * PAGE_KB
    name = swap_file.ljust(39) + " "
    if not _modern(node):
        return f"Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n{name}partition\t{size}\t{used}\t-1\n"
    wide = ["\t" if number < 10_000_000 else "" for number in (size, used)]
    return f"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n{name}partition\t{size}\t{wide[0]}{used}\t{wide[1]}-2\n"


def _table(protocol: str, netstat: NetStat, names: tuple[str, ...]) -> str:
    """A line of names and a line of numbers, as in /proc/net/snmp and /proc/net/netstat."""
    numbers = [str(getattr(netstat, name)) for name in names]
    return f"{protocol}: {' '.join(names)}\n{protocol}: {' '.join(numbers)}\n"


def _modern(node: Node) -> bool:
    return node.switches.rules.names == "6.1"
