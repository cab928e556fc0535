"""A guest that obeys: what it says is sorted into counters, log and the rest; what it is told is answered, or not.

It carries out one line after the other, and answers in that order. Nobody waits for a guest without a deadline: it may
hang, which is what it is there for.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multiprocess.connection import wait

from testbed.hosts.kernel.counters import GuestCounters
from testbed.hosts.kernel.records import Record, RecordReader
from testbed.hosts.kernel.uml import Machine, UserModeLinux
from testbed.lab.errors import LabError

SAMPLER, SAMPLER_OF_MEMORY = "progress", "vmstat"
"""The first source of each of the guest's two samplers."""
LAST_OF_A_ROUND = ("rx_dropped", "netstat")
"""What each of the two samplers reads last, at least of what frames are counted by."""
FAILED = "failed"
ANSWERS = ("booted", "done", FAILED)
EVENTS = ("workload_ended", "task_killed", "corrupt_page", "nbd_connection_lost", "nbd_reconnected")
CHUNK = 1 << 16
LAST_WORDS = 4096
"""Bytes of the console that are kept for an error message."""

Answered = Callable[[Record], object]
"""What becomes of an answer: "failed" with the reason, or another with what there is to tell, if anything."""


class Guest:
    """A machine that runs. Raises LabError when it cannot be started; its console goes to the file `log`."""

    def __init__(self, machine: Machine, directory: Path, log: Path) -> None:
        self.counters = GuestCounters()
        self.heard: dict[str, float] = {}
        """When each source last said something, CLOCK_MONOTONIC seconds."""
        self.said: Counter[str] = Counter()
        """How often each source has said something."""
        self._records = RecordReader()
        self._log = log.open("ab")
        self._last_words = b""
        self._boot: list[Record] = []
        self._unanswered: deque[Answered] = deque([self._boot.append])
        self.uml = UserModeLinux(machine, directory)
        self._lines = [self.uml.console, self.uml.control]

    def pump(self, seconds: float, *others: Any) -> list[Record]:
        """Take in what it says, waiting at most so long for it or for `others`; returns what are neither counters nor
        answers."""
        ready = wait([*self._lines, *others], seconds)
        if self.uml.console in ready:
            self._take_console()
        return self._take_records() if self.uml.control in ready else []

    def refresh(self, seconds: float) -> None:
        """Wait, at most so long, for counters that were all read after this call. What a sampler says next it may have
        read before, and of that round nothing can be told: it takes the end of the next.
        """
        self.pump(0.0)
        enough = {source: self.said[source] + 2 for source in LAST_OF_A_ROUND}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(self.said[source] < enough[source] for source in enough):
            self.pump(0.1)

    def booted(self, seconds: float) -> None:
        """Wait until it is up. Raises LabError if it is not in time."""
        self._await(self._boot, "boot", seconds)

    def tell(self, line: str, answered: Answered = lambda _: None) -> None:
        """Give it a line to carry out, whether or not it ever will. Raises LabError when it has ended."""
        try:
            self.uml.control.sendall(line.encode() + b"\n")
        except OSError as error:
            raise LabError(f"the guest has ended: {self.last_line()}") from error
        self._unanswered.append(answered)

    def do(self, line: str, seconds: float) -> list[Record]:
        """Have it carry out a line; returns what it said meanwhile. Raises LabError if it does not, or not in time."""
        answers: list[Record] = []
        self.tell(line, answers.append)
        return self._await(answers, line, seconds)

    def _await(self, answers: list[Record], doing: str, seconds: float) -> list[Record]:
        deadline = time.monotonic() + seconds
        said: list[Record] = []
        while not answers:
            if not self.uml.alive:
                self.pump(0.0)
                raise LabError(f"User Mode Linux ended ({doing}): {self.last_line()}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabError(f"the guest did not answer within {seconds:g} s ({doing}): {self.last_line()}")
            said += self.pump(min(left, 0.1))
        if answers[0].name == FAILED:
            raise LabError(f"the guest could not carry out {doing!r}: {answers[0].text}")
        return said

    def last_line(self) -> str:
        """The last line on its console."""
        lines = self._last_words.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def panic(self) -> str | None:
        """Why its kernel gave up, if it did."""
        lines = self._last_words.decode("utf-8", "replace").splitlines()
        return next((line.partition("Kernel panic")[2].strip(" -") for line in lines if "Kernel panic" in line), None)

    def silent_s(self, source: str, now: float) -> float:
        """Seconds since a source last said something; 0 if it never did."""
        return max(0.0, now - self.heard.get(source, now))

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.uml.kill()
        with contextlib.suppress(ValueError):
            self.pump(0.0)
        self._log.close()
        self.uml.console.close()
        self.uml.control.close()

    def _take_console(self) -> None:
        data = self._receive(self.uml.console)
        self._log.write(data)
        self._log.flush()
        self._last_words = (self._last_words + data)[-LAST_WORDS:]

    def _receive(self, line: socket.socket) -> bytes:
        """What has come in on a line; one whose other end is gone is not listened to any more."""
        try:
            data = line.recv(CHUNK)
        except OSError:
            data = b""
        if not data:
            self._lines.remove(line)
        return data

    def _take_records(self) -> list[Record]:
        others = []
        now = time.monotonic()
        for record in self._records.feed(self._receive(self.uml.control)):
            if record.name in ANSWERS:
                self._unanswered.popleft()(record)
            elif record.name in EVENTS:
                others.append(record)
            else:
                self.counters.take(record.name, record.text)
                self.heard[record.name] = now
                self.said[record.name] += 1
        return others
