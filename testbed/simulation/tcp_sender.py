"""The sending half of a simulated TCP: windows, slow start, fast retransmit with SACK, and a timeout that doubles.

Offsets count the stream's bytes from 0. Nothing here knows of memory: whether a segment arrives is decided where it
arrives, and a sender notices only that no acknowledgement comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from testbed.net.tcp_timer import TCP_RTO_MAX, TCP_RTO_MIN

TCP_INIT_CWND = 10
TCP_TIMEOUT_INIT = 1.0
DUPACK_THRESHOLD = 3
INFINITE = 1 << 62

Range = tuple[int, int]


class TcpSender:
    """Sends a stream through `transmit(offset, data)`, `mss` bytes to a segment, at most `train` bytes at once.

    `retransmitted` counts segments, `timeouts` how often the timer fired.
    """

    def __init__(self, transmit: Callable[[int, bytes], None], mss: int, train: int, window: int) -> None:
        self.mss = mss
        self.retransmitted = 0
        self.timeouts = 0
        self.snd_una = 0
        self.snd_nxt = 0
        self.window_edge = window
        self._transmit = transmit
        self._train = train
        self._buffer = bytearray()
        self._cwnd = TCP_INIT_CWND * mss
        self._ssthresh = INFINITE
        self._sacked: list[Range] = []
        self._dupacks = 0
        self._recover: int | None = None
        self._resent_to = 0
        self._snd_max = 0
        self._srtt: float | None = None
        self._rttvar = 0.0
        self._backoff = 0
        self._timed: tuple[int, float] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._corked = False
        self._loop = asyncio.get_running_loop()

    @property
    def write_seq(self) -> int:
        """Offset behind the last byte written."""
        return self.snd_una + len(self._buffer)

    @property
    def unacknowledged(self) -> int:
        """Bytes written that have not been acknowledged."""
        return len(self._buffer)

    @property
    def rto(self) -> float:
        """The retransmission timeout now, in seconds."""
        base = TCP_TIMEOUT_INIT if self._srtt is None else max(TCP_RTO_MIN, self._srtt + 4 * self._rttvar)
        return min(TCP_RTO_MAX, base * float(1 << min(self._backoff, 20)))

    def write(self, data: bytes) -> None:
        """Append to the stream. What is written in one turn of the loop goes out together (`tcp_autocorking`)."""
        self._buffer += data
        if not self._corked:
            self._corked = True
            self._loop.call_soon(self._uncork)

    def _uncork(self) -> None:
        self._corked = False
        self._output()

    def acknowledged(self, ack: int, window_edge: int, sacks: Sequence[Range], *, copies: int, pure: bool) -> int:
        """Take in an acknowledgement that came `copies` times, `pure` if without data; how many bytes it was for."""
        opened = window_edge > self.window_edge
        self.window_edge = max(self.window_edge, window_edge)
        fresh = max(0, ack - self.snd_una)
        self._sacked = [(start, end) for start, end in sacks if end > ack]
        if fresh:
            self._advance(ack, fresh)
        elif opened and self._backoff:
            self._start_over()
        elif pure and not opened and ack == self.snd_una and self.snd_nxt > ack:
            self._dupacks += copies
        if self._recover is None and self._dupacks >= DUPACK_THRESHOLD and self._sacked:
            self._enter_recovery()
        if self._recover is not None:
            self._resend_holes()
        self._output()
        return fresh

    def _advance(self, ack: int, fresh: int) -> None:
        del self._buffer[:fresh]
        self.snd_una = ack
        self.snd_nxt = max(self.snd_nxt, ack)
        self._backoff = self._dupacks = 0
        if self._timed is not None and ack >= self._timed[0]:
            self._measure(self._loop.time() - self._timed[1])
        if self._recover is not None and ack >= self._recover:
            self._recover = None
            self._cwnd = self._ssthresh
        elif self._recover is None:
            grown = fresh if self._cwnd < self._ssthresh else self.mss * fresh // self._cwnd
            self._cwnd += grown
        self._stop_timer()

    def _start_over(self) -> None:
        """The window is open again, and the byte that probed it was refused."""
        self._backoff = 0
        self.snd_nxt = self.snd_una
        self._stop_timer()

    def _measure(self, rtt: float) -> None:
        self._timed = None
        if self._srtt is None:
            self._srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(rtt - self._srtt) - self._rttvar) / 4
            self._srtt += (rtt - self._srtt) / 8

    def _enter_recovery(self) -> None:
        self._ssthresh = max((self.snd_nxt - self.snd_una) // 2, 2 * self.mss)
        self._cwnd = self._ssthresh + DUPACK_THRESHOLD * self.mss
        self._recover = self.snd_nxt
        self._resent_to = self.snd_una
        self._timed = None

    def _resend_holes(self) -> None:
        """Send again, once, what lies before something that has arrived."""
        position = max(self._resent_to, self.snd_una)
        for start, end in self._sacked:
            while position < start:
                position = self._send(position, min(start, position + self._train))
            position = max(position, end)
        self._resent_to = max(self._resent_to, position)

    def _output(self) -> None:
        """Send new data, and after a timeout old data again, as far as the windows let it."""
        while self.snd_nxt < self.write_seq:
            start, end = self._next_gap(self.snd_nxt)
            self.snd_nxt = start
            limit = min(self.snd_una + self._cwnd, self.window_edge)
            end = min(end, limit, start + self._train)
            short = end - start < self.mss and end < self.write_seq
            if end <= start or (short and limit == end and start > self.snd_una):
                break
            self.snd_nxt = self._send(start, end)
        if self._buffer and self._timer is None:
            self._timer = self._loop.call_later(self.rto, self._timeout)

    def _next_gap(self, position: int) -> Range:
        """The next bytes from `position` on that have not arrived out of order."""
        for start, end in self._sacked:
            if position < start:
                return position, min(start, self.write_seq)
            position = max(position, end)
        return position, self.write_seq

    def _send(self, start: int, end: int) -> int:
        at = start - self.snd_una
        again = min(end, self._snd_max) - start
        if again > 0:
            self.retransmitted += -(-again // self.mss)
        elif self._timed is None:
            self._timed = end, self._loop.time()
        self._snd_max = max(self._snd_max, end)
        with memoryview(self._buffer) as buffer:
            data = bytes(buffer[at : at + end - start])
        self._transmit(start, data)
        return end

    def _timeout(self) -> None:
        """Nothing was acknowledged for the whole timeout: send the first segment again, or a byte to probe a closed
        window, and the rest as acknowledgements come."""
        self._timer = None
        self.timeouts += 1
        self._backoff += 1
        self._ssthresh = max((self.snd_nxt - self.snd_una) // 2, 2 * self.mss)
        self._cwnd = self.mss
        self._recover = self._timed = None
        self._dupacks = 0
        allowed = max(1, self.window_edge - self.snd_una)
        self.snd_nxt = self._send(self.snd_una, self.snd_una + min(self.mss, allowed, len(self._buffer)))
        self._timer = self._loop.call_later(self.rto, self._timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Forget what is left."""
        self._stop_timer()
        self._buffer.clear()
        self.snd_nxt = self.snd_una
