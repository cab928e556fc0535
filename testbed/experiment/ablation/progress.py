"""An ablation as it goes: a line for each run that has ended and, on a terminal, one for the run that is under way."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from testbed.experiment.ablation.rows import name
from testbed.experiment.ablation.trials import Key, Trial
from testbed.experiment.report import STYLES
from testbed.patches import PATCHES


class Progress:
    """Says what happens; `planned` is the number of runs that are certain to be made."""

    def __init__(self, console: Console, planned: int) -> None:
        self._console = console
        self._planned = planned
        self._ended = 0
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def starting(self, key: Key) -> None:
        """A run begins."""
        if self._live is not None:
            patches, seed = key
            words = f"running {name(sorted(frozenset(PATCHES) - patches))}, seed {seed}"
            self._live.update(Text(f"{self._elapsed()} {words}", style="dim"), refresh=True)

    def ended(self, trial: Trial) -> None:
        """A run has ended."""
        self._ended += 1
        of = f"{self._ended}/{self._planned}" if self._ended <= self._planned else f"{self._ended}"
        outcome = f"[{STYLES[trial.outcome]}]{trial.outcome}[/]"
        self.say(f"[{of}] ", f"{name(trial.off)}, seed {trial.seed}: {outcome}{escape(how_it_ended(trial))}")

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


def how_it_ended(trial: Trial) -> str:
    """What became of a run, after its outcome."""
    if trial.outcome == "error":
        return f": {trial.evidence}"
    if trial.survived is None:
        return f", cannot be judged ({', '.join(trial.failed_checks)})"
    if trial.survived:
        return f", survived in {trial.finished_after_s:.1f} s" if trial.finished_after_s else ", survived"
    return f", stuck after {trial.stalled_after_s:.1f} s" if trial.stalled_after_s is not None else ", did not finish"
