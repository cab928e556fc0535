"""Reclaim over two zones put together by hand, the lower one first."""

from __future__ import annotations

from testbed.mm.bio import BIO_SIZE, BioSet
from testbed.mm.kswapd import Kswapd
from testbed.mm.lruvec import Lruvec
from testbed.mm.page_alloc import PageAllocator
from testbed.mm.page_io import SwapIO
from testbed.mm.slub import KmemCache
from testbed.mm.swap_state import RADIX_TREE_NODE_SIZE, SwapCache
from testbed.mm.swapfile import SwapInfo
from testbed.mm.vmscan import Vmscan
from testbed.mm.vmstat import VmStat
from testbed.mm.watermarks import PAGE_SIZE, Watermarks
from testbed.mm.zone import Zone
from testbed.mm.zone_layout import ZoneSpan, ZoneType
from testbed.patches import Switches
from tests.mm.machine import FakeSwapDevice

MARKS = Watermarks(400, 100, 125, 150)


class TwoZones:
    """A lower zone and an upper one of kind `upper`, 1000 pages each, all free, min 100, low 125 and high 150."""

    def __init__(self, switches: Switches, *, upper: ZoneType = ZoneType.NORMAL) -> None:
        ram = memoryview(bytearray(2000 * PAGE_SIZE))
        self.lower, self.upper = (
            Zone(ram, MARKS, ZoneSpan(kind, 0, start, 1000)) for kind, start in ((ZoneType.DMA32, 0), (upper, 1000))
        )
        page_alloc = PageAllocator([self.lower, self.upper], VmStat(), switches)
        cache = SwapCache(SwapInfo(4000), KmemCache("radix_tree_node", RADIX_TREE_NODE_SIZE, page_alloc))
        device = FakeSwapDevice(4000, 0.001)
        device.swap_io = SwapIO(page_alloc, cache, device, BioSet(KmemCache("bio-0", BIO_SIZE, page_alloc)))
        self.vmscan = Vmscan(page_alloc, cache, device.swap_io)
        self.kswapd = Kswapd(self.vmscan)

    def lruvec(self, zone: Zone) -> Lruvec:
        """The lists of a zone."""
        return self.vmscan.pgdat.lruvecs[self.vmscan.pgdat.zones.index(zone)]


def take(zone: Zone, *, free: int, file: int = 0) -> None:
    """Leave `free` pages of the zone free, make `file` of the others page cache, and hold the rest."""
    zone.file.update(dict.fromkeys(zone.free.take(file)))
    zone.free.take(zone.nr_free_pages - free)
