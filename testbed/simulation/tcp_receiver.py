"""The receiving half of a simulated TCP: puts bytes in order, and says when an acknowledgement is due."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable, Sequence

from testbed.net.tcp_timer import DelayedAckTimer


class TcpReceiver:
    """Collects a stream. `window` says how many more bytes there is room for; `send_ack(copies)` tries to acknowledge,
    and returns False when it could not; `rto` is the connection's retransmission timeout now, seconds.
    """

    def __init__(
        self, window: Callable[[], int], send_ack: Callable[[int], bool], rto: Callable[[], float], mss: int
    ) -> None:
        self.rcv_nxt = 0
        self.readable = bytearray()
        self.window_edge = 0
        self._window = window
        self._send_ack = send_ack
        self._rto = rto
        self._mss = mss
        self._out_of_order: list[tuple[int, bytes]] = []
        self._delayed = DelayedAckTimer(mss)
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def advertise(self) -> int:
        """The offset up to which the peer may send. It never goes back."""
        self.window_edge = max(self.window_edge, self.rcv_nxt + self._window())
        return self.window_edge

    @property
    def sacks(self) -> tuple[tuple[int, int], ...]:
        """Ranges that have come out of order, joined where they touch."""
        joined: list[tuple[int, int]] = []
        for start, data in self._out_of_order:
            end = start + len(data)
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(joined[-1][1], end)
            else:
                joined.append((start, end))
        return tuple(joined)

    def received(self, runs: Sequence[tuple[int, bytes]], segments: int) -> bool:
        """`runs` of data came in `segments` segments; True when there is more to read. What lies beyond the window is
        refused.

        A second full segment, a hole and what fills one are acknowledged at once; the rest a little later.
        """
        before, edge = self.rcv_nxt, self.advertise()
        disorder = bool(self._out_of_order)
        for start, data in runs:
            disorder |= start + len(data) > edge
            self._take(start, data[: max(0, edge - start)])
        disorder |= bool(self._out_of_order) or any(start < before for start, _ in runs)
        fresh = self.rcv_nxt - before
        if self._delayed.data_received(fresh, self._loop.time()) or disorder:
            self._acknowledge(segments if disorder else (segments + 1) // 2)
        else:
            self._arm()
        return fresh > 0

    def _take(self, start: int, data: bytes) -> None:
        if not data:
            return
        if start > self.rcv_nxt:
            if (start, data) not in self._out_of_order:
                insort(self._out_of_order, (start, data))
            return
        self._append(start, data)
        while self._out_of_order and self._out_of_order[0][0] <= self.rcv_nxt:
            self._append(*self._out_of_order.pop(0))

    def _append(self, start: int, data: bytes) -> None:
        fresh = data[self.rcv_nxt - start :]
        self.readable += fresh
        self.rcv_nxt += len(fresh)

    def _acknowledge(self, copies: int) -> None:
        if self._send_ack(max(1, copies)):
            self.acknowledged()
        elif self._timer is None:
            self._delayed.tcp_send_ack_failed(self._loop.time())
            self._arm()

    def _arm(self) -> None:
        """Have the timer run when an acknowledgement is due."""
        if self._timer is None and self._delayed.expires is not None:
            self._timer = self._loop.call_at(self._delayed.expires, self._late)

    def _late(self) -> None:
        self._timer = None
        self._delayed.expired(self._rto())
        self._acknowledge(1)

    def acknowledged(self) -> None:
        """An acknowledgement has gone out, by itself or with data."""
        self._delayed.ack_sent()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def read(self, buffers: Sequence[memoryview]) -> int:
        """Copy what is readable into `buffers`; how many bytes. A window that was shut is announced as open again."""
        count = 0
        with memoryview(self.readable) as stream:
            for buffer in buffers:
                size = min(len(buffer), len(stream) - count)
                buffer[:size] = stream[count : count + size]
                count += size
                if count == len(stream):
                    break
        del self.readable[:count]
        if count and self.window_edge - self.rcv_nxt < self._mss and self._window() >= 2 * self._mss:
            self._acknowledge(1)
        return count

    def close(self) -> None:
        """Forget what is left."""
        self.acknowledged()
        self._out_of_order.clear()
