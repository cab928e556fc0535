"""Whole runs on real sockets: they pass when they should, and the checks see what really happened."""

from __future__ import annotations

import pytest

from testbed import Bystander, TcpStream, UdpFlood
from testbed.experiment.coordinator import RunRecord
from testbed.experiment.result import Check
from testbed.experiment.topology import (
    ArpFlood,
    EtherTypeFlood,
    Flood,
    IcmpFlood,
    Ipv6UdpFlood,
    TcpSynFlood,
    VlanUdpFlood,
)
from testbed.experiment.verdict import judge
from testbed.hosts.ledger import Ledger
from testbed.net.drop_reason import DropReason
from tests.integration.small_run import ALL_OFF, run_plan, small_plan

pytestmark = pytest.mark.root

DEMO_BYSTANDERS = (
    Bystander(reader="never", count=3),
    Bystander(reader="faulting", count=2),
    Bystander(reader="prompt", count=1),
)


def checks_of(record: RunRecord) -> dict[str, Check]:
    return {check.name: check for check in judge(record.evidence).checks}


def failed(record: RunRecord) -> list[str]:
    return [f"{check.name}: {check.evidence}" for check in judge(record.evidence).checks if check.ok is False]


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "plain"])
def test_quiet_swap_completes_and_every_page_is_right(gso: bool) -> None:
    record = run_plan(small_plan(gso=gso))
    assert failed(record) == []
    report = record.evidence.clients[0].report
    assert report is not None
    assert report["workload"]["checked"] == report["workload"]["pages"]
    assert report["swap"]["pages_in"] > 0
    assert report["pages_leaked"] == 0
    times = report["times"]
    assert 0 < times["user_s"] < times["system_s"]
    assert times["user_s"] + times["system_s"] < 1.1 * times["elapsed_s"]


def test_flooded_swap_passes_and_unrelated_pfmemalloc_frames_are_dropped() -> None:
    plan = small_plan(UdpFlood(pps=30_000, size=1000), gso=False, bystanders=DEMO_BYSTANDERS)
    record = run_plan(plan)
    assert failed(record) == []
    report = record.evidence.clients[0].report
    assert report is not None
    assert report["counters"]["PFMemallocDrop"] > 0
    assert report["frames"]["unrelated_pfmemalloc_delivered"] == 0
    assert report["frames"]["swap_socket_filtered"] == 0


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "plain"])
def test_tcp_bystanders_are_served_and_accounted_for(gso: bool) -> None:
    bystanders = [
        Bystander(reader="never", count=1, buffer="128K", protocol="tcp"),
        Bystander(reader="faulting", count=1, protocol="tcp"),
        Bystander(reader="prompt", count=1, protocol="tcp"),
    ]
    stream = TcpStream(bytes_per_second="2M", start="workload")
    record = run_plan(small_plan(stream, gso=gso, bystanders=bystanders))
    checks = checks_of(record)
    for name in ("canary before", "swap is spared", "progress", "integrity", "conservation", "canary after"):
        assert checks[name].ok, f"{name}: {checks[name].evidence}"
    report = record.evidence.clients[0].report
    assert report is not None
    assert report["frames"]["unrelated_pfmemalloc_delivered"] == 0
    streams = report["streams"]
    assert [stream["connections"] for stream in streams.values()] == [1, 1, 1]
    assert streams["prompt:20002"]["received"] > 0
    assert record.evidence.clients[0].flood_sent


def test_the_swap_servers_address_is_asked_for_again() -> None:
    record = run_plan(small_plan(neighbour_timeout=0.02))
    assert failed(record) == []
    report = record.evidence.clients[0].report
    assert report is not None
    assert report["counters"]["arp_solicits"] > 0


def test_without_the_series_the_same_host_deadlocks() -> None:
    plan = small_plan(UdpFlood(pps=30_000, size=1000), gso=False, bystanders=DEMO_BYSTANDERS, memory="64M")
    record = run_plan(plan, ALL_OFF)
    verdict = judge(record.evidence)
    assert verdict.outcome == "deadlock", [check.evidence for check in verdict.checks]
    stall, started = record.evidence.clients[0].stall, record.evidence.workload_started
    assert stall is not None
    assert started is not None
    assert 0 <= stall.last_moved.time - started < record.elapsed_s
    evidence = next(check.evidence for check in verdict.checks if check.name == "progress")
    for sign in ("pswpout", "nr_writeback", "allocstall", "RX refill failures"):
        assert sign in evidence


def test_a_blinded_observer_turns_the_verdict_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the drops from the ledger: frames came in that ended nowhere."""
    tally = Ledger.tally

    def blind(self: Ledger, counts: dict[tuple[int, str, bool], int]) -> None:
        tally(self, {key: count for key, count in counts.items() if key[0] != DropReason.PFMEMALLOC})

    monkeypatch.setattr(Ledger, "tally", blind)
    plan = small_plan(UdpFlood(pps=30_000, size=1000), gso=False, bystanders=DEMO_BYSTANDERS)
    record = run_plan(plan)
    verdict = judge(record.evidence)
    assert verdict.outcome == "fail"
    assert checks_of(record)["conservation"].ok is False


@pytest.mark.parametrize(
    "flood",
    [TcpSynFlood, IcmpFlood, ArpFlood, EtherTypeFlood, Ipv6UdpFlood, VlanUdpFlood],
    ids=lambda flood: flood.kind,
)
def test_every_kind_of_flood_is_accounted_for(flood: type[Flood]) -> None:
    record = run_plan(small_plan(flood(pps=2_000, size=200)))
    checks = checks_of(record)
    for name in ("canary before", "swap is spared", "progress", "integrity", "conservation", "canary after"):
        assert checks[name].ok, f"{name}: {checks[name].evidence}"
    assert record.flood_sent > 0


@pytest.mark.parametrize(
    "program", [pytest.param(name, marks=pytest.mark.program(name)) for name in ("nbdkit", "nbd-server", "qemu-nbd")]
)
def test_third_party_servers(program: str) -> None:
    record = run_plan(small_plan(program=program))
    assert failed(record) == []
