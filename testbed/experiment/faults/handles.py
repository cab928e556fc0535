"""What a topology script holds on to when it declares faults: the link, storage, process or memory of one host.

A handle has a method for each kind of fault there is, which takes the numbers of that kind:
`link.loss(probability=0.1)`, `process.kill(data="lost")`, `memory.min_free_kbytes(kbytes=256)`. What
it returns is for `topology.at`. `clear(kind)` ends what was set; some kinds have a word of their own for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from testbed.experiment.faults.kinds import KINDS, check_arguments
from testbed.experiment.faults.step import Action, BadSchedule, Layer, Step
from testbed.experiment.topology import TopologyError


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one host that begins, or those of one kind that end; `topology.at` says when."""

    action: Action
    target: str
    kind: str
    arguments: dict[str, Any]

    def step(self, seconds: float) -> Step:
        """This, so many seconds after the start of the workload."""
        return Step(seconds, self.action, self.target, self.kind, dict(self.arguments))

    def end(self, seconds: float) -> Step:
        """The end of this. Raises TopologyError if it is one."""
        if self.action == "clear":
            raise TopologyError(f"{self.target}: what ends {self.kind} does not end itself: leave out `until`")
        return Step(seconds, "clear", self.target, self.kind)


class Handle:
    """What can go wrong with one part of `host`. Every mistake is a TopologyError."""

    layer: ClassVar[Layer]

    def __init__(self, host: str) -> None:
        self._host = host

    def clear(self, kind: str) -> Fault:
        """End all faults of a kind."""
        self._check(kind)
        return Fault("clear", self._host, kind, {})

    def __getattr__(self, kind: str) -> Callable[..., Fault]:
        if kind.startswith("_"):
            raise AttributeError(kind)
        self._check(kind)

        def fault(**arguments: Any) -> Fault:
            try:
                check_arguments(kind, arguments)
            except BadSchedule as error:
                raise TopologyError(f"{self.layer} of {self._host}: {error}") from None
            return Fault("set", self._host, kind, arguments)

        return fault

    def _check(self, kind: str) -> None:
        kinds = KINDS[self.layer]
        if kind not in kinds:
            raise TopologyError(
                f"{self.layer} of {self._host}: there is no fault {kind!r}: choose one of {', '.join(kinds)}"
            )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *KINDS[self.layer]]


class Link(Handle):
    """The link between a host and the others.

    Every fault takes `direction`, which is "both" unless it says "to" the host or "from" it, and some take
    `netem=True`, which leaves them to the kernel's netem.
    """

    layer = "link"

    def heal(self) -> Fault:
        """End its partition."""
        return self.clear("partition")


class Storage(Handle):
    """What a server keeps, and how it answers."""

    layer = "storage"


class Process(Handle):
    """The process that a host is."""

    layer = "process"

    def restart(self) -> Fault:
        """Start a killed server again."""
        return self.clear("kill")

    def resume(self) -> Fault:
        """Let a paused one go on."""
        return self.clear("pause")


class Memory(Handle):
    """The memory of a client."""

    layer = "memory"
