"""What a fault inside a server did is told even when the server did not live to tell it."""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import pytest

from testbed.experiment.faults.processes import Supervised
from testbed.hosts.messages import ClearFault, Command, Event, Message, Sample, SetFault
from testbed.lab.process import HostProcess

COUNTS = {"requests_seen": 9, "requests_picked": 3}
KILL = SetFault(2, "kill", {}, 1)


class Serving:
    """A server's process as far as faults need one: it has said so much, and takes every command."""

    name, pid, alive = "server", 1234, True

    def __init__(self, *said: Message) -> None:
        self.said = list(said)
        self.commands: list[Command] = []

    def send(self, command: Command) -> bool:
        self.commands.append(command)
        return True

    def messages(self) -> list[Message]:
        said, self.said = self.said, []
        return said

    def kill(self) -> None:
        self.alive = False


def cleared(host: Supervised, number: int = 1) -> list[dict[str, Any]]:
    """What was said of the end of a fault."""
    return [
        each.fields
        for each in host.messages()
        if isinstance(each, Event) and each.name == "fault_cleared" and each.fields["number"] == number
    ]


def supervised(first: Serving, *others: Serving) -> Supervised:
    rest = iter(others)
    return Supervised(cast(HostProcess, first), lambda _data: cast(HostProcess, next(rest)))


def test_a_fault_that_ends_while_the_server_is_dead_tells_what_it_had_done() -> None:
    host = supervised(Serving(Sample("server", 1.0, {}, {1: COUNTS})))
    host.send(KILL)
    host.send(ClearFault(1))
    assert cleared(host) == [{"number": 1, **COUNTS}]


def test_a_fault_that_ends_when_another_serves_tells_what_it_had_done() -> None:
    other = Serving()
    host = supervised(Serving(Sample("server", 1.0, {}, {1: COUNTS})), other)
    host.send(KILL)
    host.send(ClearFault(2))
    host.send(ClearFault(1))
    assert other.commands == [ClearFault(1)]
    other.said = [Event("server", 2.0, "fault_cleared", {"number": 1})]
    assert cleared(host) == [{"number": 1, **COUNTS}]


def test_a_server_that_lives_has_the_last_word() -> None:
    final = {"requests_seen": 10, "requests_picked": 4}
    serving = Serving(
        Sample("server", 1.0, {}, {1: COUNTS}), Event("server", 2.0, "fault_cleared", {"number": 1, **final})
    )
    assert cleared(supervised(serving)) == [{"number": 1, **final}]


def test_a_pause_tells_which_process_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    host = supervised(Serving())
    host.send(SetFault(1, "pause", {}, 1))
    host.send(ClearFault(1))
    assert sent == [(Serving.pid, signal.SIGSTOP), (Serving.pid, signal.SIGCONT)]
    (told,) = cleared(host)
    assert told["seconds"] >= 0
