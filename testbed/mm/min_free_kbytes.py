"""/proc/sys/vm/min_free_kbytes: setting the watermarks of all zones while the machine runs (patch 01).

`setup_per_zone_wmarks` goes from zone to zone, and an ordinary writer may be preempted after each by another, who
writes another value. With patch 01 the second waits for the first; without it their steps mix, and the zones may be
left with watermarks of different values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from testbed.mm.sched import Task
from testbed.mm.vmstat import VmStat
from testbed.mm.watermarks import lowmem, zone_watermarks
from testbed.mm.zone import Zone
from testbed.patches import Switches


class MinFreeKbytes:
    """`value` is in KiB; whoever changes it (an administrator, khugepaged, memory hotplug) calls `write`."""

    def __init__(self, zones: Sequence[Zone], vmstat: VmStat, switches: Switches) -> None:
        self.value = zones[0].watermarks.min_free_kbytes
        self._zones = zones
        self._vmstat = vmstat
        self._switches = switches
        self._zonelists_mutex = asyncio.Lock()
        self._writers = 0

    async def write(self, value: int, current: Task) -> None:
        """`min_free_kbytes_sysctl_handler`: set the value, then the watermarks."""
        self.value = value
        await self.setup_per_zone_wmarks(current)

    async def setup_per_zone_wmarks(self, current: Task) -> None:
        """Recompute every zone's watermarks; with patch 01 under zonelists_mutex."""
        if not self._switches.serialize_min_free_kbytes:
            self._vmstat.wmark_setups_mixed += self._writers > 0
            await self._setup_per_zone_wmarks(current)
            return
        self._vmstat.wmark_setups_serialized += self._zonelists_mutex.locked()
        async with self._zonelists_mutex:
            await self._setup_per_zone_wmarks(current)

    async def _setup_per_zone_wmarks(self, current: Task) -> None:
        """`__setup_per_zone_wmarks`: the value is read once, at the beginning."""
        min_free_kbytes = self.value
        lowmem_pages = lowmem([zone.span for zone in self._zones])
        self._writers += 1
        try:
            for zone in self._zones:
                zone.set_watermarks(zone_watermarks(zone.span, lowmem_pages, min_free_kbytes, self._switches.rules))
                if current.nice >= 0:
                    await asyncio.sleep(0)
        finally:
            self._writers -= 1
        if not self._writers and len({zone.watermarks.min_free_kbytes for zone in self._zones}) > 1:
            self._vmstat.wmark_setups_torn += 1
