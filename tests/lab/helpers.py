"""Waiting for things, and looking at what the machine still has."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def eventually(condition: Callable[[], object], deadline_s: float = 10.0, what: str = "the condition") -> None:
    """Return once `condition()` is true; fail when it is not within the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what} was not met within {deadline_s:g} s"
        time.sleep(0.002)


def processes_in(inode: int) -> list[int]:
    """The processes whose network namespace has this inode number."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == inode:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def holders_of(inode: int) -> list[int]:
    """The processes in a network namespace or with a descriptor of it."""
    found = set(processes_in(inode))
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if entry.readlink().as_posix() == f"net:[{inode}]":
                found.add(int(entry.parts[2]))
        except OSError:
            continue
    return sorted(found)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not just waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
