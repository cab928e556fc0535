"""A bridge with virtual machines behind it: what goes out by which tap, and what it holds until it has been read."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.net.bridge import Bridge
from testbed.net.dev import DELIVERED, ETH_P_ARP, ETH_P_IP, ETH_P_IPX, FORWARDED, Kind, RxBatch
from testbed.net.drop_reason import DropReason
from testbed.net.tun import Tun
from testbed.patches import Switches
from tests.mm.machine import SERIES, without
from tests.net.host import Host

FULL_RING = int(DropReason.FULL_RING)
PFMEMALLOC = int(DropReason.PFMEMALLOC)
UNHANDLED_PROTO = int(DropReason.UNHANDLED_PROTO)


def bridged(host: Host, taps: int = 1, tx_queue_len: int = 100) -> list[Tun]:
    """The taps of a bridge that the host's NIC is now a port of."""
    made = [Tun(f"vm{number}", host.skb_memory, tx_queue_len) for number in range(taps)]
    host.device.rx_handler = Bridge(host.skb_memory, made, host.device.softirq).br_handle_frame
    return made


def in_the_reserve(switches: Switches = SERIES, ring: int = 16) -> Host:
    """A host with a memalloc socket, all of whose receive buffers lie in the reserve."""
    host = Host(switches, ring=ring)
    host.socket_memory.sk_set_memalloc(host.swap.sk)
    host.fill_ring_from_reserve(recover=False)
    return host


def receive(host: Host, *kinds: Kind) -> list[int]:
    batch = RxBatch.of_kinds(np.arange(len(kinds), dtype=np.intp), list(kinds))
    host.device.receive(batch)
    return batch.verdicts


def to(tap: Tun, protocol: int = ETH_P_IP) -> Kind:
    return Kind(protocol, tap, tap.name)


def asks_all(name: str = "arp", protocol: int = ETH_P_ARP) -> Kind:
    return Kind(protocol, None, name, broadcast=True)


def test_a_frame_for_a_machine_behind_the_bridge_goes_there_only() -> None:
    host = Host()
    first, second = bridged(host, 2)
    verdicts = receive(host, to(second), Kind(ETH_P_IP, host.udp, "udp"), to(second))
    assert verdicts == [FORWARDED, DELIVERED, FORWARDED]
    assert (first.queued, second.queued, len(host.udp.receive_queue)) == (0, 2, 1)
    assert host.tally == {(DELIVERED, "vm1", False): 2, (DELIVERED, "udp", False): 1}


def test_no_filter_stands_before_a_tap_and_reserve_memory_is_held_until_it_is_read() -> None:
    host = in_the_reserve()
    (tap,) = bridged(host)
    held = host.skb_memory.rx_cache.inuse
    assert receive(host, *[to(tap)] * 16) == [FORWARDED] * 16
    assert host.tally == {(DELIVERED, "vm0", True): 16}
    assert host.netstat.PFMemallocDrop == 0
    refilled = host.skb_memory.rx_cache.inuse
    assert refilled > held
    assert tap.tun_do_read() == 16
    assert host.skb_memory.rx_cache.inuse == refilled - 16


def test_the_same_frames_for_a_socket_are_dropped() -> None:
    host = in_the_reserve()
    bridged(host)
    assert receive(host, *[Kind(ETH_P_IP, host.udp, "udp")] * 16) == [PFMEMALLOC] * 16


@pytest.mark.parametrize(("tx_queue_len", "queued"), [(3, 3), (5, 5), (6, 5)])
def test_a_full_tap_drops(tx_queue_len: int, queued: int) -> None:
    host = Host()
    (tap,) = bridged(host, tx_queue_len=tx_queue_len)
    verdicts = receive(host, *[to(tap)] * 5)
    assert verdicts == [FORWARDED] * queued + [FULL_RING] * (5 - queued)
    assert (tap.tx_packets, tap.tx_dropped) == (queued, 5 - queued)
    assert host.ended(DropReason.FULL_RING) == 5 - queued
    tap.tun_do_read()
    host.device.close()
    assert host.machine.node.pages_leaked() == 0


def test_what_is_for_everybody_goes_up_the_stack_and_to_each_tap() -> None:
    host = Host()
    taps = bridged(host, 3)
    assert receive(host, asks_all(), asks_all()) == [DELIVERED] * 2
    assert [tap.queued for tap in taps] == [2, 2, 2]
    assert host.tally == {(DELIVERED, "arp", False): 2}
    for tap in taps:
        tap.tun_do_read()
    host.device.close()
    assert host.machine.node.pages_leaked() == 0


def test_without_a_bridge_there_is_nobody_else_to_send_it_to() -> None:
    host = Host()
    heads = host.skb_memory.skbuff_head_cache.inuse
    assert receive(host, asks_all()) == [DELIVERED]
    host.device.close()
    assert host.skb_memory.skbuff_head_cache.inuse <= heads


@pytest.mark.parametrize(
    ("switches", "failed"), [(SERIES, False), (without(receive_pf_memalloc=False, skb_pfmemalloc=False), True)]
)
def test_clones_for_the_taps_come_from_the_reserve_if_the_frame_does(switches: Switches, failed: bool) -> None:
    host = in_the_reserve()
    host.device.switches = host.skb_memory.switches = switches
    host.machine.drain(40)
    taps = [Tun(f"vm{number}", host.skb_memory) for number in range(20)]
    bridge = Bridge(host.skb_memory, taps, host.device.softirq)
    host.device.rx_handler = bridge.br_handle_frame
    receive(host, *[asks_all()] * 4)
    assert bool(bridge.clone_failed) == failed
    assert sum(tap.queued for tap in taps) + bridge.clone_failed == 80


@pytest.mark.parametrize("reserve", [True, False])
def test_an_unlisted_protocol_is_forwarded_unless_it_lies_in_the_reserve(reserve: bool) -> None:
    host = in_the_reserve() if reserve else Host()
    (tap,) = bridged(host)
    assert receive(host, to(tap, ETH_P_IPX)) == [UNHANDLED_PROTO if reserve else FORWARDED]
    broadcast = receive(host, asks_all("ipx", ETH_P_IPX))
    assert broadcast == [UNHANDLED_PROTO]
    assert tap.queued == (0 if reserve else 2)
