"""The run as it goes: a picture that is redrawn on a terminal, lines everywhere else.

`watch(plan, options)` chooses. With --json everything goes to standard error, for standard output is the result's.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from testbed.experiment.arguments import RunOptions
from testbed.experiment.board import Board, ClientLine, event_text
from testbed.experiment.plan import Plan
from testbed.experiment.report import describe_patches
from testbed.hosts.messages import Event, Sample

BAR_WIDTH = 40
LINE_INTERVAL_S = 1.0
REDRAWS_PER_S = 5.0


class View(Protocol):
    """Somebody who watches a run. A context manager; what it is told last is what it shows when it ends."""

    def sample(self, sample: Sample) -> None:
        """Take in all counters of a host."""

    def event(self, event: Event) -> None:
        """Take in something that happened once."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def output_stream(json: bool) -> TextIO:
    """Where words for people go."""
    return sys.stderr if json else sys.stdout


def watch(plan: Plan, options: RunOptions) -> View:
    """The view that suits where the output goes."""
    console = Console(file=output_stream(options.json))
    title = f"{plan.name}, {describe_patches(sorted(options.patches))}, seed {options.seed}"
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(plan, console, title)
    return PlainView(plan, console, title)


class NoView:
    """Nobody watches."""

    def sample(self, sample: Sample) -> None:
        return

    def event(self, event: Event) -> None:
        return

    def __enter__(self) -> NoView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PlainView:
    """One line a second for each client, and one for each event."""

    def __init__(self, plan: Plan, console: Console, title: str) -> None:
        self._board = Board(plan)
        self._console = console
        self._title = title
        self._interval = LINE_INTERVAL_S * max(1.0, len(plan.clients) / 4)
        self._plans = {client.name: client for client in plan.clients}
        self._next: dict[str, float] = {client.name: 0.0 for client in plan.clients}

    def sample(self, sample: Sample) -> None:
        self._board.sample(sample)
        due = self._next.get(sample.host)
        if due is None or sample.time < due:
            return
        self._next[sample.host] = sample.time + self._interval
        client = self._board.client(self._plans[sample.host])
        self._line(self._board.since_start(sample.time), client_text(client, self._board))

    def event(self, event: Event) -> None:
        self._board.event(event)
        self._line(self._board.since_start(event.time), event_text(event))

    def __enter__(self) -> PlainView:
        self._line(0.0, self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def _line(self, elapsed: float, text: str) -> None:
        self._console.file.write(f"{elapsed:7.1f}s {text}\n")
        self._console.file.flush()


def client_text(client: ClientLine, board: Board) -> str:
    """One client in one line."""
    sent, pps = board.flood
    parts = [
        f"{client.name}: free {client.free} (throttle {client.throttle} min {client.min} low {client.low})",
        f"out {client.swapped_out} (+{client.out_rate:.0f}/s)",
        f"in {client.swapped_in} (+{client.in_rate:.0f}/s)",
        f"writeback {client.writeback}",
        f"waiting {client.waiting}, throttled {client.throttled}",
    ]
    if sent:
        parts.append(f"flood {sent} (+{pps:.0f}/s)")
    parts += [f"{name} {count}" for name, count in client.drops]
    return "  ".join(parts)


class LiveView:
    """A picture of all clients, redrawn a few times a second."""

    def __init__(self, plan: Plan, console: Console, title: str) -> None:
        self._board = Board(plan)
        self._title = title
        self._live = Live(
            console=console,
            get_renderable=lambda: draw(self._board, self._title),
            refresh_per_second=REDRAWS_PER_S,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=True,
        )
        self._drawn = 0.0

    def sample(self, sample: Sample) -> None:
        self._board.sample(sample)
        if self._board.now - self._drawn >= 1 / REDRAWS_PER_S:
            self._drawn = self._board.now
            self._live.refresh()

    def event(self, event: Event) -> None:
        self._board.event(event)
        self._live.refresh()

    def __enter__(self) -> LiveView:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def draw(board: Board, title: str) -> RenderableType:
    """The whole picture."""
    sent, pps = board.flood
    head = Text.assemble((title, "bold"), f"   {board.elapsed:.1f} s   {board.phase}")
    if board.plan.floods:
        head.append(f"\nflood: {sent:,} frames, {pps:,.0f} a second")
    clients = [draw_client(client) for client in board.clients]
    events = [Text(f"{board.since_start(each.time):7.1f}s {event_text(each)}", style="dim") for each in board.events]
    return Group(head, *clients, *events)


def draw_client(client: ClientLine) -> RenderableType:
    """One client: its memory as a bar, then what swap, tasks and drops are doing."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="bold")
    grid.add_column()
    grid.add_row(escape(client.name), memory_bar(client))
    grid.add_row(
        "swap",
        f"out {client.swapped_out:,} ({client.out_rate:,.0f}/s)   in {client.swapped_in:,} ({client.in_rate:,.0f}/s)   "
        f"writeback {client.writeback}",
    )
    grid.add_row("tasks", f"{client.waiting} waiting, {client.throttled} throttled")
    grid.add_row("drops", "   ".join(f"{name} {count:,}" for name, count in client.drops) or "none")
    return grid


def memory_bar(client: ClientLine, width: int = BAR_WIDTH) -> Text:
    """Free pages as a bar that ends at half above the high watermark, with T, m, l and h where the marks are."""
    whole = max(1, client.high * 3 // 2)
    filled = min(width, client.free * width // whole)
    cells = ["█" if cell < filled else "·" for cell in range(width)]
    marks = {"T": client.throttle, "m": client.min, "l": client.low, "h": client.high}
    for letter, pages in marks.items():
        cells[min(width - 1, pages * width // whole)] = letter
    style = "red" if client.free <= client.throttle else ("yellow" if client.free <= client.min else "green")
    legend = f"  {client.free:,} free  (T {client.throttle}  m {client.min}  l {client.low}  h {client.high})"
    return Text("".join(cells), style=style).append(legend, style="default")
