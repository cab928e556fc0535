"""The two ways of looking at a block, frame by frame and by columns, must see the same."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.hosts.classifier import Classifier
from testbed.lab.packet_ring import GSO_OFFSET, HEADER_BYTES, PLAIN_OFFSET, STATUS_VLAN_VALID, FrameBlock
from testbed.mm.node import Node
from testbed.net.dev import RxBatch
from testbed.net.skbuff import SkbMemory
from testbed.net.snmp import NetStat
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tun import Tun
from testbed.patches import Switches
from tests.net.test_dev_fast_path import NoDisk

MAC, SERVER, PORT = "02:00:00:00:00:0b", "10.0.0.1", 10809
MACHINE_MAC = "02:00:00:00:00:0c"
SLOT = 2048
SWAP_PORT = 41000


def classifier(*, gso: bool, attached: bool, copied: int, bridged: bool) -> Classifier:
    node = Node(memoryview(bytearray(4 << 20)), NoDisk(), 64, Switches())
    queue = TcpReceiveQueue(Sock("swap", 1 << 20), SkbMemory(node, NetStat(), 1500))
    queue.copied_seq = copied
    sockets = {9: Sock("nine", 1), 4000: Sock("other", 1)}
    listeners = {5000: lambda _peer: TcpReceiveQueue(Sock("stream", 1), queue.skb_memory)}
    tuns = {MACHINE_MAC: Tun("vm", queue.skb_memory)} if bridged else None
    found = Classifier(MAC, (SERVER, PORT), sockets, gso=gso, listeners=listeners, tuns=tuns)
    found.connect(SWAP_PORT, queue)
    if attached:
        found.attach(SWAP_PORT)
    return found


def slot(rng: random.Random, *, gso: bool) -> bytes:
    """One frame in its slot: random fields, biased towards what the classifier knows."""
    destination = rng.choice([bytes.fromhex(MAC.replace(":", "")), b"\xff" * 6, b"\x02" * 6, b"\x02\0\0\0\0\x0c"])
    protocol = rng.choice([b"\x08\0", b"\x08\0", b"\x08\x06", b"\x86\xdd", rng.randbytes(2)])
    ip = bytes([0x45, 0]) + rng.choice([b"\0\x34", rng.randbytes(2)]) + rng.randbytes(5)
    ip += bytes([rng.choice([1, 6, 6, 17, 99])]) + rng.randbytes(2)
    ip += rng.choice([bytes([10, 0, 0, 1]), bytes([10, 0, 0, 7]), rng.randbytes(4)]) + rng.randbytes(4)
    ports = rng.choice([PORT, 80]).to_bytes(2, "big") + rng.choice([9, 4000, 5000, SWAP_PORT]).to_bytes(2, "big")
    tcp = rng.randbytes(8) + bytes([rng.choice([0x50, 0x80]), rng.choice([0x12, 0x10, 0x18, 0x02])])
    frame = (destination + rng.randbytes(6) + protocol + ip + ports + tcp).ljust(HEADER_BYTES, b"\0")
    vnet = bytes([1, rng.choice([0, 1]), 66, 0]) + rng.choice([b"\0\0", b"\xa8\x05"]) + rng.randbytes(4)
    status = 1 | rng.choice([0, 0, 0, STATUS_VLAN_VALID])
    head = bytes([status]) + rng.randbytes(PLAIN_OFFSET - 1)
    return (head + (vnet if gso else b"") + frame).ljust(SLOT, b"\0")


def block_of(slots: list[bytes], *, gso: bool) -> FrameBlock:
    memory = bytearray(b"".join(slots))
    rows = np.frombuffer(memory, np.uint8).reshape(len(slots), SLOT)
    offset = GSO_OFFSET if gso else PLAIN_OFFSET
    ring = SimpleNamespace(
        view=memoryview(memory),
        slot_size=SLOT,
        status=rows[:, 0].astype(np.uint32),
        vlan_tci=np.zeros(len(slots), np.uint16),
        headers=rows[:, offset : offset + HEADER_BYTES],
        vnet=rows[:, offset - 10 : offset] if gso else None,
    )
    return FrameBlock(ring, 0, len(slots))  # type: ignore[arg-type]


def seen(batch: RxBatch, others: npt.NDArray[np.bool_] | None) -> tuple[object, ...]:
    kinds = [batch.kinds[code] for code in batch.codes]
    receivers = [getattr(kind.receiver, "name", type(kind.receiver).__name__) for kind in kinds]
    named = [(kind.protocol, kind.name, name, kind.broadcast) for kind, name in zip(kinds, receivers, strict=True)]
    return named, batch.end_seq, batch.segments, batch.gso_size, None if others is None else others.tolist()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 12))
def test_few_and_many_see_the_same(seed: int, gso: bool, attached: bool, bridged: bool, count: int) -> None:
    rng = random.Random(seed)
    copied = rng.choice([0, 1000, 1 << 33])
    one, other = (classifier(gso=gso, attached=attached, copied=copied, bridged=bridged) for _ in range(2))
    for _ in range(3):
        block = block_of([slot(rng, gso=gso) for _ in range(count)], gso=gso)
        before = one._swap[SWAP_PORT].first_seq
        few, many = seen(*one.classify_few(block)), seen(*other.classify_many(block))
        first_seq = one._swap[SWAP_PORT].first_seq
        assert first_seq == other._swap[SWAP_PORT].first_seq
        if first_seq == before:  # within one block, only columns know the sequence number beforehand
            assert few == many
