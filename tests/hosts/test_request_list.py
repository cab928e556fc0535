"""The number of requests: who waits, when the queue is congested, and what one request holds."""

from __future__ import annotations

import asyncio

import pytest

from testbed.hosts.request_list import RequestList
from testbed.mm.backing_dev import BackingDev
from testbed.mm.vmstat import VmStat
from testbed.rules import LINUX_3_6, LINUX_6_1
from tests.virtual_time import is_blocked, simulate


def request_list(*, shared: bool) -> RequestList:
    requests = RequestList(128, shared=shared)
    requests.bdi = BackingDev(VmStat())
    return requests


async def take(requests: RequestList, count: int, *, write: bool) -> None:
    for _ in range(count):
        assert await requests.get_request(write, 0)


@pytest.mark.parametrize(("shared", "readers_wait"), [(False, False), (True, True)])
def test_the_129th_writer_sleeps_and_so_do_readers_if_they_share(shared: bool, readers_wait: bool) -> None:
    async def main() -> None:
        requests = request_list(shared=shared)
        await take(requests, 128, write=True)
        writer = asyncio.create_task(requests.get_request(True, 0))
        reader = asyncio.create_task(requests.get_request(False, 0))
        assert await is_blocked(writer, 60)
        assert await is_blocked(reader, 60) == readers_wait
        requests.freed_request(True)
        assert not await is_blocked(writer, 1)
        requests.freed_request(True)
        assert not await is_blocked(reader, 1)

    simulate(main())


def test_congested_from_113_writes_on_until_fewer_than_103() -> None:
    async def main() -> None:
        requests = request_list(shared=False)
        vmstat = requests.bdi.vmstat
        await take(requests, 112, write=True)
        assert not vmstat.nr_bdi_congested
        await take(requests, 1, write=True)
        assert vmstat.nr_bdi_congested
        for _ in range(113 - 103):
            requests.freed_request(True)
        assert vmstat.nr_bdi_congested
        requests.freed_request(True)
        assert not vmstat.nr_bdi_congested

    simulate(main())


@pytest.mark.parametrize(("shared", "write"), [(False, False), (True, True), (True, False)])
def test_neither_reads_nor_shared_tags_congest(shared: bool, write: bool) -> None:
    async def main() -> None:
        requests = request_list(shared=shared)
        await take(requests, 128, write=write)
        assert not requests.bdi.vmstat.nr_bdi_congested

    simulate(main())


def test_whoever_waits_for_a_request_of_a_closed_device_gets_none() -> None:
    async def main() -> None:
        requests = request_list(shared=False)
        await take(requests, 128, write=True)
        writer = asyncio.create_task(requests.get_request(True, 0))
        await asyncio.sleep(1)
        requests.close()
        assert not await writer
        assert not await requests.get_request(False, 0)

    simulate(main())


def test_the_kernels_differ_in_number_tags_and_size() -> None:
    assert (LINUX_3_6.nr_requests, LINUX_3_6.shared_tags, LINUX_3_6.max_sectors_kb) == (128, False, 127.5)
    assert (LINUX_6_1.nr_requests, LINUX_6_1.shared_tags, LINUX_6_1.max_sectors_kb) == (256, True, 128)
