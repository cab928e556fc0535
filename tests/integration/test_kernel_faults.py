"""Faults of a client that is a real kernel: of its links, its server, its process and its memory."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.result import FaultResult, Result
from tests.integration.test_faults import run

MIB = 1 << 20
pytestmark = [pytest.mark.root, pytest.mark.program("gcc", "linux.uml"), pytest.mark.timeout(240)]

PAUSE, SQUEEZE, AFTER = (0.4, 1.6), (2.0, 4.0), (4.2, 5.2)
"""When the guest is paused, when its memory is squeezed, and for how long nothing happens to it afterwards."""


class Told:
    """What the run in `directory` said: faults by kind, and the client's counters between two moments of the run."""

    def __init__(self, result: Result, directory: Path) -> None:
        self.result = result
        self.faults: dict[str, FaultResult] = {fault.kind: fault for fault in result.faults}
        events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
        started = next(event["time"] for event in events if event["name"] == "workload_started")
        samples = [json.loads(line) for line in (directory / "counters.jsonl").read_text().splitlines()]
        self._samples = [(each["time"] - started, each["counters"]) for each in samples if each["host"] == "client"]

    def did(self, kind: str) -> dict[str, Any]:
        return self.faults[kind].did

    def during(self, name: str, begin: float, end: float) -> list[int]:
        return [counters[name] for time, counters in self._samples if begin <= time <= end]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """No flood, and a server so slow that every fault comes in the midst of it."""
    topology = Topology("kernel_faults")
    server = topology.add(NbdServer("server", bandwidth="16M"))
    settings: dict[str, Any] = {"memory": "40M", "nbd_timeout": 2, "nbd_dead_conn_timeout": 20}
    readers = [Bystander(port=7000, reader="prompt", count=1), Bystander(reader="faulting", count=1)]
    client = topology.add(SwapClient("client", swap=server, host="kernel", bystanders=readers, **settings))
    topology.connect(server, client, topology.add(Neighbour("noise")))
    topology.workload(client, LinearTouch(processes=4, total="56M"))
    process, memory, link = topology.process_of(client), topology.memory_of(client), topology.link_of(client)
    topology.at(PAUSE[0], process.pause(), until=PAUSE[1])
    topology.at(SQUEEZE[0], memory.min_free_kbytes(kbytes=2048), until=SQUEEZE[1])
    topology.at(SQUEEZE[0] + 0.5, memory.memory_taken(bytes=2 * MIB), until=SQUEEZE[1])
    topology.at(2.5, process.stop_reading(port=7000), until=4.0)
    topology.at(3.0, link.partition(), until=3.5)
    topology.at(5.3, link.loss(probability=0.05), until=5.9)
    topology.at(5.3, link.delay(seconds=0.002), until=5.9)
    topology.at(6.0, topology.storage_of(server).eio_write(every_nth=2), until=6.8)
    topology.at(7.0, topology.process_of(server).kill(), until=7.4)
    directory = tmp_path_factory.mktemp("faults") / "run"
    return Told(run(directory, topology), directory)


def test_every_fault_is_confirmed_and_the_guest_survives_all(told: Told) -> None:
    assert told.result.outcome == "pass", [each.evidence for each in told.result.checks if each.ok is False]
    assert [fault.kind for fault in told.result.faults if fault.set_at is None or fault.cleared_at is None] == []
    assert [fault.did for fault in told.result.faults if "failed" in fault.did] == []


def test_a_guest_that_is_paused_stops_as_a_whole(told: Told) -> None:
    assert told.did("pause")["seconds"] >= PAUSE[1] - PAUSE[0] - 0.1
    touches = told.during("touches", PAUSE[0] + 0.3, PAUSE[1] - 0.05)
    assert touches
    assert len(set(touches)) == 1
    assert max(told.during("silent_ms", *PAUSE)) > 500, "its sampler went on"
    assert told.during("touches", 0.0, 20.0)[-1] > touches[-1]


def test_the_reserve_is_another_while_the_fault_acts(told: Told) -> None:
    squeezed = statistics.median(told.during("nr_free_pages", SQUEEZE[0] + 0.5, SQUEEZE[1]))
    assert squeezed > statistics.median(told.during("nr_free_pages", *AFTER))


def test_a_balloon_takes_memory_and_gives_it_back(told: Told) -> None:
    assert 0 < told.did("memory_taken")["pages"] <= 2 * MIB // 4096


def test_one_reader_stops_and_links_lose_frames(told: Told) -> None:
    assert told.did("stop_reading") == {"sockets": 1}
    assert told.did("partition")["frames_lost"] > 0
    assert told.did("loss")["frames_lost"] > 0


def test_a_server_that_is_started_again_loses_no_page_and_write_errors_kill_nobody(told: Told) -> None:
    assert (told.result.workload.finished_tasks, told.result.workload.corrupt) == (4, 0)
    assert told.result.swap.nbd_reconnects >= 1
    assert told.did("eio_write")["requests_picked"] > 0
    assert told.did("kill")["new_pid"] != told.did("kill")["pid"]
