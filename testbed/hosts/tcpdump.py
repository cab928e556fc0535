"""A running tcpdump on the client: a packet socket that gets a clone of every frame, and a task that reads it.

It is a task like any other: before it can read it must have some of its own pages, which may be in swap. So its socket
holds receive memory just when there is none, unless the frames in reserve memory are kept from it (patch 12).
"""

from __future__ import annotations

import asyncio

from testbed.hosts.working_set import WorkingSet
from testbed.mm.memory import BusError, Killed, Memory
from testbed.mm.sched import Task
from testbed.net.dev import NetDevice
from testbed.net.sock import Sock

READ_TIMEOUT = 0.1
"""Seconds between two reads: libpcap hands frames over in batches, at the latest after this long."""


class Tcpdump:
    """A tap on `device` with a receive buffer of `rcvbuf` bytes."""

    def __init__(self, device: NetDevice, rcvbuf: int) -> None:
        self.device = device
        self.sk = Sock("tcpdump", rcvbuf)
        device.ptype_all.append(self.sk)

    async def run(self, memory: Memory) -> None:
        """Read all there is, time and again, each time after touching the next few pages of the program."""
        working_set = WorkingSet(Task("tcpdump"), memory)
        try:
            while True:
                await asyncio.sleep(READ_TIMEOUT)
                await working_set.touch()
                self.device.read_datagrams(self.sk, len(self.sk.receive_queue))
        except (Killed, BusError):
            return
        finally:
            working_set.free()
