"""Outgoing frames: what each is, and that both ways of looking at a block see the same."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from testbed.hosts.classifier import PLAIN_LAYOUT
from testbed.hosts.control_packets import ARP_REQUEST, OTHER, REPLY, SWAP_CONTROL, SWAP_DATA, SWAP_RETRANSMIT
from testbed.hosts.outgoing import Outgoing
from testbed.lab.packet_ring import HEADER_BYTES, PLAIN_OFFSET, FrameBlock

PORT, SLOT = 10809, 256
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IPV4 = IP(src="10.0.0.1", dst="10.0.0.9")


def block_of(*packets: Packet) -> FrameBlock:
    slots = [(bytes(PLAIN_OFFSET) + bytes(packet)[:HEADER_BYTES]).ljust(SLOT, b"\0") for packet in packets]
    memory = bytearray(b"".join(slots))
    rows = np.frombuffer(memory, np.uint8).reshape(len(slots), SLOT)
    headers = rows[:, PLAIN_OFFSET : PLAIN_OFFSET + HEADER_BYTES]
    ring = SimpleNamespace(view=memoryview(memory), slot_size=SLOT, headers=headers)
    return FrameBlock(ring, 0, len(slots))  # type: ignore[arg-type]


def attached(*ports: int) -> Outgoing:
    outgoing = Outgoing(PLAIN_LAYOUT, PORT)
    for port in ports:
        outgoing.attach(port)
    return outgoing


def data(seq: int, size: int, port: int = 4000) -> Packet:
    return ETHER / IPV4 / TCP(sport=port, dport=PORT, seq=seq & 0xFFFFFFFF, flags="A") / (b"x" * size)


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (data(1, 10), SWAP_DATA),
        (data(1, 0), SWAP_CONTROL),
        (ETHER / IPV4 / TCP(dport=80, flags="A") / b"x", OTHER),
        (ETHER / IPV4 / TCP(dport=80, flags="RA"), REPLY),
        (ETHER / IPV4 / UDP(dport=PORT), OTHER),
        (ETHER / IPV4 / ICMP(type=0), REPLY),
        (ETHER / IPV4 / ICMP(type=8), OTHER),
        (ETHER / ARP(op=1), ARP_REQUEST),
        (ETHER / ARP(op=2), REPLY),
        (Ether(src=ETHER.src, dst=ETHER.dst, type=0x86DD), OTHER),
    ],
)
def test_every_kind_is_told_apart(packet: Packet, kind: int) -> None:
    assert attached(4000).few(block_of(packet)) == [kind]
    assert attached(4000).many(block_of(packet)) == [kind]


@pytest.mark.parametrize("first", [1, 0xFFFFFF00])
def test_what_does_not_go_beyond_what_was_sent_is_sent_again(first: int) -> None:
    outgoing = attached(4000)
    frames = [data(first + at, size) for at, size in [(0, 200), (200, 200), (0, 200), (300, 200), (400, 100)]]
    expected = [SWAP_DATA, SWAP_DATA, SWAP_RETRANSMIT, SWAP_DATA, SWAP_RETRANSMIT]
    assert [outgoing.kinds(block_of(frame))[0] for frame in frames] == expected
    assert attached(4000).many(block_of(*frames)) == expected


@pytest.mark.parametrize("look", [Outgoing.few, Outgoing.many])
def test_each_connection_counts_for_itself_and_what_is_none_is_anybodys(
    look: Callable[[Outgoing, FrameBlock], list[int]],
) -> None:
    outgoing = attached(4000, 4001)
    frames = [data(1, 100), data(1, 100, 4001), data(1, 100), data(101, 50, 4001), data(1, 100, 4002), data(1, 0, 4002)]
    expected = [SWAP_DATA, SWAP_DATA, SWAP_RETRANSMIT, SWAP_DATA, OTHER, OTHER]
    assert look(outgoing, block_of(*frames)) == expected
    outgoing.disconnect(4000)
    outgoing.attach(4000)
    assert look(outgoing, block_of(data(1, 100), data(101, 50, 4001))) == [SWAP_DATA, SWAP_RETRANSMIT]


@settings(max_examples=100, deadline=None)
@given(
    first=st.integers(0, 0xFFFFFFFF),
    frames=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=1, max_size=12),
)
def test_few_and_many_see_the_same(first: int, frames: list[tuple[int, int]]) -> None:
    blocks = [block_of(*[data(first + 100 * at, 100 * size) for at, size in frames]) for _ in range(2)]
    few, many = attached(4000), attached(4000)
    for block in blocks:
        assert few.few(block) == many.many(block)
