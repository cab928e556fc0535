"""A neighbour entry through its states, and what waits for it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from testbed.net.neigh import VALID, Neighbour, NeighParms, Nud

PARMS = NeighParms(base_reachable_time=30, delay_probe_time=5, retrans_time=1)


def resolved(now: float = 0.0) -> Neighbour[str]:
    entry: Neighbour[str] = Neighbour(PARMS)
    entry.neigh_update(now)
    return entry


def seen(entry: Neighbour[str]) -> tuple[Nud, float | None]:
    return entry.state, entry.expires


def answer_nobody(entry: Neighbour[str], until: float) -> list[str]:
    """Let the timer run; every request is sent, nobody answers. What is dropped."""
    dropped = []
    while entry.expires is not None and entry.expires <= until:
        dropped += entry.timer(entry.expires)
        if entry.solicit:
            entry.solicited()
    return dropped


def test_a_packet_waits_for_the_answer_and_then_goes_out() -> None:
    entry: Neighbour[str] = Neighbour(PARMS)
    assert not entry.neigh_event_send("one", 1000, 0.0)
    assert (entry.state, entry.solicit) == (Nud.INCOMPLETE, True)
    entry.solicited()
    assert not entry.neigh_event_send("two", 1000, 0.1)
    assert not entry.solicit
    assert entry.neigh_update(0.2) == ["one", "two"]
    assert entry.neigh_event_send("three", 1000, 0.3)
    assert (entry.state, entry.arp_queue_len_bytes) == (Nud.REACHABLE, 0)


def test_nobody_answers_and_what_waits_is_dropped() -> None:
    entry: Neighbour[str] = Neighbour(PARMS)
    entry.neigh_event_send("lost", 1000, 0.0)
    entry.solicited()
    assert answer_nobody(entry, 2.5) == []
    assert entry.probes == 3
    assert answer_nobody(entry, 3.0) == ["lost"]
    assert (entry.state, entry.unres_discards) == (Nud.FAILED, 1)
    assert not entry.neigh_event_send("again", 1000, 4.0)
    assert (entry.state, entry.solicit) == (Nud.INCOMPLETE, True)


def test_an_unconfirmed_entry_goes_stale_and_is_probed_when_it_is_used() -> None:
    entry = resolved()
    entry.timer(29.9)
    assert seen(entry) == (Nud.REACHABLE, 30.0)
    entry.timer(30.0)
    assert seen(entry) == (Nud.STALE, None)
    assert entry.neigh_event_send("used", 1, 40.0)
    assert seen(entry) == (Nud.DELAY, 45.0)
    entry.timer(45.0)
    assert seen(entry) == (Nud.PROBE, 46.0)
    assert entry.solicit
    entry.solicited()
    assert entry.neigh_event_send("with the old address", 1, 45.5)
    assert answer_nobody(entry, 48.0) == []
    assert seen(entry) == (Nud.FAILED, None)


def test_progress_confirms_without_any_arp() -> None:
    entry = resolved()
    for now in range(10, 100, 10):
        entry.confirm(float(now))
        if entry.expires is not None and entry.expires <= now:
            entry.timer(float(now))
        assert entry.state is Nud.REACHABLE
    entry.timer(130.0)
    entry.neigh_event_send("used", 1, 131.0)
    entry.confirm(133.0)
    entry.timer(136.0)
    assert (entry.state, entry.solicit) == (Nud.REACHABLE, False)


def test_a_request_that_finds_no_memory_is_one_that_nobody_answers() -> None:
    entry: Neighbour[str] = Neighbour(PARMS)
    entry.neigh_event_send("waits", 1, 0.0)
    assert entry.solicit
    entry.solicited()
    assert entry.expires == 1.0
    entry.timer(1.0)
    assert entry.solicit


@pytest.mark.parametrize(("size", "kept"), [(16 << 10, 4), (40 << 10, 1), (100 << 10, 1)])
def test_the_queue_keeps_64_kib_of_the_newest(size: int, kept: int) -> None:
    entry: Neighbour[int] = Neighbour(PARMS)
    dropped = []
    for number in range(6):
        entry.neigh_event_send(number, size, 0.0)
        dropped += entry.overflow()
    assert dropped == list(range(6 - kept))
    assert entry.unres_discards == 6 - kept
    assert entry.neigh_update(1.0) == list(range(6 - kept, 6))


class NeighbourMachine(RuleBasedStateMachine):
    """Every packet goes out, waits, or is dropped, once; time only goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.entry: Neighbour[int] = Neighbour(PARMS)
        self.now = 0.0
        self.sent = self.out = self.dropped = 0

    @rule(size=st.integers(1, 70_000))
    def send(self, size: int) -> None:
        self.sent += 1
        self.out += self.entry.neigh_event_send(self.sent, size, self.now)
        self.dropped += len(self.entry.overflow())

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        while self.entry.expires is not None and self.entry.expires < self.now:
            self.dropped += len(self.entry.timer(self.now))
            if self.entry.solicit:
                self.entry.solicited()

    @rule()
    def answer(self) -> None:
        self.out += len(self.entry.neigh_update(self.now))

    @rule()
    def acknowledge(self) -> None:
        self.entry.confirm(self.now)

    @invariant()
    def every_packet_is_somewhere(self) -> None:
        entry = self.entry
        assert self.sent == self.out + self.dropped + len(entry.arp_queue)
        assert self.dropped == entry.unres_discards
        assert entry.arp_queue_len_bytes == sum(size for _, size in entry.arp_queue)
        assert not (entry.arp_queue and entry.state in VALID)
        assert (entry.expires is None) == (entry.state in {Nud.NONE, Nud.STALE, Nud.FAILED})


TestNeighbour = NeighbourMachine.TestCase
TestNeighbour.settings = settings(max_examples=60, stateful_step_count=30)
