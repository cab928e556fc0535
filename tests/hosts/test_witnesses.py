"""Witnesses: each switch, thrown on a small host in shortage, shows in its own patch's row and no other's counter."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from testbed.hosts.witnesses import witnesses
from testbed.mm.gfp import GFP_ATOMIC, GFP_KERNEL
from testbed.mm.sched import Task
from testbed.net.skbuff import Driver
from testbed.net.tcp_output import send_control_packets
from testbed.patches import ALWAYS_ACTING, PATCHES, Switches
from tests.net.host import Host
from tests.virtual_time import simulate

DRIVERS: dict[int, Driver] = {10: "frag", 11: "page"}
SHOWN = sorted((ALWAYS_ACTING | {3, *DRIVERS}) - {14})
SHOWN_WITH_SLAB = sorted({*SHOWN, 13} - {3})
CASES = [("slub", number) for number in SHOWN] + [("slab", number) for number in SHOWN_WITH_SLAB]


def rows(switches: Switches, slab: str, driver: Driver) -> dict[str, dict[str, Any]]:
    """Give every patch an occasion: sockets, ACKs, a softirq, receive buffers, reserve slabs, a throttled task."""

    async def main() -> dict[str, dict[str, Any]]:
        host = Host(switches, driver=driver, slab=slab)
        node = host.machine.node
        host.warm_heads()
        host.socket_memory.sk_set_memalloc(host.swap.sk)
        send_control_packets(1, host.swap.sk, host.skb_memory, host.socket_memory, host.softirq)
        host.use_up_data()
        host.machine.drain(90)
        host.receive(host.swap, 40, end_seq=list(range(100, 4100, 100)))
        host.softirq.pf_memalloc = True
        node.kmalloc_cache(256).alloc(GFP_ATOMIC, host.softirq)
        node.kmalloc_cache(512).alloc(GFP_KERNEL, Task("entitled", pf_memalloc=True))
        node.kmalloc_cache(512).alloc(GFP_KERNEL, Task("plain"))
        sleeper = asyncio.create_task(node.vmscan.throttle.throttle_direct_reclaim(GFP_KERNEL, Task("user")))
        await asyncio.sleep(1)
        sleeper.cancel()
        return witnesses(node.counters(), host.netstat, (0, 0))

    return simulate(main())


@pytest.mark.parametrize(("slab", "number"), CASES)
def test_with_the_series_every_patch_has_occasion_and_acts(slab: str, number: int) -> None:
    row = rows(Switches(), slab, DRIVERS.get(number, "linear"))[str(number)]
    assert row["opportunity"] >= row["witness"] > 0
    assert row["title"] == PATCHES[number].title


@pytest.mark.parametrize(("slab", "number"), CASES)
def test_switched_off_it_has_the_occasion_and_does_not_act(slab: str, number: int) -> None:
    off = Switches.of(set(PATCHES) - {number} - ({3} if number == 2 else set()))
    row = rows(off, slab, DRIVERS.get(number, "linear"))[str(number)]
    assert row["witness"] == 0
    assert row["opportunity"] > 0


@pytest.mark.parametrize(("slab", "number"), [("slub", "13"), ("slab", "3")])
def test_a_patch_of_the_other_slab_allocator_has_no_occasion(slab: str, number: str) -> None:
    row = rows(Switches(), slab, "linear")[number]
    assert (row["opportunity"], row["witness"]) == (0, 0)


def test_requests_of_nbd_thread_are_patch_14s() -> None:
    host = Host()
    row = witnesses(host.machine.node.counters(), host.netstat, (3, 4))["14"]
    assert (row["opportunity"], row["witness"]) == (7, 3)
