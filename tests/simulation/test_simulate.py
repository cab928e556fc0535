"""The whole experiment on virtual time: the same seed is the same run, outcomes emerge, and the verdict can be red."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed import (
    ArpFlood,
    Bystander,
    EtherTypeFlood,
    IcmpFlood,
    Ipv6UdpFlood,
    LinearTouch,
    NbdServer,
    Neighbour,
    SwapClient,
    TcpSynFlood,
    Topology,
    UdpFlood,
    VlanUdpFlood,
    cli,
)
from testbed.experiment import simulate
from testbed.experiment.coordinator import Limits, RunRecord
from testbed.experiment.load import load_topology
from testbed.experiment.plan import Overrides, Plan, resolve
from testbed.experiment.topology import Flood, Traffic
from testbed.experiment.verdict import judge
from testbed.hosts.ledger import Ledger
from testbed.lab.errors import LabError
from testbed.net.drop_reason import DropReason
from testbed.patches import DEFAULT_PRESET, PATCHES
from tests.integration.small_run import Silent

ALL = frozenset(PATCHES)
LIMITS = Limits(time=120, stall=4)
SHORT = Limits(time=1, stall=4)
ROOT = Path(__file__).parents[2]


NEVER = Bystander(reader="never")
FAULTING = Bystander(reader="faulting", count=1)
PROMPT = Bystander(reader="prompt", count=1)
CORKED = Bystander(reader="corked", count=1)


def plan(
    *floods: Traffic,
    total: str = "20M",
    bystanders: Sequence[Bystander] = (NEVER, FAULTING, PROMPT),
    preset: str = DEFAULT_PRESET,
    **client_options: Any,
) -> Plan:
    """One client with 16 MiB of RAM."""
    topology = Topology("small")
    server = topology.add(NbdServer("server", bandwidth="16M"))
    client = topology.add(
        SwapClient("client", memory="16M", ring=64, swap=server, bystanders=list(bystanders), **client_options)
    )
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=8, total=total))
    for flood in floods:
        topology.flood(noise, client, flood)
    return resolve(topology, Overrides(preset=preset))


FLOOD = UdpFlood(pps=20_000, size=1000)


def run(what: Plan, patches: frozenset[int] = ALL, seed: int = 1, limits: Limits = LIMITS) -> RunRecord:
    return simulate.execute(what, patches, seed, limits, Silent())


def report(record: RunRecord) -> dict[str, Any]:
    (client,) = record.evidence.clients
    assert client.report is not None
    return dict(client.report)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    first, again, other = (msgspec.json.encode(run(plan(FLOOD), seed=seed, limits=SHORT)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("seed", "gso"), [(1, False), (2, False), (3, True)])
def test_the_series_survives_the_flood(seed: int, gso: bool) -> None:
    verdict = judge(run(plan(FLOOD, gso=gso), seed=seed).evidence)
    assert verdict.outcome == "pass", [check for check in verdict.checks if not check.ok]


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_without_the_series_the_machine_hangs_and_stays_hung(seed: int) -> None:
    topology, _ = load_topology(ROOT / "topologies" / "swap_flood.py")
    record = run(resolve(topology, Overrides(preset="vanilla")), frozenset(), seed)
    assert judge(record.evidence).outcome == "deadlock"


def test_without_the_series_buffers_too_small_to_hold_the_reserve_mostly_let_it_finish() -> None:
    """Mostly: a sender that is no PF_MEMALLOC task may still lose the last page to another task, flood or not."""
    topology, _ = load_topology(ROOT / "topologies" / "swap_flood.py")
    half = Overrides(preset="vanilla", memory=32 << 20, workload_total=64 << 20)
    small = replace(half, bystander_buffer=16 << 10)

    def finished(overrides: Overrides) -> int:
        runs = [report(run(resolve(topology, overrides), frozenset(), seed)) for seed in range(1, 4)]
        assert all(each["workload"]["corrupt"] == 0 for each in runs)
        return sum(each["workload"]["finished_tasks"] == each["workload"]["tasks"] for each in runs)

    assert finished(half) == 0
    assert finished(small) >= 2


def test_without_a_flood_nothing_is_dropped() -> None:
    record = run(plan())
    assert judge(record.evidence).outcome == "pass"
    assert report(record)["frames"]["dropped"] == {}
    times = report(record)["times"]
    assert 0 < times["elapsed_s"] < record.elapsed_s
    assert (times["user_s"], times["system_s"]) == (None, None)


@pytest.mark.parametrize(
    ("flood", "ends"),
    [
        (IcmpFlood(pps=2000), {"icmp"}),
        (ArpFlood(pps=2000, size=64), {"arp"}),
        (TcpSynFlood(pps=2000, size=64), {"tcp"}),
        (Ipv6UdpFlood(pps=2000), {"ipv6"}),
        (VlanUdpFlood(pps=2000), {"other host"}),
        (EtherTypeFlood(pps=2000), {"ethertype 0x8137"}),
        (UdpFlood(pps=2000, sockets=8), {"udp (no socket)", "never:20000", "faulting:20003", "prompt:20004"}),
    ],
)
def test_every_kind_of_flood_ends_in_the_ledger_under_its_name(flood: Flood, ends: set[str]) -> None:
    record = run(plan(flood))
    seen = {row["socket"] for row in report(record)["ledger"]}
    assert ends <= seen
    conservation = next(check for check in judge(record.evidence).checks if check.name == "conservation")
    assert conservation.ok, conservation.evidence


def test_a_blinded_observer_turns_the_verdict_red(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Ledger.tally

    def blind(ledger: Ledger, counts: dict[tuple[int, str, bool], int]) -> None:
        tally(ledger, {key: count for key, count in counts.items() if key[0] != DropReason.PFMEMALLOC})

    monkeypatch.setattr(Ledger, "tally", blind)
    verdict = judge(run(plan(FLOOD)).evidence)
    assert verdict.outcome == "fail"
    assert {check.name for check in verdict.checks if check.ok is False} >= {"drops happen", "conservation"}


def test_reduced_pages_give_the_same_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = report(run(plan(FLOOD), limits=SHORT))
    monkeypatch.setattr(simulate, "WHOLE_PAGES_UP_TO", 0)
    reduced = report(run(plan(FLOOD), limits=SHORT))
    assert reduced == whole


def test_the_time_limit_bounds_virtual_time() -> None:
    record = run(plan(FLOOD), limits=Limits(time=0.5, stall=4))
    assert record.evidence.out_of_time
    assert record.elapsed_s < 10
    assert judge(record.evidence).outcome == "fail"


def test_frames_that_waited_in_a_backlog_are_accounted_for() -> None:
    """Without patch 12 one in the reserve stops no machine when the socket is free again."""
    record = run(plan(FLOOD, bystanders=[CORKED]), ALL - {12})
    checks = {check.name: check for check in judge(record.evidence).checks}
    assert checks["conservation"].ok, checks["conservation"].evidence
    assert max(sample.counters["backlog_skbs"] for sample in record.evidence.clients[0].samples) > 0
    assert report(record)["panic"] is None


def test_datagrams_of_6_1_wait_in_no_backlog() -> None:
    record = run(plan(FLOOD, bystanders=[CORKED], preset="6.1"))
    checks = {check.name: check.ok for check in judge(record.evidence).checks}
    assert (checks["progress"], checks["conservation"], report(record)["panic"]) == (True, True, None)
    assert max(sample.counters["backlog_skbs"] for sample in record.evidence.clients[0].samples) == 0


def test_a_reserve_skb_in_a_backlog_stops_a_machine_of_2012() -> None:
    record = run(plan(FLOOD, bystanders=[CORKED]))
    checks = {check.name: check.ok for check in judge(record.evidence).checks}
    assert "BUG_ON" in report(record)["panic"]
    assert (checks["progress"], checks["conservation"]) == (False, True)


def test_what_is_not_simulated_is_refused() -> None:
    with pytest.raises(LabError, match="a real kernel cannot be simulated"):
        run(plan(host="kernel"))


def test_the_command_writes_what_a_run_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = ROOT / "topologies" / "swap_flood.py"
    words = ["simulate", str(script), "--vanilla", "--expect", "deadlock", "--stall-limit", "3", "--seed", "4"]
    results = []
    for out in ("one", "two"):
        assert cli.main([*words, "--json", "--out", str(tmp_path / out)]) == 0
        printed = json.loads(capfd.readouterr().out)
        assert printed == json.loads((tmp_path / out / "result.json").read_text())
        for key in ("wall_s", "directory", "arguments"):
            del printed[key]
        results.append(printed)
    assert results[0] == results[1]
    assert (results[0]["simulated"], results[0]["outcome"]) == (True, "deadlock")
    for stream in ("events.jsonl", "counters.jsonl", "ledger.jsonl"):
        assert (tmp_path / "one" / stream).read_bytes() == (tmp_path / "two" / stream).read_bytes() != b""
