"""A bridge with a virtual machine behind it on real frames: they never reach the client's own sockets, none is lost."""

from __future__ import annotations

import pytest

from testbed.experiment.coordinator import Limits
from testbed.experiment.topology import UdpFlood
from testbed.experiment.verdict import judge
from tests.integration.small_run import run_plan
from tests.simulation.test_virtual_machines import machine, plan

pytestmark = pytest.mark.root


def test_frames_for_a_machine_are_forwarded_and_every_one_has_its_end() -> None:
    record = run_plan(plan(UdpFlood(pps=5000), reader="faulting", tx_queue_len=20), limits=Limits(time=60, stall=10))
    verdict = judge(record.evidence)
    assert {check.name: check.ok for check in verdict.checks}["conservation"], verdict.checks
    found = machine(record)
    assert found["delivered"] == found["sent_out"] > found["read"] - 20
    assert found["read"] > 0
    (client,) = record.evidence.clients
    assert client.report is not None
    delivered = {row["socket"] for row in client.report["ledger"] if row["reason"] == "DELIVERED"}
    assert "vm:guest0" in delivered
