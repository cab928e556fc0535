"""A virtual machine on the client: its emulator reads what the client's bridge sends out by its tap interface.

The emulator is a task like any other: unless all of it stays in memory, it must have pages of its own before it can
read. A machine that is stopped reads nothing.
"""

from __future__ import annotations

import asyncio

from testbed.hosts.plan import VirtualMachinePlan
from testbed.hosts.working_set import WorkingSet
from testbed.mm.memory import BusError, Killed, Memory
from testbed.mm.sched import Task
from testbed.net.skbuff import SkbMemory
from testbed.net.tun import Tun


class VirtualMachine:
    """The machine of `plan`, and its tap interface."""

    def __init__(self, plan: VirtualMachinePlan, skb_memory: SkbMemory) -> None:
        self.plan = plan
        self.tun = Tun(f"vm:{plan.name}", skb_memory, plan.tx_queue_len)

    async def run(self, memory: Memory) -> None:
        """Read as the plan says, time and again; of a stopped machine nobody does."""
        if self.plan.reader == "never":
            return
        working_set = WorkingSet(Task(self.plan.name), memory)
        readable = asyncio.Event()
        self.tun.on_readable = readable.set
        try:
            while True:
                await readable.wait()
                readable.clear()
                if self.plan.reader == "faulting":
                    await working_set.touch()
                self.tun.tun_do_read()
        except (Killed, BusError):
            return
        finally:
            working_set.free()
