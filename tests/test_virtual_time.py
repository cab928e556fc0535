"""The clock that all other tests of the models rely on."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from tests.virtual_time import Livelock, Stuck, is_blocked, now, simulate


def test_an_hour_passes_at_once() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return now()

    started = time.monotonic()
    assert simulate(main()) == pytest.approx(3600)
    assert time.monotonic() - started < 1


def test_timers_fire_in_order_of_time() -> None:
    fired: list[int] = []

    async def sleeper(seconds: int) -> None:
        await asyncio.sleep(seconds)
        fired.append(seconds)

    async def main() -> None:
        await asyncio.gather(*(sleeper(seconds) for seconds in (5, 1, 3)))

    simulate(main())
    assert fired == [1, 3, 5]


def test_waiting_for_nobody_is_stuck() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck):
        simulate(main())


def test_a_busy_loop_is_a_livelock() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        simulate(main())


def test_an_interruption_is_raised_and_no_more_said(caplog: pytest.LogCaptureFixture) -> None:
    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        task = asyncio.create_task(interrupted())
        await asyncio.sleep(1)
        await task

    with pytest.raises(KeyboardInterrupt):
        simulate(main())
    gc.collect()
    assert caplog.records == []


def test_is_blocked_tells_a_sleeper_from_one_who_returns() -> None:
    async def main() -> tuple[bool, bool]:
        long, short = asyncio.create_task(asyncio.sleep(10)), asyncio.create_task(asyncio.sleep(1))
        return await is_blocked(long, 5), await is_blocked(short, 5)

    assert simulate(main()) == (True, False)
