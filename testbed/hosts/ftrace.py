"""The text of a trace as the kernel's ftrace prints it: a line for each event, with task, time, name and fields.

`trace-cmd report`, editors and eyes that know `/sys/kernel/tracing/trace` read it without learning anything.
"""

from __future__ import annotations

from typing import IO

from testbed.mm import gfp

HEADER = """# tracer: nop
#
#                                _-----=> irqs-off
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| /
#           TASK-PID     CPU#  ||||   TIMESTAMP  FUNCTION
#              | |         |   ||||      |         |
"""
_COMPOSITES = ("GFP_KERNEL", "GFP_NOFS", "GFP_NOIO")
_FLAGS = {
    gfp.GFP_HIGH: "GFP_HIGH",
    gfp.GFP_IO: "GFP_IO",
    gfp.GFP_FS: "GFP_FS",
    gfp.GFP_WAIT: "GFP_WAIT",
    gfp.GFP_NOWARN: "GFP_NOWARN",
    gfp.GFP_NOFAIL: "GFP_NOFAIL",
    gfp.GFP_NORETRY: "GFP_NORETRY",
    gfp.GFP_MEMALLOC: "GFP_MEMALLOC",
    gfp.GFP_NOMEMALLOC: "GFP_NOMEMALLOC",
}


def show_gfp_flags(gfp_mask: int) -> str:
    """A mask as the tracepoints print it (`show_gfp_flags`, 3.6): the composite it contains, then single flags."""
    names = []
    for name in _COMPOSITES:
        value: int = getattr(gfp, name)
        if gfp_mask & value == value:
            names.append(name)
            gfp_mask &= ~value
            break
    if gfp_mask & gfp.GFP_HIGH and not names:
        names.append("GFP_ATOMIC")
        gfp_mask &= ~gfp.GFP_HIGH
    names += [name for flag, name in _FLAGS.items() if gfp_mask & flag]
    return "|".join(names) or "GFP_NOWAIT"


class Ftrace:
    """Writes events to `file`, which it leaves open. Process ids are given out in the order tasks first appear."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._pids: dict[str, int] = {}
        file.write(HEADER)

    def event(self, time: float, task: str, softirq: bool, name: str, fields: str) -> None:
        """One line. `time` is in seconds."""
        pid = self._pids.setdefault(task, len(self._pids) + 1)
        context = "..s." if softirq else "...."
        self._file.write(f"{task[:16]:>16}-{pid:<7} [000] {context} {time:12.6f}: {name}: {fields}\n")
