"""Retransmission and delayed acknowledgement: when each is due, and what a failed allocation does to that."""

from __future__ import annotations

import pytest

from testbed.net.tcp_timer import (
    TCP_ATO_MIN,
    TCP_DELACK_MAX,
    TCP_RTO_MAX,
    TCP_RTO_MIN,
    DelayedAckTimer,
    RetransmitTimer,
)


def test_the_timeout_doubles_up_to_two_minutes() -> None:
    timer = RetransmitTimer()
    timer.tcp_event_new_data_sent(0.0)
    waits = []
    now = 0.0
    for _ in range(13):
        assert timer.expires is not None
        waits.append(timer.expires - now)
        now = timer.expires
        timer.expired(now)
    expected = [min(TCP_RTO_MIN * 2**number, TCP_RTO_MAX) for number in range(13)]
    assert waits == pytest.approx(expected)
    assert waits[-1] == pytest.approx(120)


def test_new_data_does_not_put_the_timer_off() -> None:
    timer = RetransmitTimer()
    timer.tcp_event_new_data_sent(0.0)
    timer.tcp_event_new_data_sent(0.15)
    assert timer.expires == TCP_RTO_MIN


@pytest.mark.parametrize(("all_acked", "expires"), [(True, None), (False, 5 + TCP_RTO_MIN)])
def test_an_acknowledgement_begins_afresh(all_acked: bool, expires: float | None) -> None:
    timer = RetransmitTimer()
    timer.tcp_event_new_data_sent(0.0)
    for now in (0.2, 0.6, 1.4):
        timer.expired(now)
    timer.tcp_ack(5.0, all_acked=all_acked)
    assert (timer.expires, timer.backoff, timer.retransmits) == (expires, 0, 0)


MSS = 1448


def test_two_full_segments_are_acknowledged_at_once_and_one_later() -> None:
    timer = DelayedAckTimer(MSS)
    assert not timer.data_received(MSS, 1.0)
    assert timer.expires == 1.0 + TCP_ATO_MIN
    assert timer.data_received(MSS, 1.01)
    timer.ack_sent()
    assert timer == DelayedAckTimer(MSS, last_received=1.01)
    assert not timer.data_received(2 * MSS - 1, 2.0)
    assert timer.data_received(1, 2.0)


def test_more_data_does_not_put_the_acknowledgement_off() -> None:
    timer = DelayedAckTimer(MSS)
    timer.data_received(100, 1.0)
    timer.data_received(100, 1.03)
    assert timer.expires == 1.0 + TCP_ATO_MIN


def test_nothing_new_needs_no_acknowledgement() -> None:
    timer = DelayedAckTimer(MSS)
    assert not timer.data_received(0, 1.0)
    assert timer.expires is None


def test_an_acknowledgement_without_memory_is_tried_again_later() -> None:
    timer = DelayedAckTimer(MSS, ato=0.16)
    timer.data_received(2 * MSS, 1.0)
    timer.tcp_send_ack_failed(1.0)
    assert (timer.expires, timer.ato) == (1.0 + TCP_DELACK_MAX, TCP_ATO_MIN)
    assert timer.data_received(1, 1.1), "those are not acknowledged yet"


def test_a_timer_that_had_to_fire_waits_longer_next_time() -> None:
    timer = DelayedAckTimer(MSS)
    waits = []
    for _ in range(5):
        timer.expired(TCP_RTO_MIN)
        waits.append(timer.ato)
    assert waits == pytest.approx([0.08, 0.16, 0.2, 0.2, 0.2])


@pytest.mark.parametrize(
    ("ato", "interval", "then"),
    [(0.2, 0.001, 0.12), (0.2, 0.02, 0.12), (0.2, 0.1, 0.2), (0.2, 0.5, 0.2), (0.04, 0.03, 0.05)],
)
def test_the_wait_follows_the_intervals_in_which_data_comes(ato: float, interval: float, then: float) -> None:
    timer = DelayedAckTimer(MSS, ato=ato)
    timer.data_received(1, 1.0)
    timer.data_received(1, 1.0 + interval)
    assert timer.ato == pytest.approx(then)
