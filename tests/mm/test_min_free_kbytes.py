"""Writers of min_free_kbytes: with patch 01 all zones agree in the end, without it they need not."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.mm.min_free_kbytes import MinFreeKbytes
from testbed.mm.sched import Task
from testbed.mm.watermarks import lowmem, zone_watermarks
from testbed.patches import Switches
from tests.mm.machine import SERIES, without
from tests.mm.zones import DMA, DMA32, HIGHMEM, NORMAL, allocator
from tests.virtual_time import simulate

ZONES = ((DMA, 0, 16), (DMA32, 0, 32), (NORMAL, 0, 32), (HIGHMEM, 0, 64))
UNSERIALIZED = without(serialize_min_free_kbytes=False)


Writer = tuple[int, int, int]
"""Turns of the event loop until it writes, its nice value, and the KiB that it writes."""


class Host:
    """The zones, the sysctl, and writers who come at different moments."""

    def __init__(self, switches: Switches) -> None:
        self.page_alloc = allocator(*ZONES, switches=switches, min_free_kbytes=32)
        self.min_free_kbytes = MinFreeKbytes(self.page_alloc.zones, self.page_alloc.vmstat, switches)

    async def write_all(self, writers: list[Writer]) -> None:
        async def write(turns: int, nice: int, value: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await self.min_free_kbytes.write(value, Task("writer", nice=nice))

        await asyncio.gather(*(write(*writer) for writer in writers))

    def values(self) -> list[int]:
        return [zone.watermarks.min_free_kbytes for zone in self.page_alloc.zones]


WRITERS = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from([0, -1]), st.integers(200, 2000)), min_size=1, max_size=6
)


@given(WRITERS)
def test_with_patch_01_all_zones_have_the_watermarks_of_one_value(writers: list[Writer]) -> None:
    async def main() -> None:
        host = Host(SERIES)
        await host.write_all(writers)
        (value,) = set(host.values())
        assert value in {value for _turns, _nice, value in writers}
        assert value == host.min_free_kbytes.value
        spans = [zone.span for zone in host.page_alloc.zones]
        expected = [zone_watermarks(span, lowmem(spans), value) for span in spans]
        assert [zone.watermarks for zone in host.page_alloc.zones] == expected
        assert host.page_alloc.vmstat.wmark_setups_torn == 0

    simulate(main())


@given(WRITERS)
def test_a_torn_set_is_counted_if_and_only_if_there_is_one(writers: list[Writer]) -> None:
    async def main() -> None:
        host = Host(UNSERIALIZED)
        await host.write_all(writers)
        torn = len(set(host.values())) > 1
        assert host.page_alloc.vmstat.wmark_setups_torn >= torn
        if len(writers) == 1:
            assert not torn
        assert host.page_alloc.vmstat.wmark_setups_serialized == 0

    simulate(main())


@pytest.mark.parametrize(("switches", "torn", "serialized"), [(SERIES, 0, 1), (UNSERIALIZED, 1, 0)])
def test_two_writers_at_once(switches: Switches, torn: int, serialized: int) -> None:
    async def main() -> None:
        host = Host(switches)
        await host.write_all([(0, 0, 1000), (2, -1, 2000)])
        vmstat = host.page_alloc.vmstat
        assert (vmstat.wmark_setups_torn, vmstat.wmark_setups_serialized) == (torn, serialized)
        assert (len(set(host.values())) > 1) == bool(torn)

    simulate(main())


def test_requests_obey_the_new_watermarks_at_once() -> None:
    async def main() -> None:
        host = Host(SERIES)
        chance = random.Random(1)
        for _ in range(5):
            value = chance.randrange(200, 2000)
            await host.min_free_kbytes.write(value, Task("administrator"))
            for zone in host.page_alloc.zones:
                assert zone.marks[0][HIGHMEM] == zone.watermarks.min + zone.lowmem_reserve[HIGHMEM]

    simulate(main())
