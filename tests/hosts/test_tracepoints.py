"""Traces: their text, their timeline, and that they tell what the counters tell."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from testbed.experiment.arguments import RunOptions, parse_run
from testbed.experiment.command import simulate_once
from testbed.experiment.live import NoView
from testbed.experiment.result import Result
from testbed.experiment.topology import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood
from testbed.hosts.ftrace import HEADER, Ftrace, show_gfp_flags
from testbed.hosts.timeline import Timeline
from testbed.hosts.tracepoints import Tracepoints
from testbed.mm.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_MEMALLOC, GFP_NOFS, GFP_NOIO, GFP_NOWARN
from testbed.mm.scan_control import ScanControl
from testbed.mm.sched import Task
from testbed.patches import PRESETS, Switches
from tests.mm.machine import Machine, machine_64m
from tests.virtual_time import simulate

LINE = re.compile(r" *(\S+)-\d+ +\[000\] ..[s.]. +(\d+\.\d{6}): (\w+): (.*)")


@pytest.mark.parametrize(
    ("gfp_mask", "shown"),
    [
        (GFP_KERNEL, "GFP_KERNEL"),
        (GFP_NOFS, "GFP_NOFS"),
        (GFP_NOIO | GFP_MEMALLOC, "GFP_NOIO|GFP_MEMALLOC"),
        (GFP_ATOMIC | GFP_NOWARN, "GFP_ATOMIC|GFP_NOWARN"),
        (0, "GFP_NOWAIT"),
    ],
)
def test_masks_are_shown_by_their_names(gfp_mask: int, shown: str) -> None:
    assert show_gfp_flags(gfp_mask) == shown


def test_a_line_has_the_columns_of_ftrace() -> None:
    text = io.StringIO()
    ftrace = Ftrace(text)
    ftrace.event(12.5, "kswapd0", False, "mm_vmscan_kswapd_wake", "nid=0 order=0")
    ftrace.event(12.75, "softirq", True, "mm_page_free", "pfn=0x1f order=0")
    lines = text.getvalue().removeprefix(HEADER).splitlines()
    assert [LINE.fullmatch(line) is not None for line in lines] == [True, True]
    assert lines[1].split() == ["softirq-2", "[000]", "..s.", "12.750000:", "mm_page_free:", "pfn=0x1f", "order=0"]


def test_two_hosts_share_no_track() -> None:
    file = io.BytesIO()
    for number in range(2):
        timeline = Timeline(file, f"client{number}", number)
        timeline.begin(1.0, "touch0", "direct reclaim", {"gfp_flags": "GFP_KERNEL"})
        timeline.end(1.5, "touch0", {"nr_reclaimed": 32})
        timeline.counter(2.0, "nr_free_pages", 7)
    trace = Trace()
    trace.ParseFromString(file.getvalue())
    described = [packet.track_descriptor for packet in trace.packet if packet.HasField("track_descriptor")]
    assert len({track.uuid for track in described}) == len(described) == 6
    slices = [packet for packet in trace.packet if packet.track_event.type == TrackEvent.TYPE_SLICE_END]
    assert [packet.timestamp for packet in slices] == [1_500_000_000] * 2


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A short simulated run under pressure, and its directory."""
    topology = Topology("traced")
    server = topology.add(NbdServer("server", bandwidth="32M"))
    client = topology.add(SwapClient("client", memory="16M", swap=server, ring=32))
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=4, total="24M", passes=1))
    topology.flood(noise, client, UdpFlood(pps=5_000))
    out = tmp_path_factory.mktemp("traced") / "run"
    options: RunOptions = parse_run(["--trace", "--seed", "1", "--out", str(out)], "traced.py")
    return simulate_once(topology, options, NoView()), out


def events(directory: Path) -> list[tuple[str, float, str, str]]:
    """(task, time, name, fields) of each event."""
    lines = (directory / "trace-client.txt").read_text().removeprefix(HEADER).splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found)
    return [(m[1], float(m[2]), m[3], m[4]) for m in found if m is not None]


def test_the_text_tells_what_the_counters_tell(traced: tuple[Result, Path]) -> None:
    result, directory = traced
    seen = events(directory)
    names = Counter(name for _, _, name, _ in seen)
    counters = result.counters
    assert names["mm_vmscan_direct_reclaim_begin"] == names["mm_vmscan_direct_reclaim_end"] > 0
    assert names["mm_vmscan_direct_reclaim_begin"] == counters["allocstall"]
    assert names["mm_vmscan_writepage"] == counters["nr_vmscan_write"] > 0
    assert names["mm_vmscan_wakeup_kswapd"] == counters["kswapd_wake"] > 0
    assert names["mm_vmscan_kswapd_wake"] > 0
    assert 0 < names["mm_vmscan_kswapd_sleep"] <= names["mm_vmscan_kswapd_wake"] + 1
    sent = [fields for _, _, name, fields in seen if name == "nbd_send_request"]
    assert len(set(sent)) == len(sent) > 0
    assert all(re.fullmatch(r"nbd0: request [0-9a-f]{16}", fields) for fields in sent)
    for name in ("nbd_header_sent", "nbd_payload_sent", "nbd_header_received", "nbd_payload_received"):
        told = [fields for _, _, other, fields in seen if other == name]
        assert all(re.fullmatch(r"nbd transport event: request ([0-9a-f]{16}), handle 0x\1", each) for each in told)
        assert len(set(told)) == len(told) == len(sent)
    dropped = Counter[str]()
    for _, _, name, fields in seen:
        if name == "kfree_skb":
            values = dict(each.split("=", 1) for each in fields.replace(":", " ").split() if "=" in each)
            dropped[values["reason"]] += int(values["skbs"])
    expected = {reason: count for reason, count in result.frames.dropped.items() if reason != "OTHERHOST"}
    assert dropped == expected
    assert [time for _, time, _, _ in seen] == sorted(time for _, time, _, _ in seen)


def test_every_page_that_tasks_write_for_the_first_time_is_seen_allocated(traced: tuple[Result, Path]) -> None:
    result, directory = traced
    allocated = [task for task, _, name, _ in events(directory) if name == "mm_page_alloc" and task.startswith("touch")]
    faulted_in = result.counters["pgfault"] - result.counters["pgmajfault"]
    assert len(allocated) >= faulted_in >= (24 << 20) // 4096


def attached(switches: Switches) -> tuple[Machine, Callable[[str], list[str]]]:
    """A traced machine, and what was said under a name."""
    text = io.StringIO()
    machine = machine_64m(switches)
    tracepoints = Tracepoints(Ftrace(text), Timeline(io.BytesIO(), "client", 0), lambda: 0.0, switches.rules)
    tracepoints._attach_page_alloc(machine.node)
    tracepoints._attach_vmscan(machine.node)
    tracepoints._attach_kswapd(machine.node)

    def said(name: str) -> list[str]:
        found = [LINE.fullmatch(line) for line in text.getvalue().removeprefix(HEADER).splitlines()]
        return [m[4] for m in found if m is not None and m[3] == name]

    return machine, said


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("waits", [False, True])
def test_a_block_is_allocated_and_freed_in_one_line_each(order: int, waits: bool) -> None:
    async def main() -> None:
        machine, said = attached(Switches())
        page_alloc = machine.node.page_alloc
        block = page_alloc.alloc_order_nowait(order, GFP_ATOMIC, Task("user"))
        if waits:
            block = await page_alloc.alloc_order(order, GFP_KERNEL, Task("user"))
        assert block is not None
        page_alloc.free_order(block)
        freed = f"pfn={block[0].pfn:#x} order={order}"
        assert said("mm_page_alloc")[waits].startswith(freed)
        assert said("mm_page_free") == [freed]

    simulate(main())


@pytest.mark.parametrize(("preset", "lines"), [("3.6", 0), ("6.1", 1)])
def test_who_waits_for_isolated_pages_says_so_from_5_16_on(preset: str, lines: int) -> None:
    async def main() -> None:
        machine, said = attached(Switches(rules=PRESETS[preset].rules))
        stall = machine.node.vmscan.stall
        for task in (Task("user"), Task("kworker", pf_kthread=True)):
            await stall.too_many_isolated(task, 0)
        expected = ["nid=0 usec_timeout=20000 usect_delayed=0 reason=VMSCAN_THROTTLE_ISOLATED"] * lines
        assert said("mm_vmscan_throttled") == expected

    simulate(main())


@pytest.mark.parametrize(
    ("preset", "begin", "wakeup", "write"),
    [
        ("3.6", "order=0 may_writepage=1 gfp_flags=GFP_KERNEL", "nid=0 zid=0 order=0", "mm_vmscan_writepage"),
        ("6.1", "order=0 gfp_flags=GFP_KERNEL", "nid=0 order=0", "mm_vmscan_write_folio"),
    ],
)
def test_a_tracepoint_has_the_name_and_the_fields_of_its_kernel(
    preset: str, begin: str, wakeup: str, write: str
) -> None:
    async def main() -> None:
        machine, said = attached(Switches(rules=PRESETS[preset].rules))
        machine.node.page_alloc.wakeup_kswapd(0)
        (page,) = machine.node.page_alloc.alloc_pages_nowait(1, GFP_KERNEL, Task("user"))
        sc = ScanControl(GFP_KERNEL, Task("user"), 1)
        machine.node.vmscan._pageout(page, sc)
        await machine.node.vmscan._do_try_to_free_pages(sc)
        assert said("mm_vmscan_direct_reclaim_begin") == [begin]
        assert said("mm_vmscan_wakeup_kswapd")[0] == wakeup
        assert said(write) == [f"pfn={page.pfn:#x} flags=RECLAIM_WB_ANON|RECLAIM_WB_ASYNC"]

    simulate(main())


def test_every_slice_of_the_timeline_ends(traced: tuple[Result, Path]) -> None:
    _, directory = traced
    trace = Trace()
    trace.ParseFromString((directory / "trace-client.perfetto-trace").read_bytes())
    depth = Counter[int]()
    kinds = Counter[int]()
    known = {packet.track_descriptor.uuid for packet in trace.packet if packet.HasField("track_descriptor")}
    for packet in trace.packet:
        if packet.HasField("track_event"):
            event = packet.track_event
            assert event.track_uuid in known
            kinds[event.type] += 1
            depth[event.track_uuid] += event.type == TrackEvent.TYPE_SLICE_BEGIN
            depth[event.track_uuid] -= event.type == TrackEvent.TYPE_SLICE_END
            assert depth[event.track_uuid] >= 0
    assert kinds[TrackEvent.TYPE_SLICE_BEGIN] == kinds[TrackEvent.TYPE_SLICE_END] > 0
    assert kinds[TrackEvent.TYPE_COUNTER] > 0


def test_a_run_that_is_not_traced_leaves_no_trace_files(tmp_path: Path, traced: tuple[Result, Path]) -> None:
    assert {path.name for path in traced[1].iterdir()} >= {"trace-client.txt", "trace-client.perfetto-trace"}
    assert not parse_run(["--out", str(tmp_path)], "traced.py").trace
