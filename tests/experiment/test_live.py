"""What people see while a run goes on, drawn into memory."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from testbed import UdpFlood
from testbed.experiment.arguments import parse_run
from testbed.experiment.board import Board, Track
from testbed.experiment.live import LiveView, PlainView, View, draw, memory_bar, output_stream, watch
from testbed.experiment.plan import Plan, resolve
from testbed.experiment.report import side_by_side
from testbed.experiment.result import Check, FloodTotals, Outcome, Result
from testbed.hosts.messages import Event, Sample
from tests.experiment.small import build


@pytest.fixture
def plan() -> Plan:
    return resolve(build(flood=UdpFlood()))


def sample(time: float, **counters: int) -> Sample:
    return Sample("client", time, {"nr_free_pages": 300, "tasks_waiting": 4, "nr_throttled": 2, **counters})


def play(view: View) -> None:
    """Three seconds of a run."""
    with view:
        view.event(Event("runner", 100.0, "workload_started"))
        for tick in range(31):
            view.sample(sample(100 + tick / 10, pswpout=200 * tick, nr_writeback=32, PFMemallocDrop=tick // 10))
            view.sample(Sample("noise", 100 + tick / 10, {"flood_sent": 1000 * tick}))
        view.event(Event("client", 103.0, "swapping", {"free": 300}))


def test_rates_are_over_a_window() -> None:
    track = Track()
    for tick in range(100):
        track.add(sample(tick / 10, pswpout=0 if tick < 50 else 100 * (tick - 50)))
    assert track.rate("pswpout") == pytest.approx(1000)
    assert track.value("pswpout") == 4900
    assert len(track.samples) < 25
    assert Track().rate("pswpout") == 0


def test_plain_lines_come_once_a_second_and_for_each_event(plan: Plan) -> None:
    out = io.StringIO()
    play(PlainView(plan, Console(file=out), "swap_flood, all 16 patches on"))
    lines = out.getvalue().splitlines()
    assert lines[0].endswith("swap_flood, all 16 patches on")
    assert lines[1].endswith("runner: workload started")
    status = [line for line in lines if "client: free" in line]
    assert [line.split("s ")[0].strip() for line in status] == ["0.0", "1.0", "2.0", "3.0"]
    assert "out 6000 (+2000/s)" in status[-1]
    assert "PFMemallocDrop 3" in status[-1]
    assert "waiting 4, throttled 2" in status[-1]
    assert "flood 29000 (+10000/s)" in status[-1]
    assert lines[-1].strip() == "3.0s client: swapping (free 300)"
    assert "\x1b" not in out.getvalue()


def test_the_picture_has_it_all(plan: Plan) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=50, color_system=None)
    play(LiveView(plan, console, "swap_flood"))
    text = out.getvalue()
    for part in (
        "swap_flood",
        "3.0 s   workload started",
        "300 free",
        "T 128  m 256  l 320  h 384",
        "out 6,000 (2,000/s)",
        "writeback 32",
    ):
        assert part in text
    for part in ("4 waiting, 2 throttled", "PFMemallocDrop 3", "10,000 a second", "client: swapping (free 300)"):
        assert part in text


def test_the_picture_before_anything_is_known(plan: Plan) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(draw(Board(plan), "title"))
    assert "setting up" in out.getvalue()


@pytest.mark.parametrize(("free", "style"), [(100, "red"), (200, "yellow"), (400, "green"), (99999, "green")])
def test_the_bar_shows_free_memory_against_the_marks(free: int, style: str, plan: Plan) -> None:
    board = Board(plan)
    board.sample(sample(0.0, nr_free_pages=free))
    bar = memory_bar(board.clients[0])
    assert bar.style == style
    picture = bar.plain.split("  ")[0]
    assert len(picture) == 40
    assert [letter for letter in picture if letter in "Tmlh"] == ["T", "m", "l", "h"]
    assert picture.count("█") == sum(
        1 for at, cell in enumerate(picture) if at < free * 40 // 576 and cell not in "Tmlh"
    )


def test_where_the_view_goes(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_stream(json=True) is sys.stderr
    assert output_stream(json=False) is sys.stdout
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert isinstance(watch(plan, parse_run([], "x.py")), PlainView)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(watch(plan, parse_run([], "x.py")), LiveView)


def test_two_results_side_by_side() -> None:
    def result(outcome: Outcome, patches: list[int], ok: bool) -> Result:
        checks = [Check("progress", ok, "16 of [16] tasks" if ok else "deadlock: nothing moved")]
        return Result(outcome=outcome, checks=checks, patches=patches, topology="t", flood=FloodTotals(5000, 1000.0))

    out = io.StringIO()
    console = Console(file=out, width=120)
    side_by_side(console, [result("pass", list(range(1, 17)), True), result("deadlock", [], False)])
    text = out.getvalue()
    for part in (
        "all 16 patches on",
        "all 16 patches off",
        "pass",
        "deadlock",
        "16 of [16] tasks",
        "FAIL",
        "5,000 frames",
    ):
        assert part in text
