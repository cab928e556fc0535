"""What a live view shows, worked out from samples and events: the latest numbers of each host, and rates.

Pure: it is told what happened and is asked for numbers, whoever draws them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from testbed.experiment.plan import Plan
from testbed.hosts.messages import Event, Sample
from testbed.hosts.plan import ClientPlan

RATE_WINDOW_S = 2.0
RUNNER = "runner"
"""The host of events that are about the run as a whole."""
DROP_COUNTERS = ("PFMemallocDrop", "rx_missed", "rx_dropped", "RcvbufErrors")


@dataclass(slots=True)
class Track:
    """The samples of one host over the last seconds."""

    samples: deque[Sample] = field(default_factory=deque)

    def add(self, sample: Sample) -> None:
        """Remember a sample, and forget those older than the window for rates."""
        self.samples.append(sample)
        while len(self.samples) > 2 and sample.time - self.samples[1].time >= RATE_WINDOW_S:
            self.samples.popleft()

    def value(self, name: str) -> int:
        """The latest value of a counter; 0 before the first sample."""
        return self.samples[-1].counters.get(name, 0) if self.samples else 0

    def rate(self, name: str) -> float:
        """How fast a counter rises, per second."""
        if len(self.samples) < 2:
            return 0.0
        first, last = self.samples[0], self.samples[-1]
        change = last.counters.get(name, 0) - first.counters.get(name, 0)
        return change / (last.time - first.time) if last.time > first.time else 0.0


@dataclass(frozen=True, slots=True)
class ClientLine:
    """One client at this moment; memory in pages, rates per second."""

    name: str
    free: int
    throttle: int
    min: int
    low: int
    high: int
    swapped_out: int
    swapped_in: int
    out_rate: float
    in_rate: float
    writeback: int
    waiting: int
    throttled: int
    drops: tuple[tuple[str, int], ...]


class Board:
    """The state of a run, as far as people want to see it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.phase = "setting up"
        self.started: float | None = None
        self.now = 0.0
        self.events: deque[Event] = deque(maxlen=6)
        self._tracks: dict[str, Track] = {}

    def sample(self, sample: Sample) -> None:
        """Take in a sample of any host."""
        self._clock(sample.time)
        self._tracks.setdefault(sample.host, Track()).add(sample)

    def event(self, event: Event) -> None:
        """Take in an event."""
        self._clock(event.time)
        self.events.append(event)
        if event.host == RUNNER:
            self.phase = event.name.replace("_", " ")

    @property
    def elapsed(self) -> float:
        """Seconds since the first thing that was heard."""
        return self.now - self.started if self.started is not None else 0.0

    def since_start(self, time: float) -> float:
        """Seconds from the first thing that was heard to `time`."""
        return time - self.started if self.started is not None else 0.0

    @property
    def clients(self) -> list[ClientLine]:
        """All clients, in the order of the plan."""
        return [self.client(client) for client in self.plan.clients]

    def client(self, client: ClientPlan) -> ClientLine:
        """One client."""
        track, marks = self._tracks.get(client.name, Track()), client.watermarks
        return ClientLine(
            name=client.name,
            free=track.value("nr_free_pages"),
            throttle=marks.throttle,
            min=marks.min,
            low=marks.low,
            high=marks.high,
            swapped_out=track.value("pswpout"),
            swapped_in=track.value("pswpin"),
            out_rate=track.rate("pswpout"),
            in_rate=track.rate("pswpin"),
            writeback=track.value("nr_writeback"),
            waiting=track.value("tasks_waiting"),
            throttled=track.value("nr_throttled"),
            drops=tuple((name, track.value(name)) for name in DROP_COUNTERS if track.value(name)),
        )

    @property
    def flood(self) -> tuple[int, float]:
        """Flood frames sent by all neighbours, and how many a second now."""
        tracks = [self._tracks[n.name] for n in self.plan.neighbours if n.name in self._tracks]
        return sum(track.value("flood_sent") for track in tracks), sum(track.rate("flood_sent") for track in tracks)

    def _clock(self, time: float) -> None:
        if self.started is None:
            self.started = time
        self.now = max(self.now, time)


def event_text(event: Event) -> str:
    """An event in one line."""
    told = {name: value for name, value in event.fields.items() if isinstance(value, (int, float, str))}
    details = ", ".join(
        f"{name} {value:,.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items()
    )
    return f"{event.host}: {event.name.replace('_', ' ')}" + (f" ({details})" if details else "")
