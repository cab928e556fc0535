"""Packet rings: what arrives is seen whole, sent on as it was, and counted when it was too much."""

from __future__ import annotations

import asyncio
import hashlib
import select
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from testbed.lab.errors import LabError
from testbed.lab.link import add_veth, interface_statistics, set_address, set_offloads, set_up, wait_up
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.packet_ring import FrameBlock, PacketRing
from testbed.lab.packet_sender import PacketSender
from tests.lab.conftest import Path3, Wire
from tests.lab.helpers import eventually

pytestmark = pytest.mark.root


def frame(number: int, size: int = 64) -> bytes:
    """A frame of an EtherType for experiments that says which it is, in a pattern that differs all along."""
    body = bytes((number * 7 + position) & 0xFF for position in range(size - 18))
    return bytes.fromhex("02000000000b02000000000a88b5") + number.to_bytes(4, "big") + body


def tagged(number: int, size: int = 64, tci: int = 0x2007) -> bytes:
    plain = frame(number, size)
    return plain[:12] + struct.pack(">HH", 0x8100, tci) + plain[12:]


def taken(ring: PacketRing, count: int, budget: int = 64) -> list[bytes]:
    """The next `count` frames, copied and released."""
    frames: list[bytes] = []

    def more() -> bool:
        while (block := ring.ready(budget)) is not None:
            frames.extend(bytes(block.frame(number)) for number in range(block.count))
            ring.release(block)
        return len(frames) >= count

    eventually(more, what=f"{count} frames")
    return frames


@pytest.fixture(params=[False, True], ids=["plain", "gso"])
def ring(wire: Wire, request: pytest.FixtureRequest) -> Iterator[PacketRing]:
    with wire.b.entered(), PacketRing("eth0", slots=32, gso=request.param) as made:
        yield made


@pytest.fixture
def sender(wire: Wire) -> Iterator[PacketSender]:
    with wire.a.entered():
        made = PacketSender("eth0")
    with made:
        yield made


def test_frames_arrive_whole_and_in_order(ring: PacketRing, sender: PacketSender) -> None:
    frames = [frame(number, 60 + number * 60) for number in range(20)]
    assert sender.send_bytes(frames) == 20
    eventually(lambda: ring.statistics() == (20, 0))
    block = ring.ready(64)
    assert block is not None
    assert block.count == 20
    assert block.lengths.tolist() == [len(each) for each in frames]
    assert [bytes(block.frame(number)) for number in range(20)] == frames
    assert block.headers.shape == (20, 128)
    assert bytes(block.headers[3]) == frames[3][:128]
    assert not block.truncated.any()
    assert not block.vlan[1].any()
    assert not block.checksum_partial.any()
    assert np.all(np.diff(block.times) >= 0)
    with pytest.raises(IndexError):
        block.frame(20)
    ring.release(block)
    assert ring.ready() is None


def test_a_block_never_passes_the_rings_end(ring: PacketRing, sender: PacketSender) -> None:
    number = 0
    for _ in range(40):
        sent = [frame(number + each) for each in range(13)]
        sender.send_bytes(sent)
        assert taken(ring, 13) == sent
        number += 13
    assert ring.statistics() == (number, 0)


def test_budget_bounds_a_block(ring: PacketRing, sender: PacketSender) -> None:
    sender.send_bytes([frame(number) for number in range(10)])
    eventually(lambda: ring.statistics()[0] == 10)
    counts = []
    while (block := ring.ready(4)) is not None:
        counts.append(block.count)
        ring.release(block)
    assert counts == [4, 4, 2]


def test_several_blocks_may_be_out_but_return_in_order(ring: PacketRing, sender: PacketSender) -> None:
    sender.send_bytes([frame(number) for number in range(ring.slots)])
    eventually(lambda: ring.statistics()[0] == ring.slots)
    first, second = ring.ready(5), ring.ready(1000)
    assert first is not None
    assert second is not None
    assert (first.count, second.count) == (5, ring.slots - 5)
    assert ring.ready() is None
    with pytest.raises(LabError, match="in the order they were taken"):
        ring.release(second)
    ring.release(first)
    with pytest.raises(LabError, match="once each"):
        ring.release(first)
    assert ring.ready() is None
    ring.release(second)


def test_drops_are_counted_when_the_ring_is_full(ring: PacketRing, sender: PacketSender) -> None:
    sent = [frame(number) for number in range(ring.slots + 30)]
    sender.send_bytes(sent)
    eventually(lambda: sum(ring.statistics()) == len(sent))
    assert ring.statistics() == (ring.slots, 30)
    assert ring.statistics() == (ring.slots, 30)
    assert taken(ring, ring.slots) == sent[: ring.slots]
    sender.send_bytes(sent[:5])
    assert taken(ring, 5) == sent[:5]


def test_own_frames_and_earlier_ones_are_not_seen(wire: Wire, sender: PacketSender) -> None:
    sender.send_bytes([frame(1)])
    with wire.b.entered(), PacketRing("eth0", slots=32) as ring, PacketSender("eth0") as own:
        own.send_bytes([frame(2)])
        sender.send_bytes([frame(3)])
        assert taken(ring, 1) == [frame(3)]
        assert ring.statistics() == (1, 0)


def test_it_waits_in_epoll_and_asyncio(ring: PacketRing, sender: PacketSender) -> None:
    with select.epoll() as poller:
        poller.register(ring, select.EPOLLIN)
        assert poller.poll(0) == []
        sender.send_bytes([frame(1)])
        assert poller.poll(10)
        assert poller.poll(0)
        taken(ring, 1)
        assert poller.poll(0) == []

    async def one() -> FrameBlock | None:
        arrived = asyncio.Event()
        asyncio.get_running_loop().add_reader(ring.fileno(), arrived.set)
        sender.send_bytes([frame(2)])
        await asyncio.wait_for(arrived.wait(), 10)
        asyncio.get_running_loop().remove_reader(ring.fileno())
        return ring.ready()

    block = asyncio.run(one())
    assert block is not None
    assert bytes(block.frame(0)) == frame(2)


def test_vlan_tags_are_read_beside_the_frame(ring: PacketRing, sender: PacketSender) -> None:
    sender.send_bytes([frame(1), tagged(2), frame(3)])
    eventually(lambda: ring.statistics()[0] == 3)
    block = ring.ready()
    assert block is not None
    tci, valid = block.vlan
    assert valid.tolist() == [False, True, False]
    assert (tci[1], block.vlan_protocols[1]) == (0x2007, 0x8100)
    assert bytes(block.frame(1)) == frame(2)


@pytest.mark.parametrize("gso", [False, True], ids=["plain", "gso"])
@pytest.mark.parametrize("bypass", [False, True], ids=["qdisc", "bypass"])
def test_frames_are_sent_on_from_the_ring(path: Path3, gso: bool, bypass: bool) -> None:
    sent = [tagged(number, 400) if number % 5 == 2 else frame(number, 60 + number) for number in range(300)]
    with path.a.entered():
        source = PacketSender("eth0")
    with path.middle.entered():
        ring = PacketRing("left", slots=512, gso=gso)
        onward = PacketSender("right", gso=gso, qdisc_bypass=bypass)
    with path.b.entered():
        sink = PacketRing("eth0", slots=512)
    with source, ring, onward, sink:
        source.send_bytes(sent)
        eventually(lambda: ring.statistics()[0] == 300)
        while (block := ring.ready(128)) is not None:
            assert onward.send(block) == block.count
            ring.release(block)
        eventually(lambda: sink.statistics()[0] == 300)
        everything: list[bytes] = []
        while (block := sink.ready(512)) is not None:
            tci, valid = block.vlan
            for number in range(block.count):
                whole = bytes(block.frame(number))
                tag = struct.pack(">HH", block.vlan_protocols[number], tci[number]) if valid[number] else b""
                everything.append(whole[:12] + tag + whole[12:])
            sink.release(block)
        assert everything == sent
        assert (onward.tx_packets, onward.tx_dropped, onward.tx_truncated) == (300, 0, 0)


def test_chosen_frames_only(path: Path3) -> None:
    sent = [tagged(number) if number == 7 else frame(number) for number in range(20)]
    with path.a.entered():
        source = PacketSender("eth0")
    with path.middle.entered():
        ring, onward = PacketRing("left", slots=64), PacketSender("right")
    with path.b.entered():
        sink = PacketRing("eth0", slots=64)
    with source, ring, onward, sink:
        source.send_bytes(sent)
        eventually(lambda: ring.statistics()[0] == 20)
        block = ring.ready()
        assert block is not None
        assert onward.send(block, np.array([], np.intp)) == 0
        assert onward.send(block, np.array([3, 7, 19])) == 3
        assert taken(sink, 3) == [frame(3), frame(7), frame(19)]
        assert onward.tx_packets == 3


def test_frames_the_interface_refuses_are_counted(wire: Wire) -> None:
    with wire.a.entered():
        sender = PacketSender("eth0")
    with wire.b.entered():
        sink = PacketRing("eth0", slots=64)
    with sender, sink:
        assert sender.send_bytes([frame(1), frame(2, 1600), frame(3)]) == 2
        assert (sender.tx_packets, sender.tx_dropped) == (2, 1)
        assert taken(sink, 2) == [frame(1), frame(3)]
        wire.a.netlink.link("set", index=wire.a.route.index("eth0"), state="down")
        assert sender.send_bytes([frame(4), frame(5)]) == 0
        assert sender.tx_dropped == 3


def test_a_frame_too_long_for_its_slot_is_not_passed_on_cut(path: Path3) -> None:
    with path.middle.entered():
        ring, onward = PacketRing("left", slots=64), PacketSender("right")
    for namespace, ifname in ((path.a, "eth0"), (path.middle, "left"), (path.middle, "right")):
        namespace.netlink.link("set", index=namespace.route.index(ifname), mtu=9000)
    with path.a.entered():
        source = PacketSender("eth0")
    with ring, onward, source:
        source.send_bytes([frame(1), frame(2, 5000), frame(3)])
        eventually(lambda: ring.statistics()[0] == 3)
        block = ring.ready()
        assert block is not None
        assert block.truncated.tolist() == [False, True, False]
        assert block.lengths.tolist() == [64, 5000, 64]
        assert onward.send(block) == 2
        assert onward.send(block, np.array([1, 2])) == 1
        assert (onward.tx_truncated, onward.tx_packets) == (2, 3)


def relay(stop: threading.Event, middle: NetworkNamespace, gso: bool, seen: dict[str, int]) -> None:
    with middle.entered():
        slots = 512 if gso else 8192
        left, right = PacketRing("left", slots=slots, gso=gso), PacketRing("right", slots=slots, gso=gso)
        to_left, to_right = PacketSender("left", gso=gso), PacketSender("right", gso=gso)
    with left, right, to_left, to_right, select.epoll() as poller:
        poller.register(left, select.EPOLLIN)
        poller.register(right, select.EPOLLIN)
        seen["ready"] = 1
        while not stop.is_set():
            for fd, _ in poller.poll(0.02):
                ring, sender = (left, to_right) if fd == left.fileno() else (right, to_left)
                while (block := ring.ready(64)) is not None:
                    seen["longest"] = max(seen.get("longest", 0), int(block.lengths.max()))
                    if gso:
                        seen["segmented"] = seen.get("segmented", 0) + int((block.vnet[:, 1] != 0).sum())
                    sender.send(block)
                    ring.release(block)
        seen["dropped"] = left.statistics()[1] + right.statistics()[1] + to_left.tx_dropped + to_right.tx_dropped
        seen["truncated"] = to_left.tx_truncated + to_right.tx_truncated


@pytest.mark.parametrize("gso", [False, True], ids=["plain", "gso"])
def test_tcp_through_two_rings(path: Path3, gso: bool) -> None:
    data = np.random.default_rng(1).bytes(20_000_000)
    for namespace, address in ((path.a, "10.0.0.1/24"), (path.b, "10.0.0.2/24")):
        set_address(namespace, "eth0", address)
        if not gso:
            set_offloads(namespace, "eth0", on=False)
    stop, seen, got = threading.Event(), dict[str, int](), hashlib.sha256()
    bump = threading.Thread(target=relay, args=(stop, path.middle, gso, seen))
    bump.start()
    eventually(lambda: seen.get("ready"))
    with path.b.entered():
        server = socket.create_server(("10.0.0.2", 0))
    with path.a.entered():
        client = socket.socket()

    def send() -> None:
        client.connect(server.getsockname())
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=send)
    writer.start()
    server.settimeout(10)
    with server, client, server.accept()[0] as connection:
        connection.settimeout(20)
        while part := connection.recv(1 << 20):
            got.update(part)
        writer.join()
    stop.set()
    bump.join()
    assert got.digest() == hashlib.sha256(data).digest()
    assert (seen["dropped"], seen["truncated"]) == (0, 0)
    if gso:
        assert seen["segmented"] > 0
        assert seen["longest"] > 10_000
    else:
        assert seen["longest"] <= 1514


def test_partial_checksums_are_marked(path: Path3) -> None:
    set_address(path.a, "eth0", "10.0.0.1/24")
    path.a.netlink.neigh(
        "add", dst="10.0.0.2", lladdr="02:00:00:00:00:0b", ifindex=path.a.route.index("eth0"), state="permanent"
    )
    with path.middle.entered():
        ring = PacketRing("left", slots=32)
    with path.a.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with ring, client:
        client.sendto(b"with help", ("10.0.0.2", 9))
        eventually(lambda: ring.statistics()[0])
        set_offloads(path.a, "eth0", on=False)
        client.sendto(b"without", ("10.0.0.2", 9))
        eventually(lambda: ring.statistics()[0] == 2)
        block = ring.ready()
        assert block is not None
        assert block.checksum_partial.tolist() == [True, False]
        with pytest.raises(LabError, match="make it with gso=True"):
            _ = block.vnet


def test_jumbo_frames_get_larger_slots(path: Path3) -> None:
    for namespace, ifname in ((path.a, "eth0"), (path.middle, "left")):
        namespace.netlink.link("set", index=namespace.route.index(ifname), mtu=9000)
    with path.middle.entered():
        ring = PacketRing("left", slots=100)
    with path.a.entered():
        sender = PacketSender("eth0")
    with ring, sender:
        assert ring.slots >= 100
        sent = [frame(number, 9014) for number in range(ring.slots)]
        sender.send_bytes(sent)
        assert taken(ring, len(sent)) == sent


@pytest.mark.usefixtures("descriptors")
def test_what_cannot_be_opened_leaves_nothing() -> None:
    with NetworkNamespace.create() as made, made.entered():
        for doing in (lambda: PacketRing("none"), lambda: PacketSender("none")):
            with pytest.raises(LabError, match=r"on none: No such device"):
                doing()
        with pytest.raises(LabError, match="not an Ethernet interface"):
            PacketRing("lo", slots=32)


@pytest.mark.usefixtures("descriptors")
def test_a_closed_ring_receives_no_more_though_views_remain() -> None:
    with NetworkNamespace.create() as made, made.entered():
        add_veth((made, "x"), (made, "y"))
        for ifname in ("x", "y"):
            set_up(made, ifname)
        for ifname in ("x", "y"):
            wait_up(made, ifname)
        with PacketRing("y", slots=32) as ring, PacketSender("x") as sender:
            sender.send_bytes([frame(1)])
            eventually(lambda: ring.statistics()[0] == 1)
            block = ring.ready()
            assert block is not None
            headers = block.headers
        assert bytes(headers[0][:64]) == frame(1)
        assert interface_statistics(made, "y")["rx_packets"] >= 1
        del headers, block
