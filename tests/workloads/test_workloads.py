"""The workloads do what they say: operations are counted, nothing swaps, every page and object is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from testbed.mm.sched import Task
from testbed.patches import Switches
from testbed.workloads.comparison import CASES, HOST_PAGES, WORKLOADS
from testbed.workloads.hackbench import MESSAGE, TASKS
from testbed.workloads.host import Host, NoSwapDevice, UnexpectedSwap
from testbed.workloads.netperf import WRITE
from testbed.workloads.sysbench import MAPPING
from tests.mm.machine import SERIES


def run(name: str, host: Host, operations: int) -> int:
    return asyncio.run(WORKLOADS[name](host).run(operations))


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """What `owner.name` was called with, from now on."""
    calls: list[Any] = []
    original: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", WORKLOADS)
def test_everything_comes_back_and_nothing_is_short(name: str, case: str) -> None:
    host = CASES[case]()
    assert run(name, host, 2 * HOST_PAGES) >= 2 * HOST_PAGES
    counters = host.node.counters()
    assert (counters["pswpin"], counters["pswpout"], counters["pgscan_direct_throttle"]) == (0, 0, 0)
    assert host.node.page_alloc.nr_free_min > host.node.zone.watermarks.throttle
    assert host.node.pages_leaked() == 0
    assert {cache.name: cache.inuse for cache in host.node.caches.values() if cache.inuse} == {}


def test_the_cases_are_what_their_names_say() -> None:
    vanilla, series, memalloc = (make() for make in CASES.values())
    assert vanilla.node.switches == Switches.of(())
    assert series.node.switches == memalloc.node.switches == SERIES
    assert [host.socket_memory.memalloc_socks for host in (vanilla, series, memalloc)] == [0, 0, 1]


def test_a_socket_message_is_an_skb(monkeypatch: pytest.MonkeyPatch) -> None:
    host = CASES["series"]()
    made = counted(monkeypatch, host.skb_memory, "alloc_skb")
    freed = counted(monkeypatch, host.skb_memory, "kfree_skb")
    done = run("hackbench, sockets", host, 1)
    assert len(made) == len(freed) == done
    assert {call[0] for call in made} == {MESSAGE}


def test_messages_share_the_pages_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    host = CASES["series"]()
    pages = counted(monkeypatch, host.node.page_alloc, "alloc_page")
    assert run("hackbench, pipes", host, 1) == len(pages) * TASKS


def test_a_datagram_is_an_skb(monkeypatch: pytest.MonkeyPatch) -> None:
    host = CASES["series"]()
    made = counted(monkeypatch, host.skb_memory, "alloc_skb")
    assert run("netperf UDP_STREAM", host, 100) == len(made)


def test_a_write_takes_its_pages_and_an_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    host = CASES["series"]()
    pages = counted(monkeypatch, host.node.page_alloc, "alloc_pages_nowait")
    acknowledgements = counted(monkeypatch, host.skb_memory, "alloc_skb")
    assert run("netperf TCP_STREAM", host, 50) == len(acknowledgements) == 50
    assert sum(count for count, _, current in pages if current.name == "netperf") >= 50 * WRITE // 4096


def test_the_page_cache_is_reclaimed_once_memory_is_full() -> None:
    host = CASES["series"]()
    done = run("iozone", host, 2 * HOST_PAGES)
    counters = host.node.counters()
    assert done - HOST_PAGES < counters["pgsteal_kswapd"] + counters["pgsteal_direct"] < done


def test_an_operation_is_a_page_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    host = CASES["series"]()
    pages = counted(monkeypatch, host.node.page_alloc, "alloc_page_above_low")
    done = run("sysbench faults", host, 1)
    assert (done, host.node.vmstat.pgfault, len(pages)) == (3 * MAPPING, 3 * MAPPING, MAPPING)


def test_a_host_that_swaps_says_so() -> None:
    async def main() -> None:
        device = NoSwapDevice()
        for submit in (device.submit_read, device.submit_write):
            with pytest.raises(UnexpectedSwap):
                await submit([], Task("x").nice)

    asyncio.run(main())
