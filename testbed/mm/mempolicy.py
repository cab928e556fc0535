"""Memory policies of tasks (mm/mempolicy.c): on which nodes a task wants its memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

Mode = Literal["bind", "preferred", "interleave"]
MODES: Final[dict[str, Mode]] = {"bind": "bind", "prefer": "preferred", "interleave": "interleave"}
"""As `mpol=` and numactl call them."""


@dataclass(slots=True)
class Mempolicy:
    """`struct mempolicy`: "bind" allows no other nodes, "preferred" and "interleave" only begin with one of these."""

    mode: Mode
    nodes: tuple[int, ...]
    _next: int = field(default=0, compare=False)

    def __init__(self, mode: Mode, nodes: Iterable[int]) -> None:
        self.mode = mode
        self.nodes = tuple(sorted(set(nodes)))
        self._next = 0
        if not self.nodes:
            raise ValueError(f"a {mode} policy needs a node")

    def first_node(self, local: int) -> int:
        """The node whose zonelist serves the next request of a task on node `local` (`policy_zonelist`)."""
        if self.mode == "bind":
            return local
        if self.mode == "preferred":
            return self.nodes[0]
        self._next = (self._next + 1) % len(self.nodes)
        return self.nodes[self._next - 1]


def mpol_parse_str(text: str) -> Mempolicy:
    """`mpol_parse_str`: "bind:1", "prefer:0" or "interleave:0,1". Raises ValueError with what is wrong."""
    mode, _colon, nodes = text.partition(":")
    if mode not in MODES:
        raise ValueError(f"{text!r} is no memory policy: it begins with one of {', '.join(MODES)}")
    numbers = nodes.split(",")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"{text!r} names no nodes: write {mode}:1 or {mode}:0,1")
    if mode == "prefer" and len(numbers) > 1:
        raise ValueError(f"{text!r} prefers several nodes: name one")
    return Mempolicy(MODES[mode], map(int, numbers))
