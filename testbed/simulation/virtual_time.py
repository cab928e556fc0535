"""An event loop with virtual time: its clock jumps to the next timer as soon as nothing is left to do.

Hours of sleeping take no time, and the order of events is the same in every run. A program that waits for something
nobody will ever do raises `Stuck`, and one that keeps itself busy without any time passing raises `Livelock`.

Simulated sockets have descriptors too: `add_reader` and `add_writer` take them like any other. Unlike with epoll, a
callback is not repeated while nothing changes; it comes again when there is news, or when a read has left something.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TURNS_AT_ONE_MOMENT = 100_000
"""Turns of the loop without any time passing that count as a livelock."""
FIRST_DESCRIPTOR = 1 << 30
"""Far above any that the kernel hands out."""


class Stuck(RuntimeError):
    """Everybody waits, and no timer is set."""


class Livelock(RuntimeError):
    """The loop is busy, but its clock stands still."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0) if len(self.get_map()) > 1 else []
        if ready or timeout == 0:
            self._turns += 1
            if self._turns > TURNS_AT_ONE_MOMENT:
                self._turns = 0
                raise Livelock(f"busy at {self.now:g} s, with no time passing")
            return ready
        if timeout is None:
            raise Stuck(f"nothing left to do at {self.now:g} s")
        self.now += timeout
        self._turns = 0
        return ready


class SimulatedFile:
    """What a simulated descriptor stands for; `ready_to_read` and `ready_to_write` are the subclass's to answer."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self.loop = loop
        self.reader: Callable[[], object] | None = None
        self.writer: Callable[[], object] | None = None
        self._notified = False
        self._descriptor = loop.open_descriptor(self)

    def fileno(self) -> int:
        """The simulated descriptor."""
        return self._descriptor

    def setblocking(self, flag: bool) -> None:
        """Simulated files never block. Raises ValueError if asked to."""
        if flag:
            raise ValueError("a simulated socket cannot block")

    def ready_to_read(self) -> bool:
        """Is there something to read?"""
        return False

    def ready_to_write(self) -> bool:
        """Is there room to write?"""
        return False

    def notify(self) -> None:
        """Something has changed: let the callbacks look at it in the loop's next turn."""
        if not self._notified and (self.reader is not None or self.writer is not None):
            self._notified = True
            self.loop.call_soon(self._call)

    def _call(self) -> None:
        self._notified = False
        if self.reader is not None and self.ready_to_read():
            self.reader()
        if self.writer is not None and self.ready_to_write():
            self.writer()

    def close(self) -> None:
        """Give the descriptor back."""
        self.reader = self.writer = None
        self.loop.close_descriptor(self._descriptor)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop whose `time` starts at 0 and moves only by jumps."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self._files: dict[int, SimulatedFile] = {}
        self._next_descriptor = FIRST_DESCRIPTOR
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Say what nobody asked about, except that a task was interrupted: the loop has raised that already."""
        if not isinstance(context.get("exception"), KeyboardInterrupt):
            super().call_exception_handler(context)

    def open_descriptor(self, file: SimulatedFile) -> int:
        """A descriptor of this loop's own for `file`."""
        self._next_descriptor += 1
        self._files[self._next_descriptor] = file
        return self._next_descriptor

    def close_descriptor(self, descriptor: int) -> None:
        """Forget a simulated file."""
        del self._files[descriptor]

    def add_reader(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        file = self._files.get(fd)
        if file is None:
            super().add_reader(fd, callback, *args)
        else:
            file.reader = lambda: callback(*args)
            file.notify()

    def remove_reader(self, fd: Any) -> bool:
        file = self._files.get(fd)
        if file is None:
            return super().remove_reader(fd)
        had, file.reader = file.reader is not None, None
        return had

    def add_writer(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        file = self._files.get(fd)
        if file is None:
            super().add_writer(fd, callback, *args)
        else:
            file.writer = lambda: callback(*args)
            file.notify()

    def remove_writer(self, fd: Any) -> bool:
        file = self._files.get(fd)
        if file is None:
            return super().remove_writer(fd)
        had, file.writer = file.writer is not None, None
        return had


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on virtual time; what it leaves running is cancelled."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        finish(loop)


def finish(loop: VirtualTimeLoop) -> None:
    """Cancel what still runs, and close the loop."""
    with contextlib.suppress(Stuck, Livelock):
        loop.run_until_complete(_cancel_the_rest())
    loop.close()


async def _cancel_the_rest() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
