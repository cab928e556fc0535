"""SOCK_MEMALLOC, sk_allocation() and the filter."""

from __future__ import annotations

import pytest

from testbed.mm.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_MEMALLOC
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock, SocketMemory
from testbed.patches import Switches
from tests.mm.machine import SERIES, VANILLA, without
from tests.net.host import Host


def test_memalloc_socks_counts_sets_less_clears() -> None:
    memory = SocketMemory(SERIES, NetStat())
    first, second = Sock("a", 1000), Sock("b", 1000)
    memory.sk_set_memalloc(first)
    memory.sk_set_memalloc(second)
    assert memory.memalloc_socks == 2
    memory.sk_clear_memalloc(first)
    assert (memory.memalloc_socks, first.memalloc, second.memalloc) == (1, False, True)


def test_setting_the_flag_twice_counts_twice() -> None:
    memory = SocketMemory(SERIES, NetStat())
    sk = Sock("nbd", 1000)
    memory.sk_set_memalloc(sk)
    memory.sk_set_memalloc(sk)
    memory.sk_clear_memalloc(sk)
    assert memory.memalloc_socks == 1


def test_the_flag_changes_sk_allocation_and_back() -> None:
    memory = SocketMemory(SERIES, NetStat())
    sk = Sock("nbd", 1000)
    memory.sk_set_memalloc(sk)
    assert sk.sk_allocation == GFP_KERNEL | GFP_MEMALLOC
    memory.sk_clear_memalloc(sk)
    assert sk.sk_allocation == GFP_KERNEL


@pytest.mark.parametrize("switches", [VANILLA, without(sock_memalloc=False)])
def test_without_patch_08_there_is_no_such_socket(switches: Switches) -> None:
    netstat = NetStat()
    memory = SocketMemory(switches, netstat)
    sk = Sock("nbd", 1000)
    memory.sk_set_memalloc(sk)
    memory.sk_clear_memalloc(sk)
    assert (memory.memalloc_socks, sk.memalloc, sk.sk_allocation) == (0, False, GFP_KERNEL)
    assert (netstat.sk_set_memalloc, netstat.sk_set_memalloc_missing) == (0, 1)


def test_without_patch_08_a_bit_that_nbd_sets_itself_is_not_handed_on() -> None:
    memory = SocketMemory(without(sock_memalloc=False), NetStat())
    sk = Sock("nbd", 1000, swap=True)
    sk.sk_allocation = GFP_KERNEL | GFP_MEMALLOC
    assert memory.sk_allocation(sk, GFP_ATOMIC) == GFP_ATOMIC


@pytest.mark.parametrize(
    ("switches", "flagged", "expected"),
    [
        (SERIES, True, GFP_ATOMIC | GFP_MEMALLOC),
        (SERIES, False, GFP_ATOMIC),
        (without(sk_allocation=False), True, GFP_ATOMIC),
    ],
)
def test_sk_allocation_adds_memalloc_for_flagged_sockets_only(
    switches: Switches, flagged: bool, expected: int
) -> None:
    memory = SocketMemory(switches, NetStat())
    sk = Sock("nbd", 1000, swap=True)
    if flagged:
        memory.sk_set_memalloc(sk)
    assert memory.sk_allocation(sk, GFP_ATOMIC) == expected
    assert memory.sk_allocation(None, GFP_ATOMIC) == GFP_ATOMIC


@pytest.mark.parametrize(
    ("switches", "pfmemalloc", "flagged", "passes"),
    [
        (SERIES, True, True, True),
        (SERIES, True, False, False),
        (SERIES, False, False, True),
        (without(skb_pfmemalloc=False), True, False, True),
    ],
)
def test_sk_filter(switches: Switches, pfmemalloc: bool, flagged: bool, passes: bool) -> None:
    host = Host(switches)
    skb = host.warm_heads()
    skb.pfmemalloc = pfmemalloc
    if flagged:
        host.socket_memory.sk_set_memalloc(host.udp)
    assert host.socket_memory.sk_filter(host.udp, skb) == passes
