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


def test_every_second_segment_is_acknowledged_at_once() -> None:
    timer = DelayedAckTimer()
    assert not timer.data_received(1.0)
    assert timer.expires == 1.0 + TCP_ATO_MIN
    assert timer.data_received(1.01)
    timer.ack_sent()
    assert not timer.unacked_segments
    assert timer == DelayedAckTimer()
    assert not timer.data_received(2.0)


def test_an_acknowledgement_without_memory_is_tried_again_later() -> None:
    timer = DelayedAckTimer(ato=0.16)
    timer.data_received(1.0)
    timer.data_received(1.0)
    timer.tcp_send_ack_failed(1.0)
    assert (timer.expires, timer.ato) == (1.0 + TCP_DELACK_MAX, TCP_ATO_MIN)
    assert timer.data_received(1.1)


def test_a_timer_that_had_to_fire_waits_longer_next_time() -> None:
    timer = DelayedAckTimer()
    waits = []
    for _ in range(5):
        timer.expired(TCP_RTO_MIN)
        waits.append(timer.ato)
    assert waits == pytest.approx([0.08, 0.16, 0.2, 0.2, 0.2])
