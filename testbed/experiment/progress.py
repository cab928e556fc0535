"""Many runs as they go: a line for each that has ended and, on a terminal, one for the run that is under way."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from testbed.experiment.report import STYLES
from testbed.experiment.result import Outcome


class Progress:
    """Says what happens; `planned` is the number of runs that are certain to be made."""

    def __init__(self, console: Console, planned: int) -> None:
        self._console = console
        self._planned = planned
        self._ended = 0
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def starting(self, run: str) -> None:
        """A run begins."""
        if self._live is not None:
            self._live.update(Text(f"{self._elapsed()} running {run}", style="dim"), refresh=True)

    def ended(self, run: str, outcome: Outcome, how: str) -> None:
        """A run has ended; `how` goes on after its outcome."""
        self._ended += 1
        of = f"{self._ended}/{self._planned}" if self._ended <= self._planned else f"{self._ended}"
        self.say(f"[{of}] ", f"{escape(run)}: [{STYLES[outcome]}]{outcome}[/]{escape(how)}")

    def say(self, *words: str) -> None:
        """A line of words; all but the last are not markup."""
        *plain, last = words
        line = self._elapsed() + " " + "".join(map(escape, plain)) + last
        self._console.print(line, highlight=False, soft_wrap=True)

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._began:7.1f}s"

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
