"""A process inside a namespace, its pipe to the runner, and the promise that it never outlives the runner.

The child is forked (before the runner has threads or a loop worth copying), asks the kernel to kill it when its
parent ends, joins its namespace, and only then runs `main(channel, spec)`. Since every process down the tree has
asked for the same, killing one in the middle takes everything below along. The kernel ties the promise to the
*thread* that forked: start processes from a thread that lives as long as they should.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import multiprocess
from multiprocess.connection import Connection, wait

from testbed.hosts.messages import Command, Failed, Finished, Message, Ready, Shutdown
from testbed.lab.errors import LabError
from testbed.lab.linux import die_with_parent
from testbed.lab.namespace import NetworkNamespace, keep_only

_FORK = multiprocess.get_context("fork")
_TERM_PATIENCE_S = 1.0
_running: weakref.WeakSet[HostProcess] = weakref.WeakSet()

Main = Callable[[Connection, Any], None]


class HostProcess:
    """One child: `main(channel, spec)` in the first of `namespaces`; the others stay open for it, to enter as it likes.

    `spec` may be any object; it is inherited by fork, not pickled (put the other namespaces into it). Messages and
    commands are those of testbed.hosts.messages; they travel by pickle (dill).
    """

    def __init__(self, name: str, main: Main, spec: Any, namespaces: Sequence[NetworkNamespace] = ()) -> None:
        self.name = name
        self._main = main
        self._spec = spec
        self._namespaces = tuple(namespaces)
        self._process: Any = None
        self._channel: Connection | None = None
        self._pending: list[Message] = []
        self._concluded = False

    def start(self) -> HostProcess:
        """Fork the child. Raises LabError when it has been started before or the system has no room for it."""
        if self._process is not None:
            raise LabError(f"host {self.name} has been started already: make a new HostProcess")
        ours, theirs = _FORK.Pipe(duplex=True)
        parent = os.getpid()
        process = _FORK.Process(target=_child, args=(parent, self, ours, theirs), name=self.name)
        try:
            process.start()
        except OSError as error:
            ours.close()
            raise LabError(f"cannot start host {self.name}: {error.strerror} (run fewer hosts)") from error
        finally:
            theirs.close()
        self._process, self._channel = process, ours
        _running.add(self)
        return self

    @property
    def pid(self) -> int:
        """The child's process id. Raises LabError before `start()`."""
        return int(self._started().pid)

    @property
    def channel(self) -> Connection:
        """The runner's end of the pipe. Raises LabError before `start()`."""
        self._started()
        assert self._channel is not None
        return self._channel

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    @property
    def exitcode(self) -> int | None:
        """The exit status; minus the signal's number if one ended it; None while it runs."""
        return None if self._process is None else self._process.exitcode

    def fileno(self) -> int:
        """For a selector: readable when there are messages, or when the child is gone."""
        return int(self.channel.fileno())

    def send(self, command: Command) -> bool:
        """Send a command; False when the child is gone (its last word is in `messages()`)."""
        try:
            self.channel.send(command)
        except OSError:
            return False
        return True

    def messages(self) -> list[Message]:
        """All that has arrived and was not yet fetched, without waiting.

        A child that ends without having said Finished or Failed is given a Failed here that says how it ended.
        """
        self._drain()
        fetched, self._pending = self._pending, []
        return fetched

    def wait_ready(self, deadline_s: float = 10.0) -> Ready:
        """Wait for the child's Ready; everything else it says stays for `messages()`.

        Raises LabError when it fails first, or is not ready after `deadline_s` seconds.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            self._drain()
            for position, message in enumerate(self._pending):
                if isinstance(message, Ready):
                    del self._pending[position]
                    return message
                if isinstance(message, Failed):
                    raise LabError(f"host {self.name}: {message.message}")
            left = deadline - time.monotonic()
            if self._concluded or left <= 0:
                how = "ended" if self._concluded else f"did not get ready within {deadline_s:g} s"
                raise LabError(f"host {self.name} {how}: look at its log")
            wait([self.channel], left)

    def stop(self, grace_s: float = 5.0) -> int | None:
        """Ask for Shutdown, wait `grace_s` seconds, then SIGTERM, then SIGKILL; the exit status (None: never started).

        What the child says meanwhile stays for `messages()`. Harmless when done twice.
        """
        if self._process is None:
            return None
        if self.alive:
            self.send(Shutdown())
            if not self._ended_within(grace_s):
                self._process.terminate()
                if not self._ended_within(_TERM_PATIENCE_S):
                    self._process.kill()
        self._process.join()
        self._drain()
        _running.discard(self)
        return self.exitcode

    def kill(self) -> None:
        """End the child at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            _running.discard(self)

    def close(self) -> None:
        """Stop the child if need be and let go of the pipe; `messages()` is empty from then on."""
        self.stop(0.0)
        if self._channel is not None:
            self._channel.close()

    def _started(self) -> Any:
        if self._process is None:
            raise LabError(f"host {self.name} has not been started: call start() first")
        return self._process

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.alive:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            watched = [self._process.sentinel] if self._concluded else [self._process.sentinel, self._channel]
            wait(watched, left)
            self._drain()
        return True

    def _drain(self) -> None:
        channel = self._channel
        if channel is None or channel.closed:
            return
        try:
            while not self._concluded and channel.poll():
                self._pending.append(channel.recv())
        except (EOFError, OSError):
            self._concluded = True
            if not any(isinstance(message, Finished | Failed) for message in self._pending) and not self._said_last:
                self._pending.append(Failed(self.name, self._how_it_ended()))
        if any(isinstance(message, Finished | Failed) for message in self._pending):
            self._said_last = True

    _said_last = False

    def _how_it_ended(self) -> str:
        self._process.join(_TERM_PATIENCE_S)
        code = self.exitcode
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"closed its pipe without a last word (exit status {code})"


def _child(parent: int, host: HostProcess, theirs: Connection, channel: Connection) -> None:
    """The first thing that runs after fork."""
    die_with_parent(parent)
    if host._namespaces:
        host._namespaces[0].join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    status = 1
    try:
        theirs.close()
        for other in list(_running):
            other.channel.close()
        _running.clear()
        keep_only(host._namespaces)
        host._main(channel, host._spec)
        status = 0
    except (BrokenPipeError, EOFError, ConnectionResetError):
        pass
    except BaseException as error:
        _report(channel, host.name, error)
    finally:
        _kill_all()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _report(channel: Connection, name: str, error: BaseException) -> None:
    if not isinstance(error, LabError):
        traceback.print_exception(error)
    text = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        channel.send(Failed(name, " ".join(text.split())))


def _kill_all() -> None:
    """At exit: nothing this process started outlives it, even when nobody called stop()."""
    for host in list(_running):
        host.kill()


atexit.register(_kill_all)
