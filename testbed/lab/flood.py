"""A flood: templates repeated at a chosen rate, up to 1024 frames to a system call.

The frames lie in one array, a row each, with a prebuilt message header per row; what changes from frame to frame
(sequence number, source port, IPv4 identification and the checksums over them) is written into whole columns just
before the rows are sent. The rate is a token bucket on CLOCK_MONOTONIC that is emptied about every millisecond; a
flood that was kept from running catches up by 20 ms at most and forgets the rest, so `pps` may fall short of what was
asked for, and says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.lab.errors import LabError
from testbed.lab.packet_sender import MOST_AT_ONCE, MessageVector, open_sender
from testbed.lab.templates import Template

TICK_S = 0.001
CATCH_UP_S = 0.02


class Flood:
    """Injects `templates` in turn out of an interface of the calling thread's namespace.

    `pps`: frames per second, None for as many as the machine gives, 0 for none. `burst`: the most frames sent at once.
    `source_ports`: (low, high) to draw the source port of every frame from; `vary_ip_id`: draw the IPv4
    identification. The 8-byte big-endian sequence number counts every frame offered, from 0, over all templates.
    `sent` were taken by the interface, `lost` were refused by it (their sequence numbers are never seen).
    Raises LabError for templates that do not belong together and for an interface that is not there.
    """

    def __init__(
        self,
        ifname: str,
        templates: Sequence[Template],
        pps: float | None,
        *,
        burst: int = MOST_AT_ONCE,
        source_ports: tuple[int, int] | None = None,
        vary_ip_id: bool = False,
        seed: int = 0,
        qdisc_bypass: bool = False,
    ) -> None:
        if pps is not None and pps < 0:
            raise LabError(f"a flood of {pps:g} packets per second is not possible: give 0 or more")
        self.requested = pps
        self.sent = 0
        self.lost = 0
        self._rows = _Rows(templates, source_ports, vary_ip_id, seed)
        self._burst = max(1, min(burst, self._rows.count))
        self._cursor = 0
        self._started: float | None = None
        self._last = 0.0
        self._origin = 0.0
        self._scheduled = 0
        self._socket = open_sender(ifname, qdisc_bypass=qdisc_bypass)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def pps(self) -> float:
        """Frames per second achieved, from the first call of `step` (or `run_until`) to the latest one."""
        elapsed = 0.0 if self._started is None else self._last - self._started
        return self.sent / elapsed if elapsed > 0 else 0.0

    def restart(self) -> None:
        """Forget the time until now: begin to count the rate afresh, without the frames a pause would have taken."""
        self._started = None
        self.sent = self.lost = 0

    def step(self, now: float | None = None) -> float:
        """Send what is due at `now` (CLOCK_MONOTONIC seconds); the time at which to call again.

        Raises LabError when the interface is broken for good.
        """
        now = time.monotonic() if now is None else now
        if self._started is None:
            self._started = self._origin = self._last = now
            self._scheduled = 0
        due = self._due(now)
        self._scheduled += due
        while due > 0:
            count = min(due, self._burst)
            self._send(count)
            due -= count
        self._last = now if self.requested is not None else time.monotonic()
        return self._next(now)

    def run_until(self, stop: threading.Event | Callable[[], bool], deadline_s: float | None = None) -> None:
        """Inject until `stop` is set (or returns true), or `deadline_s` seconds have passed. Raises LabError."""
        stopped = stop.is_set if isinstance(stop, threading.Event) else stop
        end = None if deadline_s is None else time.monotonic() + deadline_s
        while not stopped() and (end is None or time.monotonic() < end):
            pause = self.step() - time.monotonic()
            if pause > 0:
                time.sleep(min(pause, TICK_S))

    def close(self) -> None:
        self._socket.close()

    def _due(self, now: float) -> int:
        if self.requested is None:
            return self._burst
        due = int((now - self._origin) * self.requested) - self._scheduled
        most = max(1, int(CATCH_UP_S * self.requested))
        if due > most:
            self._origin += (due - most) / self.requested
            due = most
        return max(0, due)

    def _next(self, now: float) -> float:
        if self.requested is None:
            return now
        if self.requested == 0:
            return now + 1.0
        return max(now + TICK_S, self._origin + (self._scheduled + 1) / self.requested)

    def _send(self, count: int) -> None:
        while count:
            part = min(count, self._rows.count - self._cursor)
            sent, lost = self._rows.send(self._socket.fileno(), self._cursor, part)
            self.sent += sent
            self.lost += lost
            self._cursor = (self._cursor + part) % self._rows.count
            count -= part

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()


class _Rows:
    """The frames in memory: a whole number of repetitions of the templates, about 1024 rows."""

    def __init__(
        self, templates: Sequence[Template], ports: tuple[int, int] | None, vary_ip_id: bool, seed: int
    ) -> None:
        if not templates:
            raise LabError("a flood needs at least one packet template")
        first = self._layout = templates[0]
        if any(_places(template) != _places(first) for template in templates):
            raise LabError("the templates of one flood must be of one kind: make a flood for each kind")
        if ports is not None and not 0 < ports[0] <= ports[1] < 65536:
            raise LabError(f"source ports {ports} are not a range within 1 to 65535")
        self._ports = ports if first.source_port_at is not None else None
        self._vary_ip_id = vary_ip_id and first.ip_id_at is not None
        self._random = np.random.default_rng(seed)
        self._sequence = 0
        self.count = len(templates) * max(1, MOST_AT_ONCE // len(templates))
        self._fill(templates)

    def _fill(self, templates: Sequence[Template]) -> None:
        width = -(-max(len(template.frame) for template in templates) // 64) * 64
        frames = np.zeros((len(templates), width), np.uint8)
        for row, template in zip(frames, templates, strict=True):
            row[: len(template.frame)] = np.frombuffer(template.frame, np.uint8)
        repetitions = self.count // len(templates)
        self._frames = np.tile(frames, (repetitions, 1))
        self._vector = MessageVector(self.count)
        self._vector.bases[:] = self._frames.ctypes.data + np.arange(self.count, dtype=np.uint64) * np.uint64(width)
        self._vector.sizes[:] = np.tile([len(template.frame) for template in templates], repetitions)
        self._sequences = self._column(self._layout.sequence_at, ">u8")
        self._source_ports = self._column(self._layout.source_port_at, ">u2")
        self._identifications = self._column(self._layout.ip_id_at, ">u2")
        self._checksums = self._column(self._layout.checksum_at, ">u2")
        self._ip_checksums = self._column(self._layout.ip_checksum_at, ">u2")
        self._transport_base = _inverted(self._checksums, self._source_ports if self._ports else None)
        self._ip_base = _inverted(self._ip_checksums, self._identifications)

    def _column(self, offset: int | None, kind: str) -> npt.NDArray[Any] | None:
        if offset is None:
            return None
        return np.ndarray(self.count, kind, self._frames.data, offset, (self._frames.shape[1],))

    def send(self, fd: int, start: int, count: int) -> tuple[int, int]:
        """Renew rows start .. start + count - 1 and send them; (sent, lost)."""
        rows = slice(start, start + count)
        added = np.zeros(count, np.uint64)
        if self._sequences is not None:
            numbers = np.arange(self._sequence, self._sequence + count, dtype=np.uint64)
            self._sequences[rows] = numbers
            if self._checksums is not None:
                added += (numbers & np.uint64(0xFFFFFFFF)) + (numbers >> np.uint64(32))
        if self._ports is not None and self._source_ports is not None:
            drawn = self._random.integers(self._ports[0], self._ports[1] + 1, count, np.uint32)
            self._source_ports[rows] = drawn
            added += drawn
        if self._checksums is not None and (self._ports is not None or self._sequences is not None):
            self._checksums[rows] = _folded(self._transport_base[rows] + added)
        if self._vary_ip_id and self._identifications is not None and self._ip_checksums is not None:
            drawn = self._random.integers(0, 65536, count, np.uint32)
            self._identifications[rows] = drawn
            self._ip_checksums[rows] = _folded(self._ip_base[rows] + drawn)
        self._sequence += count
        return self._vector.send(fd, start, count)


def _places(template: Template) -> tuple[int | None, ...]:
    return (
        *(template.sequence_at, template.source_port_at, template.checksum_at),
        *(template.ip_id_at, template.ip_checksum_at),
    )


def _inverted(checksums: npt.NDArray[Any] | None, replaced: npt.NDArray[Any] | None) -> npt.NDArray[np.uint64]:
    """The sums behind the given checksums without the field that will be replaced (RFC 1624), one per row."""
    if checksums is None:
        return np.zeros(0, np.uint64)
    base = np.uint64(0xFFFF) - checksums.astype(np.uint64)
    return base if replaced is None else base + (np.uint64(0xFFFF) - replaced.astype(np.uint64))


def _folded(sums: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Internet checksums (RFC 1071) of sums of 16-bit or wider words; 0 is written as 0xffff, its equal."""
    for _ in range(4):
        sums = (sums & np.uint64(0xFFFF)) + (sums >> np.uint64(16))
    checksums = np.uint64(0xFFFF) - sums
    checksums[checksums == 0] = 0xFFFF
    return checksums
