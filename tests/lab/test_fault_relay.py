"""A relay in a real link: it accounts for every frame, does what it is told, and leaves nothing when it is killed."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.hosts.messages import ClearFault, Event, Finished, Message, SetFault, Shutdown
from testbed.lab.fault_relay import HOST_SIDE, NETWORK_SIDE, FaultRelaySpec, fault_relay_main, flat
from testbed.lab.link import add_veth, set_address, set_offloads, set_up, wait_up
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.packet_ring import PacketRing
from testbed.lab.packet_sender import PacketSender
from testbed.lab.process import HostProcess
from tests.lab.conftest import MAC_A, MAC_B, Lab
from tests.lab.helpers import eventually, holders_of
from tests.lab.test_packet_ring import frame, tagged, taken

pytestmark = pytest.mark.root
HOST, PEER = "10.0.0.1", "10.0.0.2"
PORT = 7000


class RelayedLink:
    """`host` and `peer` (eth0 each, with addresses, offloads off), and the running relay between them."""

    def __init__(self, lab: Lab) -> None:
        self.host, self.middle, self.peer = lab.namespace(), lab.namespace(), lab.namespace()
        add_veth((self.host, "eth0"), (self.middle, HOST_SIDE), mac_a=MAC_A)
        add_veth((self.peer, "eth0"), (self.middle, NETWORK_SIDE), mac_a=MAC_B)
        ends = ((self.host, "eth0"), (self.middle, HOST_SIDE), (self.middle, NETWORK_SIDE), (self.peer, "eth0"))
        for namespace, ifname in ends:
            set_offloads(namespace, ifname, on=False)
            set_up(namespace, ifname)
        for namespace, ifname in ends:
            wait_up(namespace, ifname)
        self.relay = HostProcess("relay", fault_relay_main, FaultRelaySpec("relay"), [self.middle]).start()
        self.relay.wait_ready()
        self.said: list[Message] = []

    def give_addresses(self) -> None:
        set_address(self.host, "eth0", f"{HOST}/24")
        set_address(self.peer, "eth0", f"{PEER}/24")

    def sender(self, namespace: NetworkNamespace) -> PacketSender:
        with namespace.entered():
            return PacketSender("eth0")

    def ring(self, namespace: NetworkNamespace) -> PacketRing:
        with namespace.entered():
            return PacketRing("eth0", slots=4096)

    def set(self, number: int, kind: str, /, **arguments: Any) -> None:
        """Have a fault act, and wait until it does."""
        self.relay.send(SetFault(number, kind, arguments, seed=number))
        self._answered("fault_set", number)

    def clear(self, number: int) -> None:
        self.relay.send(ClearFault(number))
        self._answered("fault_cleared", number)

    def _answered(self, name: str, number: int) -> None:
        def answered() -> bool:
            self.said += self.relay.messages()
            return any(
                isinstance(each, Event) and each.name == name and each.fields["number"] == number
                for each in self.said
            )

        eventually(answered, what=name)

    def finish(self) -> dict[str, dict[str, Any]]:
        """The relay's whole account; conserved or the test fails."""
        self.relay.send(Shutdown())

        def finished() -> bool:
            self.said += self.relay.messages()
            return isinstance(self.said[-1], Finished)

        eventually(finished, what="the report")
        last = self.said[-1]
        assert isinstance(last, Finished)
        for counters in last.report.values():
            assert counters["interface_packets"] == counters["ring_packets"] + counters["ring_drops"]
            assert counters["ring_packets"] == counters["taken"]
            lost = counters["tx_dropped"] + sum(counters["dropped"].values())
            assert counters["taken"] + counters["duplicated"] == counters["tx_packets"] + counters["held"] + lost
        return last.report


@pytest.fixture
def link(lab: Lab) -> Iterator[RelayedLink]:
    made = RelayedLink(lab)
    yield made
    made.relay.close()


def test_frames_pass_both_ways_whole_and_in_order(link: RelayedLink) -> None:
    sent = [tagged(number, 400) if number % 7 == 3 else frame(number, 60 + number) for number in range(1000)]
    plain = [frame(number, 400) if number % 7 == 3 else sent[number] for number in range(1000)]
    with (
        link.sender(link.host) as host,
        link.sender(link.peer) as peer,
        link.ring(link.peer) as at_peer,
        link.ring(link.host) as at_host,
    ):
        host.send_bytes(sent)
        peer.send_bytes(sent[:100])
        assert taken(at_peer, 1000) == plain
        assert taken(at_host, 100) == plain[:100]
    report = link.finish()
    assert (report["from"]["tx_packets"], report["to"]["tx_packets"]) == (1000, 100)


def test_tags_survive_an_effect(link: RelayedLink) -> None:
    link.set(1, "delay", seconds=0.0)
    with link.sender(link.host) as host, link.ring(link.peer) as at_peer:
        host.send_bytes([tagged(1), frame(2)])
        eventually(lambda: at_peer.statistics()[0] == 2)
        block = at_peer.ready()
        assert block is not None
        assert block.vlan[1].tolist() == [True, False]
        assert bytes(block.frame(0)) == frame(1)


def test_a_partition_cuts_until_it_is_cleared(link: RelayedLink) -> None:
    with link.sender(link.host) as host, link.ring(link.peer) as at_peer:
        link.set(1, "partition", direction="from")
        host.send_bytes([frame(number) for number in range(50)])
        with link.sender(link.peer) as peer, link.ring(link.host) as at_host:
            peer.send_bytes([frame(1)])
            assert taken(at_host, 1) == [frame(1)]
        eventually(lambda: dropped(link, "from_dropped_partition") == 50)
        link.clear(1)
        host.send_bytes([frame(99)])
        assert taken(at_peer, 1) == [frame(99)]
    report = link.finish()
    assert report["from"]["dropped"] == {"partition": 50}
    assert report["to"]["dropped"] == {}


def dropped(link: RelayedLink, name: str) -> int:
    """A counter of the relay's latest sample."""
    link.said += link.relay.messages()
    samples = [each for each in link.said if hasattr(each, "counters")]
    return samples[-1].counters.get(name, 0) if samples else 0


def test_every_effect_is_accounted_for(link: RelayedLink) -> None:
    link.set(1, "loss", probability=0.2)
    link.set(2, "duplicate", probability=0.3)
    link.set(3, "delay", seconds=0.002, jitter=0.002)
    link.set(4, "truncate", probability=0.1)
    link.set(5, "corrupt", probability=0.1, bits=3)
    link.set(6, "mtu", mtu=1000)
    link.set(7, "rate", bytes_per_second=50e6, queue=100_000)
    with link.sender(link.host) as host:
        host.send_bytes([frame(number, 64 + number % 1200) for number in range(3000)])
    report = link.finish()["from"]
    assert report["taken"] == 3000
    assert set(report["dropped"]) >= {"loss", "mtu", "overlimit"}
    assert report["duplicated"] > 0
    assert report["altered"] > 0


def test_what_is_held_at_the_end_is_said(link: RelayedLink) -> None:
    link.set(1, "delay", seconds=1000)
    with link.sender(link.host) as host:
        host.send_bytes([frame(number) for number in range(20)])
    assert link.finish()["from"]["held"] == 20


def test_frames_on_the_wire_stay_there_when_the_delay_goes(link: RelayedLink) -> None:
    link.set(1, "delay", seconds=0.2)
    with link.sender(link.host) as host, link.ring(link.peer) as at_peer:
        host.send_bytes([frame(1)])
        eventually(lambda: dropped(link, "from_held") == 1)
        link.clear(1)
        host.send_bytes([frame(2)])
        assert taken(at_peer, 2) == [frame(2), frame(1)]


def test_corrupted_tcp_is_sent_again_and_arrives_as_it_was(link: RelayedLink) -> None:
    """With offloads off the checksums are real, and the kernel of the receiver looks at them."""
    link.give_addresses()
    data = os.urandom(2 << 20)
    with link.peer.entered():
        listener = socket.create_server((PEER, PORT))
    received = bytearray()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while piece := connection.recv(1 << 16):
                received.extend(piece)

    server = threading.Thread(target=serve)
    server.start()
    with link.host.entered():
        client = socket.create_connection((PEER, PORT))
    link.set(1, "corrupt", probability=0.02, keep_headers=True)
    with client:
        client.sendall(data)
    server.join(60)
    listener.close()
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    link.clear(1)
    assert link.finish()["from"]["altered"] > 10
    with link.peer.entered():
        assert tcp_statistic("InCsumErrors") > 0


def tcp_statistic(name: str) -> int:
    """A counter of this thread's namespace in /proc/net/snmp."""
    with open("/proc/thread-self/net/snmp") as file:  # noqa: PTH123
        names, values = [line.split() for line in file if line.startswith("Tcp:")]
    return int(values[names.index(name)])


def test_corrupted_datagrams_are_not_read(link: RelayedLink) -> None:
    link.give_addresses()
    with link.peer.entered():
        reader = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        reader.bind((PEER, PORT))
    with link.host.entered():
        writer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        writer.connect((PEER, PORT))
    with reader, writer:
        writer.send(b"resolve")
        assert reader.recv(100) == b"resolve"
        link.set(1, "corrupt", probability=1.0, keep_headers=True)
        for _ in range(50):
            writer.send(bytes(100))
        eventually(lambda: dropped(link, "from_altered") == 50)
        link.clear(1)
        writer.send(b"whole")
        assert reader.recv(100) == b"whole"
        assert select.select([reader], [], [], 0)[0] == []


def test_a_killed_relay_leaves_nothing_and_is_missed(lab: Lab) -> None:
    link = RelayedLink(lab)
    inode = os.fstat(link.middle.fd).st_ino
    os.kill(link.relay.pid, signal.SIGKILL)
    eventually(lambda: not link.relay.alive)
    assert "SIGKILL" in str(link.relay.messages()[-1])
    assert holders_of(inode) == [os.getpid()]
    link.relay.close()


def test_a_fault_no_link_can_have_is_refused(link: RelayedLink) -> None:
    link.relay.send(SetFault(1, "eio_read", {}, 1))
    eventually(lambda: not link.relay.alive)
    last = link.relay.messages()[-1]
    assert "there is no link effect 'eio_read'" in str(last)


def test_nested_counters_get_one_name_each() -> None:
    assert flat({"to": {"taken": 3, "dropped": {"loss": 1}}}) == {"to_taken": 3, "to_dropped_loss": 1}
