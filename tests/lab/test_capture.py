"""A link looked at from outside: both directions, whole or in part, and honest about what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

from testbed.hosts.messages import Shutdown
from testbed.lab.capture import Capture, SnifferSpec, sniffer_main
from testbed.lab.errors import LabError
from testbed.lab.link import interface_statistics
from testbed.lab.packet_sender import PacketSender
from testbed.lab.pcapng import INBOUND, OUTBOUND, Statistics, read_statistics
from testbed.lab.process import HostProcess
from tests.lab.conftest import Wire
from tests.lab.helpers import eventually
from tests.lab.test_packet_ring import frame, tagged


def captured(path: Path) -> list[tuple[bytes, int, int]]:
    """Each frame with its direction and its length on the wire."""
    with RawPcapNgReader(str(path)) as reader:
        return [(data, about.direction, about.wirelen) for data, about in reader]


def sniff(wire: Wire, path: Path, snaplen: int, coming: list[bytes], going: list[bytes]) -> None:
    """Capture at b, while a sends `coming` and b sends `going`."""
    before = interface_statistics(wire.b, "eth0")
    sniffer = HostProcess("b", sniffer_main, SnifferSpec("b", "eth0", str(path), snaplen), [wire.b]).start()
    sniffer.wait_ready()
    with wire.a.entered(), PacketSender("eth0") as sender:
        sender.send_bytes(coming)
    with wire.b.entered(), PacketSender("eth0") as sender:
        sender.send_bytes(going)

    def all_there() -> bool:
        now = interface_statistics(wire.b, "eth0")
        return all(
            now[name] - before[name] >= len(frames) for name, frames in (("rx_packets", coming), ("tx_packets", going))
        )

    eventually(all_there, what="all frames")
    sniffer.send(Shutdown())
    assert sniffer.stop() == 0


@pytest.mark.root
def test_both_directions_are_there_with_their_tags(wire: Wire, tmp_path: Path) -> None:
    path = tmp_path / "b.pcapng"
    sniff(wire, path, 65535, [frame(1), tagged(2, 100), frame(3, 1514)], [frame(4)])
    assert captured(path) == [
        (frame(1), INBOUND, 64),
        (tagged(2, 100), INBOUND, 104),
        (frame(3, 1514), INBOUND, 1514),
        (frame(4), OUTBOUND, 64),
    ]
    assert read_statistics(path) == Statistics(4, 0)


@pytest.mark.root
def test_only_as_many_bytes_as_wanted_are_kept(wire: Wire, tmp_path: Path) -> None:
    path = tmp_path / "b.pcapng"
    sniff(wire, path, 16, [frame(1), tagged(2), frame(3)], [])
    assert captured(path) == [(frame(1)[:16], INBOUND, 64), (tagged(2)[:16], INBOUND, 68), (frame(3)[:16], INBOUND, 64)]


@pytest.mark.root
def test_more_than_the_ring_holds_is_written_or_counted_as_lost(wire: Wire, tmp_path: Path) -> None:
    path = tmp_path / "b.pcapng"
    sniff(wire, path, 64, [frame(number) for number in range(50_000)], [])
    statistics = read_statistics(path)
    assert statistics is not None
    assert statistics.written + statistics.lost == 50_000
    assert len(captured(path)) == statistics.written


def test_a_full_disk_ends_the_capture_and_not_the_experiment() -> None:
    capture = Capture("/dev/full", 2000, "eth0")
    for number in range(2000):
        capture.frame(number, bytes(1500), 1500, INBOUND, "")
    assert capture.lost > 0
    assert capture.written + capture.lost == 2000
    capture.close(0)


def test_a_capture_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"cannot write the capture .*: No such file or directory"):
        Capture(str(tmp_path / "no" / "x.pcapng"), 64, "eth0")
