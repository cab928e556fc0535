"""Virtual time for tests: the package's own loop, and a few questions that tests ask of it."""

from __future__ import annotations

import asyncio
from typing import Any

from testbed.simulation.virtual_time import Livelock, Stuck, VirtualTimeLoop, simulate

__all__ = ["Livelock", "Stuck", "VirtualTimeLoop", "is_blocked", "now", "simulate"]


def now() -> float:
    """Virtual seconds since the start."""
    return asyncio.get_running_loop().time()


async def is_blocked(task: asyncio.Task[Any], seconds: float) -> bool:
    """Does `task` still not return after that many virtual seconds?"""
    await asyncio.wait([task], timeout=seconds)
    return not task.done()
