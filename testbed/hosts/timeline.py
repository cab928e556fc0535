"""A trace as a timeline for ui.perfetto.dev: a track for each task, slices for what lasts, counters beside them.

The file is a sequence of Perfetto trace packets; those of several hosts may simply be joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackDescriptor, TrackEvent
from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

TRACKS_OF_A_HOST = 1 << 20
"""Track numbers of one host; the hosts of a run must not share any."""


class Timeline:
    """The tracks of one host, written to `file` as they grow.

    Args:
        host: its name.
        number: the host's place among the hosts of the run, from 0.
    """

    def __init__(self, file: IO[bytes], host: str, number: int) -> None:
        self._builder = StreamingTraceProtoBuilder(file)
        self._sequence = number + 1
        self._host = number * TRACKS_OF_A_HOST + 1
        self._tracks: dict[tuple[str, bool], int] = {}
        self._describe(self._host, host, None, counter=False)

    def instant(self, time: float, task: str, name: str, fields: Mapping[str, object]) -> None:
        """Something that happened at `time`, in seconds."""
        self._event(time, self._track(task), TrackEvent.TYPE_INSTANT, name, fields)

    def begin(self, time: float, task: str, name: str, fields: Mapping[str, object]) -> None:
        """Something began; what one task began last ends first."""
        self._event(time, self._track(task), TrackEvent.TYPE_SLICE_BEGIN, name, fields)

    def end(self, time: float, task: str, fields: Mapping[str, object]) -> None:
        """The end of what `task` began last."""
        self._event(time, self._track(task), TrackEvent.TYPE_SLICE_END, "", fields)

    def counter(self, time: float, name: str, value: int) -> None:
        """The value of a counter or gauge from `time` on."""
        packet = self._packet(time)
        packet.track_event.type = TrackEvent.TYPE_COUNTER
        packet.track_event.track_uuid = self._track(name, counter=True)
        packet.track_event.counter_value = value
        self._builder.write_packet(packet)

    def _event(self, time: float, track: int, kind: int, name: str, fields: Mapping[str, object]) -> None:
        packet = self._packet(time)
        event = packet.track_event
        event.type, event.track_uuid = kind, track
        if name:
            event.name = name
        for key, value in fields.items():
            note = event.debug_annotations.add()
            note.name = key
            if isinstance(value, int):
                note.int_value = value
            else:
                note.string_value = str(value)
        self._builder.write_packet(packet)

    def _track(self, name: str, *, counter: bool = False) -> int:
        track = self._tracks.get((name, counter))
        if track is None:
            track = self._tracks[name, counter] = self._host + 1 + len(self._tracks)
            self._describe(track, name, self._host, counter=counter)
        return track

    def _describe(self, track: int, name: str, parent: int | None, *, counter: bool) -> None:
        packet = self._builder.create_packet()
        descriptor = packet.track_descriptor
        descriptor.uuid, descriptor.name = track, name
        if parent is None:
            descriptor.child_ordering = TrackDescriptor.LEXICOGRAPHIC
        else:
            descriptor.parent_uuid = parent
        if counter:
            descriptor.counter.SetInParent()
        self._builder.write_packet(packet)

    def _packet(self, time: float) -> Any:
        packet = self._builder.create_packet()
        packet.timestamp = round(time * 1e9)
        packet.trusted_packet_sequence_id = self._sequence
        return packet
