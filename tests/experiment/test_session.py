"""From plan to result with a rig that plays a script: what is written, what is shown, what an error leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed import Bystander, UdpFlood
from testbed.experiment import session
from testbed.experiment.arguments import RunOptions, parse_run
from testbed.experiment.coordinator import RunRecord
from testbed.experiment.evidence import RunEvidence
from testbed.experiment.limits import limits_reached
from testbed.experiment.plan import Overrides, Plan, resolve
from testbed.experiment.result import decode
from testbed.hosts.messages import Event, Sample
from testbed.lab.errors import LabError
from tests.experiment import witness
from tests.experiment.small import build


@pytest.fixture
def plan() -> Plan:
    return resolve(build(flood=UdpFlood()))


def test_a_patch_without_its_base_is_named_in_the_warnings(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig(monkeypatch, STARTED)
    forced = session.run(plan, options(tmp_path / "forced", "--without", "15", "--force"))
    assert [line for line in forced.warnings if line not in plan.warnings] == [
        "patch 16 is on without patch 15, which it builds on: nobody is throttled, so there is nothing to count"
    ]
    whole = session.run(plan, options(tmp_path / "whole", "--without", "15,16"))
    assert whole.warnings == list(plan.warnings)


def test_what_the_tasks_did_and_when_they_stopped(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig(monkeypatch, STARTED)
    fine = session.run(plan, options(tmp_path / "fine"))
    assert (fine.workload.tasks, fine.workload.finished_tasks, fine.stalled_after_s) == (16, 16, None)
    assert (fine.witnesses["4"].opportunity, fine.witnesses["4"].witness) == (5, 5)
    stalled = witness.run(witness.client(stall=witness.stall()), workload_started=4.0)
    rig(monkeypatch, STARTED, evidence=stalled)
    assert session.run(plan, options(tmp_path / "stalled")).stalled_after_s == 6.0


def options(out: Path, *words: str) -> RunOptions:
    return parse_run([*words, "--out", str(out), "--seed", "3"], "swap_flood.py")


def rig(
    monkeypatch: pytest.MonkeyPatch, *play: Event | Sample | Exception, evidence: RunEvidence | None = None
) -> None:
    def execute(plan: Plan, patches: frozenset[int], seed: int, limits: Any, observer: Any) -> RunRecord:
        for word in play:
            if isinstance(word, Exception):
                raise word
            tell: Callable[[Any], None] = observer.event if isinstance(word, Event) else observer.sample
            tell(word)
        return RunRecord(evidence or witness.run(), 20000, 9876.0, 12.5)

    monkeypatch.setattr(session, "execute", execute)


STARTED = Event("runner", 1.0, "workload_started")


def test_a_run_that_passes(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig(monkeypatch, STARTED, Sample("client", 1.1, {"pswpout": 1}))
    result = session.run(plan, options(tmp_path / "run"))
    assert result.outcome == "pass"
    assert decode((tmp_path / "run" / "result.json").read_bytes()) == result
    assert (result.flood.sent, result.flood.pps, result.elapsed_s) == (20000, 9876.0, 12.5)
    assert (result.topology, result.seed, result.patches) == ("small", 3, list(range(1, 17)))
    assert result.counters["PFMemallocDrop"] == 700
    assert set(result.environment) == {"kernel", "python", "cpus"}
    ledger = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert sum(row["frames"] for row in ledger if row["reason"] == "PFMEMALLOC") == 700
    assert len((tmp_path / "run" / "counters.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "run" / "events.jsonl").read_text().splitlines()) == 1


def test_a_rig_that_does_not_start_leaves_nothing(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig(monkeypatch, Sample("client", 1.0, {}), LabError("server: port 10809 is in use"))
    with pytest.raises(LabError, match="port 10809"):
        session.run(plan, options(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_rig_that_breaks_down_gives_an_error_and_keeps_what_it_saw(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig(monkeypatch, STARTED, LabError("client: was ended by SIGKILL"))
    result = session.run(plan, options(tmp_path / "run"))
    assert (result.outcome, result.error) == ("error", "client: was ended by SIGKILL")
    assert {check.ok for check in result.checks} == {False}
    assert (tmp_path / "run" / "events.jsonl").read_text().count("workload_started") == 1


def limits(plan: Plan, *path: str, value: int, **changes: Any) -> list[str]:
    client = witness.client(report=witness.spoiled(*path, value=value))
    return limits_reached(plan, witness.run(client, **changes))


@pytest.mark.parametrize(
    ("lowest", "text"),
    [
        (0, "client: free memory went down to 0 pages: all of its memory was in use"),
        (96, "client: free memory went down to 96 pages: at or below 96, where GFP_ATOMIC requests fail"),
        (97, "client: free memory went down to 97 pages: at or below 128, where direct reclaimers are throttled"),
        (256, "client: free memory went down to 256 pages: at or below 256, where ordinary requests wait"),
        (320, "client: free memory went down to 320 pages: at or below 320, where kswapd starts"),
    ],
)
def test_how_far_down_memory_went(lowest: int, text: str, plan: Plan) -> None:
    assert text in limits(plan, "memory", "reserve_min_free", value=lowest)


def test_no_limit_where_memory_stayed_free(plan: Plan) -> None:
    assert not [line for line in limits(plan, "memory", "reserve_min_free", value=321) if "free memory" in line]


def test_limits_of_ring_buffers_and_time(plan: Plan) -> None:
    lines = limits(plan, "counters", "pgscan_direct_throttle", value=9, out_of_time=True)
    assert "client: 3 frames found no buffer in the receive ring" in lines
    assert "client: 297 datagrams found their socket's receive buffer full" in lines
    assert "client: 9 times a direct reclaimer was throttled" in lines
    assert "time limit: the run was ended after 120 s" in lines
    stalled = witness.client(stall=witness.stall())
    assert "client: stall limit: nothing moved for 5 s" in limits_reached(plan, witness.run(stalled))


def test_buffers_too_small_for_the_reserve_are_named(plan: Plan) -> None:
    bystanders = [Bystander(count=3), Bystander(reader="prompt", count=9)]
    small = resolve(build(client={"bystanders": bystanders}, flood=UdpFlood()), Overrides(bystander_buffer=64 << 10))
    assert any("hold 48 pages at most" in line for line in limits_reached(small, witness.run()))
    assert not any("hold" in line for line in limits_reached(plan, witness.run()))
    quiet = replace(witness.client(), flood_asked=False)
    assert not any("hold" in line for line in limits_reached(small, witness.run(quiet)))
