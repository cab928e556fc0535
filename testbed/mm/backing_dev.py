"""Congestion of the queue of writes (mm/backing-dev.c, until 5.16): who waits for it is woken as it goes away."""

from __future__ import annotations

from testbed.mm.vmstat import VmStat
from testbed.mm.wait import WaitQueue


class BackingDev:
    """`struct backing_dev_info` of the swap device, for asynchronous writes. The device says when it is congested."""

    __slots__ = ("_congestion_wqh", "vmstat")

    def __init__(self, vmstat: VmStat) -> None:
        self.vmstat = vmstat
        self._congestion_wqh = WaitQueue()

    def set_bdi_congested(self) -> None:
        """Most of the queue's requests are taken."""
        self.vmstat.nr_bdi_congested = 1

    def clear_bdi_congested(self) -> None:
        """Enough requests are free (again): wakes everybody in `congestion_wait`, had it been congested or not."""
        self.vmstat.nr_bdi_congested = 0
        self._congestion_wqh.wake_all()

    async def congestion_wait(self, timeout: float, nice: int = 0) -> None:
        """Sleep until a write ends that leaves the queue uncongested, at most `timeout` seconds."""
        await self._congestion_wqh.wait(timeout, nice)
