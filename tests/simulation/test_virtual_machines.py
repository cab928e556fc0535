"""Virtual machines behind a client's bridge, on virtual time: what is forwarded, what it holds, its account."""

from __future__ import annotations

from typing import Any

import pytest

from testbed import (
    EtherTypeFlood,
    IcmpFlood,
    LinearTouch,
    NbdServer,
    Neighbour,
    SwapClient,
    Topology,
    UdpFlood,
    VirtualMachine,
    VlanUdpFlood,
)
from testbed.experiment.coordinator import RunRecord
from testbed.experiment.plan import Plan, resolve
from testbed.experiment.topology import Flood
from testbed.experiment.verdict import judge
from testbed.hosts.plan import EmulatorReader
from testbed.net.drop_reason import DropReason
from tests.simulation.test_simulate import PROMPT, report, run


def plan(
    flood: Flood, reader: EmulatorReader = "prompt", machines: int = 1, tx_queue_len: int = 500, total: str = "20M"
) -> Plan:
    """One client with 16 MiB of RAM, each of whose machines is flooded."""
    topology = Topology("machines")
    server = topology.add(NbdServer("server", bandwidth="16M"))
    guests = [VirtualMachine(f"guest{number}", reader, tx_queue_len) for number in range(machines)]
    client = topology.add(
        SwapClient("client", server, memory="16M", ring=64, bystanders=[PROMPT], virtual_machines=guests)
    )
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=8, total=total))
    for guest in guests:
        topology.flood(noise, guest, flood)
    return resolve(topology)


def machine(record: RunRecord, name: str = "vm:guest0") -> dict[str, Any]:
    found: dict[str, Any] = report(record)["virtual_machines"][name]
    return found


def conservation(record: RunRecord) -> tuple[bool | None, str]:
    check = next(check for check in judge(record.evidence).checks if check.name == "conservation")
    return check.ok, check.evidence


@pytest.mark.parametrize(
    "flood", [UdpFlood(pps=2000), IcmpFlood(pps=2000), VlanUdpFlood(pps=2000), EtherTypeFlood(pps=2000)]
)
def test_whatever_is_for_a_machine_is_forwarded_to_it_and_accounted_for(flood: Flood) -> None:
    record = run(plan(flood))
    ok, evidence = conservation(record)
    assert ok, evidence
    found = machine(record)
    assert found["delivered"] == found["sent_out"] == found["read"] > 0
    assert found["dropped"] == 0
    assert report(record)["pages_leaked"] == 0


def test_a_stopped_machine_keeps_what_fits_into_its_interface() -> None:
    record = run(plan(UdpFlood(pps=2000), reader="never", tx_queue_len=50))
    ok, evidence = conservation(record)
    assert ok, evidence
    found = machine(record)
    assert (found["sent_out"], found["read"]) == (50, 0)
    assert found["dropped"] == report(record)["frames"]["dropped"][DropReason.FULL_RING.name] > 0


@pytest.mark.parametrize(("machines", "outcome"), [(1, True), (8, False)])
def test_the_series_does_not_help_once_frames_for_machines_may_hold_all_of_the_reserve(
    machines: int, outcome: bool
) -> None:
    """One machine's interface holds 10 frames, eight hold 500 each: more pages than there are below min."""
    flood = UdpFlood(pps=20_000 // machines, size=1000)
    record = run(plan(flood, reader="faulting", machines=machines, tx_queue_len=10 if outcome else 500))
    progress = next(check for check in judge(record.evidence).checks if check.name == "progress")
    assert progress.ok == outcome, progress.evidence
    ok, evidence = conservation(record)
    assert ok, evidence


def test_what_a_machine_was_sent_and_its_interface_never_took_is_a_complaint() -> None:
    record = run(plan(UdpFlood(pps=2000)))
    machine(record)["sent_out"] -= 1
    ok, evidence = conservation(record)
    assert not ok
    assert "vm:guest0" in evidence
