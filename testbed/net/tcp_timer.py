"""The timers of a TCP connection (net/ipv4/tcp_timer.c): when it sends again, and when it acknowledges at last.

Pure: the caller says what time it is. Both timers run in a softirq with GFP_ATOMIC; only an acknowledgement carries
the __GFP_MEMALLOC of its socket. For a host whose TCP is a model too; where TCP is real, so are its timers.
"""

from __future__ import annotations

from dataclasses import dataclass

TCP_RTO_MIN = 0.2
TCP_RTO_MAX = 120.0
TCP_ATO_MIN = 0.04
TCP_DELACK_MIN = 0.04
TCP_DELACK_MAX = 0.2


@dataclass(slots=True)
class RetransmitTimer:
    """The retransmission timeout: doubled each time nothing comes back, 120 s at most.

    `rto` is the timeout for the measured round trip, seconds; `expires` when `expired` is due (None: nothing is out).
    """

    rto: float = TCP_RTO_MIN
    backoff: int = 0
    retransmits: int = 0
    expires: float | None = None

    @property
    def timeout(self) -> float:
        """Seconds from one transmission to the next."""
        return float(min(self.rto * 2**self.backoff, TCP_RTO_MAX))

    def tcp_event_new_data_sent(self, now: float) -> None:
        """Data has been sent; the timer runs for the oldest of it."""
        if self.expires is None:
            self.expires = now + self.timeout

    def tcp_ack(self, now: float, *, all_acked: bool) -> None:
        """Something new has been acknowledged: begin afresh, or stop when nothing is left."""
        self.backoff = self.retransmits = 0
        self.expires = None if all_acked else now + self.timeout

    def expired(self, now: float) -> None:
        """`tcp_retransmit_timer` has run. A clone that found no memory counts like a segment that got lost."""
        self.backoff += 1
        self.retransmits += 1
        self.expires = now + self.timeout


@dataclass(slots=True)
class DelayedAckTimer:
    """The delayed acknowledgement: at once for two full segments, `mss` bytes each, else after `ato` seconds.

    `ato` follows the intervals in which data comes (`tcp_event_data_recv`). An acknowledgement that finds no memory is
    tried again after `TCP_DELACK_MAX`.
    """

    mss: int
    ato: float = TCP_ATO_MIN
    expires: float | None = None
    unacked_bytes: int = 0
    last_received: float | None = None

    def data_received(self, fresh: int, now: float) -> bool:
        """`__tcp_ack_snd_check` after `fresh` bytes: True if they are to be acknowledged at once."""
        self._measure(now)
        self.unacked_bytes += fresh
        if self.unacked_bytes >= 2 * self.mss:
            return True
        if self.unacked_bytes and self.expires is None:
            self.expires = now + min(self.ato, TCP_DELACK_MAX)
        return False

    def _measure(self, now: float) -> None:
        since = None if self.last_received is None else now - self.last_received
        self.last_received = now
        if since is None:
            return
        if since <= TCP_ATO_MIN / 2:
            self.ato = self.ato / 2 + TCP_ATO_MIN / 2
        elif since < self.ato:
            self.ato = self.ato / 2 + since

    def ack_sent(self) -> None:
        """An acknowledgement is out, by itself or with data."""
        self.unacked_bytes = 0
        self.expires = None

    def tcp_send_ack_failed(self, now: float) -> None:
        """`tcp_send_ack` found no memory."""
        self.ato = TCP_ATO_MIN
        self.expires = now + TCP_DELACK_MAX

    def expired(self, rto: float) -> None:
        """`tcp_delack_timer` has run and is about to send: the next wait is twice as long, `rto` at most."""
        self.expires = None
        self.ato = min(self.ato * 2, rto)
