"""The captures of a run, counted against the ledger: every frame that the model dropped is there and says why."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader, rdpcap

from testbed import Bystander, TcpStream, UdpFlood, VlanUdpFlood
from testbed.experiment.arguments import RunOptions
from testbed.experiment.live import NoView
from testbed.experiment.plan import Overrides, Plan
from testbed.experiment.result import Result
from testbed.experiment.session import run, simulate
from testbed.lab.errors import LabError
from testbed.lab.pcapng import SNAPLEN
from testbed.patches import PATCHES
from tests.integration.small_run import small_plan

COMMENT = re.compile(r"dropped: (.*); socket (.+); (\d+) pages free; min (\d+), low (\d+)")
PENDING = re.compile(r"pending: (\d+) in the backlog of socket [^;]+")
END = re.compile(r"(\w+) in (\w+)(?: \((\d+) of (\d+) segments\))?")


@dataclass
class Seen:
    """What a client's capture says: segments dropped by reason, and skbs that were left in a backlog."""

    dropped: Counter[str]
    pending: int
    sockets: set[str]
    free: set[int]
    min: set[int]
    packets: int


def read(path: Path) -> Seen:
    seen = Seen(Counter(), 0, set(), set(), set(), 0)
    with RawPcapNgReader(str(path)) as reader:
        for _, about in reader:
            seen.packets += 1
            for comment in about.comments or []:
                pending, match = PENDING.match(comment.decode()), COMMENT.search(comment.decode())
                assert pending or match, comment
                seen.pending += int(pending[1]) if pending else 0
                if match is None:
                    continue
                for reason, _, segments, _ in END.findall(match[1]):
                    seen.dropped[reason] += int(segments or 1)
                seen.sockets.add(match[2])
                seen.free.add(int(match[3]))
                seen.min.add(int(match[4]))
    return seen


def captured(plan: Plan, out: Path, snaplen: int = SNAPLEN) -> Result:
    options = RunOptions(frozenset(PATCHES), Overrides(), 1, 15.0, 6.0, out, capture=snaplen)
    return run(plan, options, NoView())


@pytest.mark.root
@pytest.mark.parametrize("gso", [False, True], ids=["plain", "gso"])
def test_every_dropped_frame_is_in_the_capture_with_its_reason(tmp_path: Path, gso: bool) -> None:
    bystanders = (Bystander(count=3), Bystander(count=1, protocol="tcp"), Bystander(reader="corked", count=2))
    floods = (UdpFlood(pps=3_000, size=1000), VlanUdpFlood(pps=100), TcpStream(bytes_per_second="2M"))
    plan = small_plan(*floods, gso=gso, bystanders=bystanders)
    result = captured(plan, tmp_path)
    assert result.outcome != "error", result.error
    assert [capture.link for capture in result.captures] == ["server", "client", "noise"]
    seen = read(tmp_path / "capture-client.pcapng")
    ours = next(capture for capture in result.captures if capture.link == "client")
    assert ours.frames == seen.packets
    refused = seen.dropped.pop("TX_NOMEM", 0)
    assert dict(seen.dropped) == result.frames.dropped
    assert seen.pending == result.frames.pending
    assert seen.dropped["OTHERHOST"] > 0
    assert refused == result.counters["tx_skb_alloc_failed"]
    assert "other host" in seen.sockets
    assert min(seen.free) >= result.memory.reserve_min_free
    assert seen.min == {result.memory.min}
    for path in tmp_path.glob("*.pcapng"):
        if path.name != "capture-client.pcapng":
            assert read(path).dropped == Counter()


@pytest.mark.root
@pytest.mark.program("capinfos")
def test_wireshark_and_scapy_open_every_file(tmp_path: Path) -> None:
    result = captured(small_plan(UdpFlood(pps=500, size=300)), tmp_path, snaplen=65535)
    for capture in result.captures:
        path = tmp_path / capture.file
        about = subprocess.run(["capinfos", "-Mc", path], capture_output=True, text=True, check=True).stdout
        assert about.split()[-1] == str(capture.frames)
        assert capture.lost == 0 or capture.link == "client"
    assert len(rdpcap(str(tmp_path / "capture-noise.pcapng"), 10)) == 10


def test_a_simulation_has_nothing_to_capture(tmp_path: Path) -> None:
    options = RunOptions(frozenset(PATCHES), Overrides(), 1, 120.0, 6.0, tmp_path / "run", capture=SNAPLEN)
    with pytest.raises(LabError, match="no bytes that could be captured: run it for real"):
        simulate(small_plan(), options, NoView())
    assert not (tmp_path / "run").exists()
