"""Schedules on real sockets: processes that are stopped and killed, links that are cut, memory that is taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.experiment.arguments import RunOptions, parse_run
from testbed.experiment.command import run_once
from testbed.experiment.live import NoView
from testbed.experiment.result import Result
from testbed.experiment.topology import Topology
from tests.experiment.faults.faulty import MIB, faulty
from tests.integration.small_run import network_namespaces
from tests.integration.test_no_trace import children

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

STALL_LIMIT = "3"


def options(out: Path, *words: str) -> RunOptions:
    return parse_run(["--time-limit", "90", "--stall-limit", STALL_LIMIT, "--out", str(out), *words], "faulty.py")


def run(out: Path, topology: Topology, *words: str) -> Result:
    namespaces, family = network_namespaces([os.getpid()]), set(children(os.getpid()))
    result = run_once(topology, options(out, "--seed", "3", *words), NoView())
    assert set(children(os.getpid())) == family
    assert network_namespaces([os.getpid()]) == namespaces
    return result


def checks(result: Result) -> dict[str, bool | None]:
    return {check.name: check.ok for check in result.checks}


def slow(declare: Callable[..., Any]) -> Topology:
    """A server so slow that the workload is still under way when the faults come."""
    return faulty(declare, server={"bandwidth": "12M"})


def test_a_host_that_is_paused_for_longer_than_the_stall_limit_goes_on(tmp_path: Path) -> None:
    def declare(topology: Any, server: Any, client: Any, noise: Any) -> None:
        topology.at(0.3, topology.process_of(server).pause(), until=3.8)
        topology.at(4.0, topology.process_of(client).pause(), until=7.5)
        topology.at(7.6, topology.process_of(noise).pause(), until=7.8)

    result = run(tmp_path / "run", slow(declare))
    assert [fault.cleared_at is not None for fault in result.faults] == [True] * 3
    assert result.swap.max_gap_s > float(STALL_LIMIT)
    progress = next(check for check in result.checks if check.name == "progress")
    assert progress.ok, progress.evidence
    assert "server was paused from 0.3 to 3.8 s" in progress.evidence
    for fault, seconds in zip(result.faults, (3.5, 3.5, 0.2), strict=True):
        assert fault.did["pid"] > 0
        assert seconds * 0.9 < fault.did["seconds"] < seconds + 1.5
    assert checks(result)["conservation"]
    assert checks(result)["canary after"]


def test_a_link_that_is_cut_and_memory_that_is_taken(tmp_path: Path) -> None:
    def declare(topology: Any, server: Any, client: Any, noise: Any) -> None:
        topology.at(0.5, topology.link_of(client).partition(), until=1.5)
        topology.at(0.0, topology.memory_of(client).memory_taken(bytes=2 * MIB), until=3.5)
        topology.at(2.5, topology.memory_of(client).min_free_kbytes(kbytes=1024), until=3.5)
        topology.at(3.0, topology.process_of(client).stop_reading())

    result = run(tmp_path / "run", slow(declare))
    by_kind = {fault.kind: fault.did for fault in result.faults}
    assert by_kind["partition"]["frames_lost"] > 0
    assert 0 < by_kind["memory_taken"]["pages"] <= 2 * MIB // 4096
    assert result.workload.corrupt == 0
    assert checks(result)["conservation"]


def test_the_log_says_what_storage_faults_did_and_which_process_came_back(tmp_path: Path) -> None:
    def declare(topology: Any, server: Any, client: Any, noise: Any) -> None:
        topology.at(0.3, topology.storage_of(server).slow(seconds=0.001, probability=0.5), until=1.5)
        topology.at(1.6, topology.storage_of(server).slow(seconds=0.001, every_nth=2), until=2.1)
        topology.at(2.0, topology.process_of(server).kill(), until=2.2)
        topology.at(3.0, topology.storage_of(server).slow(seconds=0.001, every_nth=3))

    result = run(tmp_path / "run", faulty(declare, server={"bandwidth": "12M"}, nbd_dead_conn_timeout=20.0))
    ended, orphaned, killed, lasting = (fault.did for fault in result.faults)
    assert 0 < ended["requests_picked"] < ended["requests_seen"]
    assert orphaned["requests_seen"] // 2 == orphaned["requests_picked"] > 0
    assert killed["new_pid"] != killed["pid"]
    assert 0.1 < killed["seconds"] < 5
    assert lasting["requests_seen"] // 3 == lasting["requests_picked"] > 0
    log = (tmp_path / "run" / "events.jsonl").read_text()
    assert log.count('"requests_picked"') == 3
    assert log.count('"new_pid"') == 1


def test_a_flood_that_is_killed_is_accounted_for(tmp_path: Path) -> None:
    result = run(tmp_path / "run", slow(lambda t, s, c, n: t.at(0.5, t.process_of(n).kill())))
    assert result.outcome != "error"
    assert 0 < result.flood.sent < 5_000
    assert checks(result)["conservation"]
    assert checks(result)["swap is spared"]


def test_a_replay_has_the_same_steps(tmp_path: Path) -> None:
    wishes = ("--nemesis", "link,memory", "--nemesis-duration", "3")
    first = run(tmp_path / "first", slow(lambda *_: None), *wishes)
    again = run(tmp_path / "again", slow(lambda *_: None), "--schedule", str(tmp_path / "first"), "--seed", "4")
    assert first.outcome != "error"
    assert first.schedule
    assert again.schedule == first.schedule
    came = [[fault.number for fault in result.faults if fault.set_at is not None] for result in (first, again)]
    assert came[0] == came[1]
