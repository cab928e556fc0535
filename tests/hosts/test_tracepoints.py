"""Traces: their text, their timeline, and that they tell what the counters tell."""

from __future__ import annotations

import io
import re
from collections import Counter
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
from testbed.mm.gfp import GFP_ATOMIC, GFP_KERNEL, GFP_MEMALLOC, GFP_NOFS, GFP_NOIO, GFP_NOWARN

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
    assert names["nbd_send_request"] == names["nbd_header_received"] + names["nbd_payload_received"] > 0
    dropped = Counter[str]()
    for _, _, name, fields in seen:
        if name == "kfree_skb":
            values = dict(each.split("=", 1) for each in fields.replace(":", " ").split() if "=" in each)
            dropped[values["reason"]] += int(values["skbs"])
    expected = {reason: count for reason, count in result.frames.dropped.items() if reason != "OTHERHOST"}
    assert dropped == expected
    assert [time for _, time, _, _ in seen] == sorted(time for _, time, _, _ in seen)


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
