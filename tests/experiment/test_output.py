"""The run directory: lines while it runs, a whole result at the end, nothing after a failed start."""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy
import pytest

from testbed.experiment.errors import CannotRun
from testbed.experiment.output import RunDirectory
from testbed.experiment.result import (
    Check,
    ClientResult,
    Result,
    client_result,
    decode,
    encode,
    total_frames,
    total_memory,
    total_swap,
)
from testbed.hosts.messages import Event, Sample
from testbed.lab.errors import LabError
from tests.experiment.witness import report

KEYS = set(re.findall(r"\w+", "outcome checks patches seed elapsed_s counters frames swap flood memory arguments"))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_can_be_read_while_it_runs(tmp_path: Path) -> None:
    with RunDirectory.create("x", tmp_path / "run") as run:
        run.event(Event("client", 1.5, "swapping", {"free": numpy.int64(7)}))
        run.sample(Sample("client", 1.6, {"pswpout": 3}))
        run.ledger("client", [{"reason": "PFMEMALLOC", "frames": 2}, {"reason": "DELIVERED", "frames": 5}])
        assert lines(run.file("events.jsonl")) == [
            {"time": 1.5, "host": "client", "name": "swapping", "fields": {"free": 7}}
        ]
        assert lines(run.file("counters.jsonl")) == [{"time": 1.6, "host": "client", "counters": {"pswpout": 3}}]
        assert [row["frames"] for row in lines(run.file("ledger.jsonl"))] == [2, 5]


def test_a_result_comes_back_as_it_went(tmp_path: Path) -> None:
    result = Result(outcome="pass", checks=[Check("canary before", True, "20 of 20")], patches=[1, 2], seed=9)
    with RunDirectory.create("x", tmp_path / "run") as run:
        path = run.finish(result)
    assert decode(path.read_bytes()) == result
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "counters.jsonl",
        "events.jsonl",
        "ledger.jsonl",
        "result.json",
    ]


def test_the_keys_scripts_rely_on() -> None:
    told = json.loads(encode(Result(outcome="fail", clients=[client_result("client", report())])))
    assert set(told) >= KEYS
    wanted = {
        "frames": "received delivered dropped unrelated_pfmemalloc unrelated_pfmemalloc_delivered swap_socket_filtered",
        "swap": "pages_in pages_out corrupt max_gap_s mib_per_s",
        "flood": "sent pps",
        "memory": "min low high reserve_min_free",
    }
    for key, names in wanted.items():
        assert set(names.split()) <= set(told[key])
    with pytest.raises(msgspec.MsgspecError):
        decode(b'{"outcome": "splendid"}')


def test_sums_over_clients() -> None:
    one, two = client_result("one", report()), client_result("two", report())
    two.memory.reserve_min_free, two.swap.max_gap_s = 12, 3.5
    both: list[ClientResult] = [one, two]
    frames = total_frames(both)
    assert (frames.received, frames.dropped["PFMEMALLOC"]) == (60000, 1400)
    assert frames.received == frames.delivered + sum(frames.dropped.values()) + frames.pending
    assert (total_swap(both).pages_out, total_swap(both).max_gap_s) == (24000, 3.5)
    assert (total_memory(both).min, total_memory(both).reserve_min_free) == (512, 12)
    assert one.frames.dropped["PFMEMALLOC"] == 700, "a sum must not change what it adds up"


def test_what_became_of_the_connection_is_added_up_too() -> None:
    told = report()
    told["swap"] |= {"nbd_reconnects": 2, "sigbus": 1, "swap_read_errors": 8, "connection_lost": "gone"}
    told["swap"]["lost_pages"] = {"count": 1, "pages": [{"slot": 7, "task": "touch0", "page": 3}]}
    told["workload"]["killed"] = {"touch0": "SIGBUS"}
    total = total_swap([client_result("one", told), client_result("two", told)])
    assert (total.nbd_reconnects, total.sigbus, total.swap_read_errors, total.connection_lost) == (4, 2, 16, "gone")
    assert (total.lost_pages.count, [page.slot for page in total.lost_pages.pages]) == (2, [7, 7])


def test_a_report_with_holes_still_gives_a_result() -> None:
    assert client_result("client", {}).swap.pages_out == 0


def test_without_a_name_it_goes_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunDirectory.create("swap_flood") as run:
        assert run.path.parent == tmp_path / "runs"
        assert run.path.name.startswith("swap_flood-")
        assert run.path.name.endswith(f"-{os.getpid()}")


@pytest.mark.parametrize("error", [CannotRun("x"), LabError("x")])
def test_a_run_that_could_not_start_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), RunDirectory.create("x", tmp_path / "a" / "b"):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full() -> Iterator[None]:
    """Files cannot grow beyond 8 bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path: Path, full: None) -> None:
    with pytest.raises(CannotRun, match="run: File too large"), RunDirectory.create(
        "x", tmp_path / "run"
    ) as run:
        run.sample(Sample("client", 1.0, {"pswpout": 1}))
    with pytest.raises(CannotRun, match="File too large"), RunDirectory.create("x", tmp_path / "run") as run:
        run.finish(Result(outcome="pass"))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(CannotRun, match="x"), RunDirectory.create("x", tmp_path):
        raise CannotRun("x")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_run_that_was_interrupted_keeps_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunDirectory.create("x", tmp_path / "run"):
        raise KeyboardInterrupt
    assert (tmp_path / "run" / "events.jsonl").exists()


def test_another_run_is_never_overwritten(tmp_path: Path) -> None:
    with RunDirectory.create("x", tmp_path / "run"):
        pass
    with pytest.raises(CannotRun, match="holds a run already"):
        RunDirectory.create("x", tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotRun, match="cannot write to"):
        RunDirectory.create("x", tmp_path / "file")


def test_under_sudo_it_belongs_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, tuple[int, int]] = {}
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "567")
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, follow_symlinks: given.update({path.name: (uid, gid)}))
    with RunDirectory.create("x", tmp_path / "new" / "run") as run:
        run.finish(Result(outcome="pass"))
    assert set(given) == {"new", "run", "events.jsonl", "counters.jsonl", "ledger.jsonl", "result.json"}
    assert set(given.values()) == {(1234, 567)}
