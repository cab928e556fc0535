"""Floods: packets arrive as scapy built them, numbered, checksummed, at the rate that is reported."""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from testbed.hosts.messages import Event, Finished, Message, Sample, SendCanary, Shutdown, StartFlood, StopFlood
from testbed.lab.errors import LabError
from testbed.lab.flood import Flood
from testbed.lab.link import add_permanent_neighbour, interface_statistics, set_address
from testbed.lab.neighbour import CanaryProfile, FloodProfile, FloodSpec, flood_main
from testbed.lab.packet_ring import PacketRing
from testbed.lab.process import HostProcess
from testbed.lab.templates import BUILDERS, Endpoints, Template, build
from tests.lab.conftest import MAC_A, MAC_B, Wire
from tests.lab.helpers import eventually

IPV4 = Endpoints(MAC_A, MAC_B, "10.0.0.1", "10.0.0.2")
IPV6 = Endpoints(MAC_A, MAC_B, "fd00::1", "fd00::2")
PORTS = (1000, 1001, 1002)


def ends(kind: str) -> Endpoints:
    return IPV6 if kind == "ipv6_udp" else IPV4


def exactly(count: int) -> Callable[[Flood], None]:
    """Steps a flood through pretended time until it has sent so many frames."""

    def run(flood: Flood) -> None:
        for tick in itertools.count():
            if flood.sent >= count:
                return
            flood.step(tick * 0.001)

    return run


def arrived(wire: Wire, flood_of: Sequence[Template], count: int, **options: Any) -> list[bytes]:
    """What a flood of these templates looks like on the wire, VLAN tags put back."""
    with wire.b.entered(), PacketRing("eth0", slots=2048) as ring, wire.a.entered():
        with Flood("eth0", flood_of, 1000 * 100, **options) as flood:
            exactly(count)(flood)
            assert flood.lost == 0
        eventually(lambda: ring.statistics()[0] == flood.sent)
        frames = []
        while (block := ring.ready(2048)) is not None:
            tci, valid = block.vlan
            for number in range(block.count):
                whole = bytes(block.frame(number))
                frames.append(whole[:12] + struct.pack(">HH", 0x8100, tci[number]) * bool(valid[number]) + whole[12:])
            ring.release(block)
    return frames


def assert_checksums(frame: bytes) -> None:
    """scapy computes the same checksums (IPv4 UDP may have none)."""
    packet = Ether(frame)
    again = packet.copy()
    for layer, field in ((IP, "chksum"), (TCP, "chksum"), (UDP, "chksum"), (ICMP, "cksum"), (ICMP, "chksum")):
        if layer in again and field in again[layer].fields:
            delattr(again[layer], field)
    again = Ether(bytes(again))
    for layer in (IP, TCP, UDP, ICMP):
        if layer in packet:
            none = layer is UDP and IP in packet and packet[UDP].chksum == 0
            assert none or packet[layer].chksum == again[layer].chksum, layer


CHECKS: dict[str, Callable[[Any], bool]] = {
    "udp": lambda p: p[IP].dst == "10.0.0.2" and p[UDP].dport in PORTS and p[UDP].chksum == 0,
    "vlan_udp": lambda p: p[Dot1Q].vlan == 7 and p[UDP].dport in PORTS and p[IP].src == "10.0.0.1",
    "ipv6_udp": lambda p: p[IPv6].dst == "fd00::2" and p[UDP].dport in PORTS and p[UDP].chksum != 0,
    "tcp_syn": lambda p: p[TCP].flags == "S" and p[TCP].dport in PORTS,
    "icmp_echo": lambda p: p[ICMP].type == 8,
    "arp": lambda p: p[ARP].pdst == "10.0.0.2" and p.dst == "ff:ff:ff:ff:ff:ff" and p[ARP].op == 1,
    "ethertype": lambda p: p.type == 0x8137,
}


@pytest.mark.root
@pytest.mark.parametrize("size", [60, 301, 1514])
@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_every_kind_arrives_as_built(wire: Wire, kind: str, size: int) -> None:
    templates = build(kind, ends(kind), PORTS, size)
    varied = {"source_ports": (2000, 3000), "vary_ip_id": True, "seed": 3}
    frames = arrived(wire, templates, 300, **varied)
    smallest = {"ipv6_udp": 70, "vlan_udp": 60}.get(kind, 60)
    assert {len(frame) for frame in frames} == {max(size, smallest)}
    decoded = [Ether(frame) for frame in frames]
    assert all(packet.src == MAC_A for packet in decoded)
    assert all(CHECKS[kind](packet) for packet in decoded)
    for frame in frames[::37]:
        assert_checksums(frame)
    at = templates[0].sequence_at
    if at is not None:
        numbers = [int.from_bytes(frame[at : at + 8], "big") for frame in frames]
        assert numbers == list(range(len(frames)))
    sources = {packet[layer].sport for packet in decoded for layer in (TCP, UDP) if layer in packet}
    assert all(2000 <= source <= 3000 for source in sources)
    assert not sources or len(sources) > 50
    identities = {packet[IP].id for packet in decoded if IP in packet}
    assert not identities or len(identities) > 250


@pytest.mark.root
def test_ports_take_turns_and_numbers_go_on_past_the_rows(wire: Wire) -> None:
    frames = arrived(wire, build("udp", IPV4, PORTS, 100), 1500)
    assert [Ether(frame)[UDP].dport for frame in frames[:6]] == [*PORTS, *PORTS]
    numbers = [int.from_bytes(frame[42:50], "big") for frame in frames]
    assert numbers == list(range(len(frames)))
    ports = [Ether(frame)[UDP].dport for frame in frames[1020:1030]]
    assert ports == [PORTS[number % 3] for number in range(1020, 1030)]


@pytest.mark.root
def test_large_numbers_keep_checksums_right(wire: Wire) -> None:
    templates = build("ipv6_udp", IPV6, PORTS, 80)
    with wire.a.entered(), Flood("eth0", templates, 1000) as flood:
        flood._rows._sequence = 0xFFFF_FFFF_FFFF_FF00
        with wire.b.entered(), PacketRing("eth0", slots=64) as ring:
            exactly(20)(flood)
            eventually(lambda: ring.statistics()[0] >= 20)
            block = ring.ready(20)
            assert block is not None
            for number in range(block.count):
                assert_checksums(bytes(block.frame(number)))


@pytest.mark.root
def test_an_ordinary_socket_receives_it(wire: Wire) -> None:
    set_address(wire.b, "eth0", "10.0.0.2/24")
    with wire.b.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, wire.a.entered(), Flood("eth0", build("udp", IPV4, [1000], 100), 10_000) as flood:
        receiver.bind(("10.0.0.2", 1000))
        receiver.settimeout(10)
        exactly(50)(flood)
        assert [int.from_bytes(receiver.recv(2000)[:8], "big") for _ in range(50)] == list(range(50))


@pytest.mark.root
@pytest.mark.parametrize("pps", [0, 100, 5000, None])
def test_the_reported_rate_is_the_true_one(wire: Wire, pps: float | None) -> None:
    before = interface_statistics(wire.a, "eth0")["tx_packets"]
    with wire.a.entered(), Flood("eth0", build("udp", IPV4, PORTS, 100), pps) as flood:
        started = time.monotonic()
        flood.run_until(lambda: False, 0.3)
        elapsed = time.monotonic() - started
    counted = interface_statistics(wire.a, "eth0")["tx_packets"] - before
    assert flood.sent == counted
    if pps == 0:
        assert (flood.sent, flood.pps) == (0, 0.0)
        return
    assert flood.sent > 0
    assert flood.pps >= 0.99 * counted / elapsed
    if pps is not None:
        assert flood.sent <= pps * elapsed
        assert flood.pps <= pps


@pytest.mark.root
def test_the_rate_is_kept_in_pretended_time_and_a_stall_is_not_made_up_for(wire: Wire) -> None:
    with wire.a.entered(), Flood("eth0", build("udp", IPV4, PORTS, 100), 10_000) as flood:
        now = 5.0
        flood.step(now)
        while now < 6.0:
            assert flood.step(now) > now
            now += 0.0013
        assert flood.sent == pytest.approx(10_000, abs=30)
        sent = flood.sent
        flood.step(now + 10.0)
        assert flood.sent - sent <= 200
        assert flood.pps < 2000
        sent = flood.sent
        flood.step(now + 10.001)
        assert flood.sent - sent == pytest.approx(10, abs=1)


@pytest.mark.root
def test_frames_the_interface_refuses_are_lost_not_sent(wire: Wire) -> None:
    with wire.a.entered(), Flood("eth0", build("udp", IPV4, PORTS, 1600), 1000) as flood:
        for tick in range(100):
            flood.step(tick * 0.001)
        assert flood.sent == 0
        assert flood.lost == 99


@pytest.mark.root
def test_mistakes_are_told_in_a_line(wire: Wire) -> None:
    udp, arp = build("udp", IPV4, PORTS, 100), build("arp", IPV4, PORTS, 100)
    mistakes: dict[str, Callable[[], object]] = {
        "there is no flood of kind 'smoke': choose one of arp": lambda: build("smoke", IPV4, PORTS, 100),
        "a flood needs destination ports": lambda: build("udp", IPV4, [], 100),
        "a flood needs destination ports from 1": lambda: build("udp", IPV4, [70000], 100),
        "a flood needs at least one packet": lambda: Flood("eth0", [], 1),
        "a flood of -1 packets per second": lambda: Flood("eth0", udp, -1),
        "the templates of one flood must be of one kind": lambda: Flood("eth0", [*udp, *arp], 1),
        "source ports (5, 1)": lambda: Flood("eth0", udp, 1, source_ports=(5, 1)),
        "opening a packet socket on none: No such device": lambda: Flood("none", udp, 1),
        "cannot build ipv6_udp packets": lambda: build("ipv6_udp", IPV4, PORTS, 100),
    }
    with wire.a.entered():
        for text, call in mistakes.items():
            with pytest.raises(LabError) as caught:
                call()
            assert str(caught.value).startswith(text)
            assert "\n" not in str(caught.value)


class Heard:
    """Collects what a process says."""

    def __init__(self, host: HostProcess) -> None:
        self.host = host
        self.messages: list[Message] = []

    def until(self, condition: Callable[[Message], bool]) -> Message:
        found: list[Message] = []

        def look() -> bool:
            select.select([self.host], [], [], 0.1)
            new = self.host.messages()
            self.messages += new
            found.extend(message for message in new if condition(message))
            return bool(found)

        eventually(look, what="a message")
        return found[0]

    def event(self, name: str) -> Event:
        said = self.until(lambda message: isinstance(message, Event) and message.name == name)
        assert isinstance(said, Event)
        return said


@pytest.fixture
def neighbour(wire: Wire) -> Iterator[HostProcess]:
    set_address(wire.a, "eth0", "10.0.0.1/24")
    set_address(wire.b, "eth0", "10.0.0.2/24")
    add_permanent_neighbour(wire.a, "eth0", "10.0.0.2", MAC_B)
    add_permanent_neighbour(wire.b, "eth0", "10.0.0.1", MAC_A)
    floods = [
        FloodProfile("udp", 2000, 200, MAC_A, MAC_B, "10.0.0.1", "10.0.0.2", ports=(1000, 1001)),
        FloodProfile("ethertype", 500, 60, MAC_A, MAC_B, "10.0.0.1", "10.0.0.2"),
        FloodProfile("arp", 0, 60, MAC_A, MAC_B, "10.0.0.1", "10.0.0.2"),
    ]
    spec = FloodSpec("noise", "eth0", floods, CanaryProfile("10.0.0.2", 7777, 40), seed=1)
    host = HostProcess("noise", flood_main, spec, [wire.a]).start()
    yield host
    host.close()


@pytest.mark.root
def test_neighbour_floods_on_command(wire: Wire, neighbour: HostProcess) -> None:
    with wire.b.entered():
        ring = PacketRing("eth0", slots=8192)
    with ring:
        assert neighbour.wait_ready().facts == {"floods": 3}
        heard = Heard(neighbour)
        heard.until(lambda message: isinstance(message, Sample) and message.counters["flood_sent"] == 0)
        assert ring.statistics() == (0, 0)
        neighbour.send(StartFlood())
        heard.until(lambda message: isinstance(message, Sample) and message.counters["flood_sent"] > 1000)
        neighbour.send(StopFlood())
        told = heard.event("flood_stopped").fields
        eventually(lambda: ring.statistics()[0] >= told["sent"])
        assert ring.statistics() == (told["sent"], 0)
        assert told["each"][0]["sent"] == pytest.approx(4 * told["each"][1]["sent"], rel=0.2)
        assert told["each"][2]["sent"] == told["lost"] == 0
        assert 0 < told["pps"] <= 2500
        samples = [message for message in heard.messages if isinstance(message, Sample)]
        assert len(samples) >= 3
        neighbour.send(Shutdown())
        finished = heard.until(lambda message: isinstance(message, Finished))
        assert isinstance(finished, Finished)
        assert finished.report["sent"] == told["sent"]
        assert neighbour.stop() == 0


@pytest.mark.root
def test_neighbour_sends_the_canary(wire: Wire, neighbour: HostProcess) -> None:
    with wire.b.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver:
        receiver.bind(("10.0.0.2", 7777))
        receiver.settimeout(10)
        neighbour.wait_ready()
        neighbour.send(SendCanary(5))
        neighbour.send(SendCanary(5, 0.1))
        got = [receiver.recv(2000) for _ in range(10)]
        assert sorted(int.from_bytes(datagram[:8], "big") for datagram in got) == list(range(10))
        assert {len(datagram) for datagram in got} == {40}
        heard = Heard(neighbour)
        heard.until(lambda message: isinstance(message, Event) and message.fields["sent"] == 10)


@pytest.mark.root
def test_neighbour_says_what_it_cannot_do(wire: Wire) -> None:
    profile = FloodProfile("smoke", 10, 60, MAC_A, MAC_B, "10.0.0.1", "10.0.0.2")
    host = HostProcess("noise", flood_main, FloodSpec("noise", "eth0", [profile]), [wire.a]).start()
    with pytest.raises(LabError, match="host noise: there is no flood of kind 'smoke'"):
        host.wait_ready()
    host.close()
    host = HostProcess("noise", flood_main, FloodSpec("noise", "eth0"), [wire.a]).start()
    host.wait_ready()
    host.send(SendCanary(1))
    eventually(lambda: not host.alive)
    assert "was given no canary" in str(host.messages()[-1])
    host.close()
