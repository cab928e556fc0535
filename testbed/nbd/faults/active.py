"""The faults that act on a server right now. They are set and cleared while it runs, from any thread.

`acting` is False nearly always, and then nothing else here is asked: a server without faults pays for one look at it
per batch of requests.
"""

import threading
import time
from random import Random

from testbed.nbd.faults.disconnect import Disconnect
from testbed.nbd.faults.fault import Fault
from testbed.nbd.server_protocol import Request


class HangUp(Exception):
    """Send the `last_words`, then close the connection."""

    def __init__(self, last_words: bytes) -> None:
        super().__init__("a fault hung up")
        self.last_words = last_words


class ActiveFault:
    """A fault, its kind's name, and its history: `seen` requests were of its sort, and `acted` of them were picked."""

    def __init__(self, kind: str, fault: Fault, seed: int) -> None:
        self.kind = kind
        self.fault = fault
        self.chance = Random(seed)
        self.seen = 0
        self.acted = 0
        self.began = 0.0  # when it first acted, by the clock of who asks

    def picks(self, now: float) -> bool:
        """Count one more request that the fault touches. Is it picked?"""
        fault = self.fault
        self.seen += 1
        number = self.seen - fault.after
        if number < 1 or number % fault.every_nth or (fault.times is not None and self.acted >= fault.times):
            return False
        if fault.probability < 1 and self.chance.random() >= fault.probability:
            return False
        if not self.acted:
            self.began = now
        self.acted += 1
        return True

    def did(self) -> dict[str, int]:
        """How many requests it looked at, and how many of them it picked."""
        return {"requests_seen": self.seen, "requests_picked": self.acted}


class ActiveFaults:
    """Faults by their number, in the order in which they were set."""

    def __init__(self) -> None:
        self.acting = False
        self._faults: dict[int, ActiveFault] = {}
        self._finished: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def set(self, number: int, fault: ActiveFault) -> None:
        """Let it act from now on, in place of one that had the number."""
        with self._changed:
            self._forget(number)
            self._faults[number] = fault
            self.acting = True

    def clear(self, number: int) -> dict[str, int]:
        """End it; whoever waits because of it goes on. A number that is not set is no error.

        Returns what it did, nothing for such a number.
        """
        with self._changed:
            fault = self._forget(number)
            self.acting = bool(self._faults)
            self._changed.notify_all()
        return {} if fault is None else fault.did()

    def did(self) -> dict[int, dict[str, int]]:
        """What each that acts has done so far, by its number."""
        with self._changed:
            return {number: fault.did() for number, fault in self._faults.items()}

    def close(self) -> None:
        """Nobody waits any longer, now or later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def counts(self) -> dict[str, int]:
        """How often each kind has acted since the server began, under `fault_` and its name."""
        with self._changed:
            totals = dict(self._finished)
            for fault in self._faults.values():
                _count(totals, fault)
        return totals

    def _forget(self, number: int) -> ActiveFault | None:
        fault = self._faults.pop(number, None)
        if fault is not None:
            _count(self._finished, fault)
        return fault

    def picked(self, request: Request) -> list[ActiveFault]:
        """The faults that this request is to suffer."""
        now = time.monotonic()
        with self._changed:
            return [each for each in self._faults.values() if each.fault.touches(request) and each.picks(now)]

    def wait(self, fault: ActiveFault) -> None:
        """As long as it wants a request to wait, but no longer than it acts."""
        with self._changed:
            seconds = fault.fault.delay(fault.chance, time.monotonic() - fault.began)
            self._changed.wait_for(
                lambda: self._closed or fault not in self._faults.values(), min(seconds, threading.TIMEOUT_MAX)
            )

    def before_negotiation(self) -> None:
        """A client has connected. Raises HangUp."""
        if self.acting and self._at("before_negotiation"):
            raise HangUp(b"")

    def option_reply(self, data: bytes) -> bytes:
        """`data` answer an option. Raises HangUp."""
        if self.acting and self._at("option_reply"):
            raise HangUp(data[: len(data) // 2])
        return data

    def _at(self, point: str) -> bool:
        now = time.monotonic()
        with self._changed:
            return any(
                isinstance(each.fault, Disconnect) and each.fault.point == point and each.picks(now)
                for each in self._faults.values()
            )


def _count(totals: dict[str, int], fault: ActiveFault) -> None:
    name = f"fault_{fault.kind}"
    totals[name] = totals.get(name, 0) + fault.acted
