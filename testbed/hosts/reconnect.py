"""The program in user space that opens the connections of the NBD device, and new ones in place of those that die.

It is an ordinary program: until the kernel has taken its socket over, that is no SOCK_MEMALLOC socket, and what comes
for it in reserve memory is dropped like anybody's. It tries again for as long as the device is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from testbed.hosts.nbd_device import NbdDevice
from testbed.lab.errors import LabError

RETRY_S = 0.1
RETRY_MOST_S = 2.0
"""The wait between two attempts begins with the one and doubles up to the other."""

Say = Callable[[str, dict[str, Any]], None]
Connect = Callable[[int], Awaitable[None]]
"""Opens connection number so and so, and gives it to the device. Raises LabError."""


class Reconnect:
    """Watches `device` and calls `connect`; `say` is told what happens."""

    def __init__(self, device: NbdDevice, connect: Connect, say: Say) -> None:
        self._connect = connect
        self._say = say
        self._dead: asyncio.Queue[int] = asyncio.Queue()
        device.on_dead = self._on_dead

    def _on_dead(self, number: int, why: str) -> None:
        """NBD_CMD_LINK_DEAD."""
        self._say("nbd_connection_lost", {"connection": number, "why": why})
        self._dead.put_nowait(number)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            number = await self._dead.get()
            began, wait, attempts = loop.time(), RETRY_S, 1
            while not await self._attempt(number):
                await asyncio.sleep(wait)
                wait, attempts = min(2 * wait, RETRY_MOST_S), attempts + 1
            seconds = round(loop.time() - began, 3)
            self._say("nbd_reconnected", {"connection": number, "seconds": seconds, "attempts": attempts})

    async def _attempt(self, number: int) -> bool:
        try:
            await self._connect(number)
        except LabError:
            return False
        return True
