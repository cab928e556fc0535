"""The classifier: whose a frame is, and what it says of the swap connection's stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from testbed.hosts.classifier import Classifier
from testbed.net.dev import ETH_P_ARP, ETH_P_IP, RxBatch
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue
from testbed.net.tun import Tun
from tests.net.host import Host

MACHINE_MAC = "02:00:00:00:01:07"
MAC, OTHER_MAC, BROADCAST = "02:00:00:00:00:01", "02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff"
SERVER, CLIENT, STRANGER = "10.0.0.9", "10.0.0.1", "10.0.0.7"


@dataclass
class Block:
    """Frames as a packet ring shows them."""

    headers: npt.NDArray[np.uint8]
    vlan: npt.NDArray[np.bool_]
    vnet: npt.NDArray[np.uint8]

    @property
    def count(self) -> int:
        return len(self.headers)


def block(*packets: Packet, gso: dict[int, int] | None = None, tagged: tuple[int, ...] = ()) -> Block:
    """`gso`: segment sizes by frame number; `tagged`: frames that came with a VLAN tag."""
    headers = np.zeros((len(packets), 128), np.uint8)
    vlan = np.zeros((2, len(packets)), np.bool_)
    vnet = np.zeros((len(packets), 10), np.uint8)
    for number, packet in enumerate(packets):
        raw = bytes(packet)[:128]
        headers[number, : len(raw)] = np.frombuffer(raw, np.uint8)
        vlan[1, number] = number in tagged
        if gso and number in gso:
            vnet[number, 1] = 1
            vnet[number, 4:6] = np.frombuffer(gso[number].to_bytes(2, "little"), np.uint8)
    return Block(headers, vlan, vnet)


def ether(destination: str = MAC) -> Packet:
    return Ether(src=OTHER_MAC, dst=destination)


def from_server(seq: int, size: int, flags: str = "A", source: str = SERVER) -> Packet:
    return ether() / IP(src=source, dst=CLIENT) / TCP(sport=10809, dport=4000, seq=seq, flags=flags) / (b"x" * size)


class Setting:
    """A classifier with a swap connection and one UDP socket on port 5000."""

    def __init__(self, *, gso: bool = False) -> None:
        host = Host()
        self.queue: TcpReceiveQueue = host.swap
        self.udp = Sock("prompt:5000", 1000)
        self.classifier = Classifier(MAC, (SERVER, 10809), {5000: self.udp}, gso=gso)
        self.classifier.connect(4000, self.queue)


def test_every_kind_of_frame_finds_its_receiver() -> None:
    setting = Setting()
    frames = block(
        ether() / IP(src=STRANGER, dst=CLIENT) / UDP(sport=1, dport=5000),
        ether() / IP(src=STRANGER, dst=CLIENT) / UDP(sport=1, dport=5001),
        from_server(1, 10),
        from_server(1, 10, source=STRANGER),
        ether() / IP(src=STRANGER, dst=CLIENT) / ICMP(),
        ether(BROADCAST) / ARP(),
    )
    batch, others = setting.classifier.classify_many(frames)  # type: ignore[arg-type]
    kinds = [batch.kinds[code] for code in batch.codes]
    assert [kind.receiver for kind in kinds] == [setting.udp, None, setting.queue, None, None, None]
    assert [kind.name for kind in kinds] == ["prompt:5000", "udp (no socket)", "nbd-client", "tcp", "icmp", "arp"]
    assert [kind.protocol for kind in kinds] == [ETH_P_IP] * 5 + [ETH_P_ARP]
    assert others is None


def test_frames_for_others_and_tagged_frames_are_told_apart() -> None:
    setting = Setting()
    frames = block(*(ether(mac) / ARP() for mac in (MAC, OTHER_MAC, BROADCAST, MAC)), tagged=(3,))
    _batch, others = setting.classifier.classify_many(frames)  # type: ignore[arg-type]
    assert others is not None
    assert others.tolist() == [False, True, False, True]


@pytest.mark.parametrize("few", [False, True])
def test_frames_for_a_virtual_machine_go_to_its_tap_and_those_for_everybody_are_known(few: bool) -> None:
    host = Host()
    tun = Tun("vm:guest", host.skb_memory)
    udp = Sock("prompt:5000", 1000)
    classifier = Classifier(MAC, (SERVER, 10809), {5000: udp}, gso=False, tuns={MACHINE_MAC: tun})
    frames = [
        Ether(dst=MACHINE_MAC) / IP(src=STRANGER, dst=CLIENT) / UDP(sport=1, dport=5000),
        ether() / IP(src=STRANGER, dst=CLIENT) / UDP(sport=1, dport=5000),
        Ether(dst=MACHINE_MAC) / ARP(),
        ether(BROADCAST) / ARP(),
        ether() / ARP(),
        ether(OTHER_MAC) / ARP(),
    ]
    batch, others = classified(classifier, *frames, few=few)
    kinds = [batch.kinds[code] for code in batch.codes]
    assert [kind.receiver for kind in kinds] == [tun, udp, tun, None, None, None]
    assert [kind.name for kind in kinds] == ["vm:guest", "prompt:5000", "vm:guest", "arp", "arp", "arp"]
    assert [kind.protocol for kind in kinds] == [ETH_P_IP, ETH_P_IP] + [ETH_P_ARP] * 4
    assert [kind.broadcast for kind in kinds] == [False, False, False, True, False, False]
    assert others is not None
    assert others.tolist() == [False] * 5 + [True]


def test_stream_offsets_count_from_the_first_byte_and_survive_wrapping() -> None:
    setting = Setting(gso=True)
    first = 0xFFFFFF00
    setting.classifier.classify_many(block(from_server(first - 1, 0, "SA")))  # type: ignore[arg-type]
    setting.classifier.attach(4000)
    setting.queue.copied_seq = 200
    wrapped = (first + 300) & 0xFFFFFFFF
    frames = block(
        from_server(first, 100),
        from_server(wrapped, 50),
        from_server(wrapped, 0),
        from_server(wrapped, 5000),
        gso={3: 1000},
    )
    batch, _others = setting.classifier.classify_many(frames)  # type: ignore[arg-type]
    assert batch.end_seq == [100, 350, 0, 5300]
    assert batch.segments == [1, 1, 1, 5]


def stranger(seq: int, size: int, flags: str = "A", sport: int = 700, dport: int = 8000) -> Packet:
    return ether() / IP(src=STRANGER, dst=CLIENT) / TCP(sport=sport, dport=dport, seq=seq, flags=flags) / (b"x" * size)


def test_connections_of_a_listening_socket_are_told_apart_from_their_syn_on() -> None:
    host = Host()
    asked: list[tuple[int, int]] = []
    queues: list[TcpReceiveQueue] = []

    def listen(peer: tuple[int, int]) -> TcpReceiveQueue:
        asked.append(peer)
        queues.append(TcpReceiveQueue(Sock("never:8000", 1000), host.skb_memory))
        return queues[-1]

    classifier = Classifier(MAC, (SERVER, 10809), {}, gso=True, listeners={8000: listen})
    classifier.connect(4000, host.swap)
    frames = block(
        stranger(5, 10),
        stranger(999, 0, "S"),
        stranger(999, 0, "S"),
        stranger(1000, 100),
        stranger(1099, 0, "S", sport=701),
        stranger(1100, 3000, sport=701),
        stranger(1000, 100, dport=8001),
        from_server(1, 10),
        gso={5: 1000},
    )
    batch, _others = classifier.classify_many(frames)  # type: ignore[arg-type]
    receivers = [batch.kinds[code].receiver for code in batch.codes]
    one, two = queues
    assert receivers == [None, one, one, one, two, two, None, host.swap]
    stranger_address = 10 << 24 | 7
    assert asked == [(stranger_address, 700), (stranger_address, 701)]
    assert batch.end_seq == [0, 0, 0, 100, 0, 3000, 0, 0]
    assert batch.segments == [1, 1, 1, 1, 1, 3, 1, 1]
    one.copied_seq = 100
    again, _others = classifier.classify_many(block(stranger(1050, 100), stranger(4999, 0, "S")))  # type: ignore[arg-type]
    assert again.end_seq == [150, 0]
    assert [again.kinds[code].receiver for code in again.codes] == [one, queues[2]]


def classified(
    classifier: Classifier, *packets: Packet, few: bool
) -> tuple[RxBatch, npt.NDArray[np.bool_] | None]:
    frames = block(*packets)
    if not few:
        return classifier.classify_many(frames)  # type: ignore[arg-type]
    slots = [(bytes(66) + frames.headers[number].tobytes()).ljust(256, b"\0") for number in range(frames.count)]
    frames.unpacked = lambda layout: [layout.unpack_from(slot) for slot in slots]  # type: ignore[attr-defined]
    return classifier.classify_few(frames)  # type: ignore[arg-type]


def seen(classifier: Classifier, *packets: Packet, few: bool) -> tuple[list[tuple[object, str]], list[int] | None]:
    batch, _ = classified(classifier, *packets, few=few)
    kinds = [batch.kinds[code] for code in batch.codes]
    ends = None if batch.end_seq is None else list(batch.end_seq)
    return [(kind.receiver, kind.name) for kind in kinds], ends


@pytest.mark.parametrize("few", [False, True])
def test_each_swap_connection_has_its_own_stream_and_a_dead_one_has_none(few: bool) -> None:
    host = Host()
    one, two = host.swap, TcpReceiveQueue(Sock("swap", 1000), host.skb_memory)
    classifier = Classifier(MAC, (SERVER, 10809), {}, gso=False)
    classifier.connect(4000, one)
    classifier.connect(4001, two)
    first = {4000: 1000, 4001: 500_000}

    def frame(port: int, at: int, size: int, flags: str = "A") -> Packet:
        packet = from_server(first[port] + at, size, flags)
        packet[TCP].dport = port
        return packet

    opening = [frame(port, -1, 0, "SA") for port in first]
    assert seen(classifier, *opening, few=few) == ([(one, "nbd-client"), (two, "nbd-client")], [0, 0])
    classifier.attach(4000)
    two.copied_seq = 70
    data = [frame(4000, 0, 100), frame(4001, 70, 30), frame(4000, 100, 10)]
    assert seen(classifier, *data, few=few) == ([(one, "swap"), (two, "nbd-client"), (one, "swap")], [100, 0, 110])
    classifier.attach(4001)
    classifier.disconnect(4000)
    assert seen(classifier, *data, few=few) == ([(None, "tcp"), (two, "swap"), (None, "tcp")], [0, 100, 0])
