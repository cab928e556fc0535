"""Random operations on a whole node; after each, everything is counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from testbed.mm.gfp import (
    GFP_ATOMIC,
    GFP_KERNEL,
    GFP_MEMALLOC,
    GFP_NOIO,
    GFP_NOMEMALLOC,
    gfp_pfmemalloc_allowed,
    gfp_to_alloc_flags,
)
from testbed.mm.memory import BusError, Killed, Vma
from testbed.mm.sched import Task
from testbed.mm.slab_common import Slab
from testbed.mm.watermarks import PAGE_SIZE
from testbed.mm.zone import lowered_mark
from testbed.patches import PRESETS, Switches
from tests.mm.census import check_pages, check_rss, check_swap
from tests.mm.machine import SERIES, VANILLA, Machine, without
from tests.virtual_time import VirtualTimeLoop

RAM_PAGES = 192
USERS = 4
PAGES_EACH = 120
CALLERS = st.tuples(
    st.sampled_from(
        [
            GFP_KERNEL,
            GFP_NOIO,
            GFP_ATOMIC,
            GFP_ATOMIC | GFP_NOMEMALLOC,
            GFP_ATOMIC | GFP_MEMALLOC,
            GFP_ATOMIC | GFP_MEMALLOC | GFP_NOMEMALLOC,
        ]
    ),
    st.booleans(),
)


class User:
    """A task that does one thing at a time with its pages, and knows what each must hold."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lives = 0
        self.start()

    def start(self) -> None:
        """A new task with empty memory."""
        self.lives += 1
        self.vma = Vma(Task(f"user{self.number}"), PAGES_EACH)
        self.expected: dict[int, bytes] = {}
        self.work: asyncio.Task[None] | None = None


class NodeMachine(RuleBasedStateMachine):
    """Users fault, kernel code takes pages and objects, the device completes in any order or fails."""

    switches: Switches = SERIES
    slab = "slub"

    @initialize(
        preset=st.sampled_from(sorted(PRESETS)),
        page_cache=st.sampled_from([0, 30]),
        free=st.sampled_from([4, 14, 24, 36, 100]),
    )
    def boot(self, preset: str, page_cache: int, free: int) -> None:
        """Users have written much more than fits by the time the random operations begin, in some kernel or other."""
        self.loop = VirtualTimeLoop()
        self.switches = replace(self.switches, rules=PRESETS[preset].rules)
        self.machine = Machine(
            RAM_PAGES,
            self.switches,
            swap_pages=700,
            delay=None,
            min_free_kbytes=128,
            page_cache=page_cache,
            slab=self.slab,
        )
        self.node = self.machine.node
        self.objects: list[Slab] = []
        self.users = [User(number) for number in range(USERS)]
        self.node.oom_killer.tasks |= {user.vma.owner for user in self.users}
        self.kswapd = self.loop.create_task(self.node.kswapd.run())
        for user in self.users:
            user.work = self.loop.create_task(self._touch(user, range(PAGES_EACH), True))
        for _ in range(40):
            self.complete_all()
        self.machine.drain(free)

    def let_time_pass(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(caller=CALLERS, count=st.integers(1, 12))
    def take_pages(self, caller: tuple[int, bool], count: int) -> None:
        gfp_mask, pf_memalloc = caller
        current = Task("kernel", pf_memalloc=pf_memalloc)
        for _ in range(count):
            before = self.machine.free
            page = self.node.page_alloc.alloc_page_nowait(gfp_mask, current)
            entitled = gfp_pfmemalloc_allowed(gfp_mask, current, self.switches)
            flags = gfp_to_alloc_flags(gfp_mask, current, self.switches)
            allowed = before > lowered_mark(self.node.zone.watermarks.min, flags)
            assert (page is not None) == (allowed or (entitled and before > 0))
            if page is not None:
                assert page.from_reserve == (not allowed)
                self.machine.held.append(page)

    @rule(count=st.integers(1, 30))
    def free_pages(self, count: int) -> None:
        self.machine.give_back(min(count, len(self.machine.held)))

    @rule(caller=CALLERS, size=st.sampled_from([256, 512, 2048]), count=st.integers(1, 20), bulk=st.booleans())
    def take_objects(self, caller: tuple[int, bool], size: int, count: int, bulk: bool) -> None:
        gfp_mask, pf_memalloc = caller
        current = Task("kernel", pf_memalloc=pf_memalloc)
        cache = self.node.kmalloc_cache(size)
        if bulk:
            taken = cache.alloc_bulk(count, gfp_mask, current)
        else:
            taken = [slab for _ in range(count) if (slab := cache.alloc(gfp_mask, current)) is not None]
        if not self.switches.slub_unchecked_fast_path and not gfp_pfmemalloc_allowed(gfp_mask, current, self.switches):
            assert not any(slab.pfmemalloc for slab in taken)
        self.objects += taken

    @precondition(lambda self: self.objects)
    @rule(data=st.data(), count=st.integers(1, 30))
    def free_objects(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.objects))):
            slab = self.objects.pop(data.draw(st.integers(0, len(self.objects) - 1)))
            slab.cache.free(slab)

    @rule(number=st.integers(0, USERS - 1), first=st.integers(0, PAGES_EACH - 1), write=st.booleans())
    def touch(self, number: int, first: int, write: bool) -> None:
        user = self.users[number]
        if user.work is None or user.work.done():
            user.work = self.loop.create_task(self._touch(user, range(first, min(first + 40, PAGES_EACH)), write))
            self.let_time_pass(0.001)

    async def _touch(self, user: User, indices: range, write: bool) -> None:
        vma = user.vma
        for index in indices:
            try:
                page = await self.node.memory.handle_mm_fault(vma.owner, vma, index, write)
            except BusError:
                continue
            except Killed:
                self._exit(user)
                return
            if page is None:
                assert index not in user.expected
            elif write:
                stamp = (user.number, user.lives, index, len(user.expected))
                user.expected[index] = repr(stamp).encode().ljust(PAGE_SIZE)
                page.buffer[:] = user.expected[index]
            elif index in user.expected:
                assert page.buffer == user.expected[index]
            else:
                assert page.buffer == bytes(PAGE_SIZE)

    def _exit(self, user: User) -> None:
        self.node.memory.exit_mmap(user.vma)
        assert user.vma.owner.rss == 0
        self.node.oom_killer.tasks.discard(user.vma.owner)
        user.start()
        self.node.oom_killer.tasks.add(user.vma.owner)

    @rule(number=st.integers(0, USERS - 1))
    def exit_task(self, number: int) -> None:
        user = self.users[number]
        if user.work is not None and not user.work.done():
            user.work.cancel()
            self.let_time_pass(0.001)
        self._exit(user)

    @precondition(lambda self: self.machine.device.pending)
    @rule(data=st.data(), error=st.sampled_from([0, 0, 0, 5]))
    def complete_one(self, data: st.DataObject, error: int) -> None:
        pending = self.machine.device.pending
        self.machine.device.complete(pending[data.draw(st.integers(0, len(pending) - 1))], error)
        self.let_time_pass(0.001)

    @rule()
    def complete_all(self) -> None:
        for request in list(self.machine.device.pending):
            self.machine.device.complete(request)
        self.let_time_pass(0.2)

    @rule(seconds=st.sampled_from([0.01, 1.5]))
    def wait(self, seconds: float) -> None:
        self.let_time_pass(seconds)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        vmas = [user.vma for user in self.users]
        check_pages(self.node, self.machine.held, self.objects)
        check_swap(self.node, vmas)
        check_rss(vmas)
        assert not self.kswapd.done()
        for user in self.users:
            if user.work is not None and user.work.done() and not user.work.cancelled():
                user.work.result()

    def teardown(self) -> None:
        try:
            for number in range(USERS):
                self.exit_task(number)
            self.machine.give_back()
            for slab in self.objects:
                slab.cache.free(slab)
            self.objects.clear()
            self.kswapd.cancel()
            while self.machine.device.pending:
                self.complete_all()
            self.node.drop_caches()
            check_swap(self.node, ())
            assert (self.node.pages_leaked(), self.node.swap.inuse_pages) == (0, 0)
        finally:
            rest: set[asyncio.Task[Any]] = asyncio.all_tasks(self.loop)
            for task in rest:
                task.cancel()
            self.let_time_pass(0)
            self.loop.close()


class StrictNodeMachine(NodeMachine):
    """Without patch 03: an unentitled caller never gets an object from the reserve."""

    switches = without(slub_unchecked_fast_path=False)


class SlabNodeMachine(NodeMachine):
    """With SLAB."""

    slab = "slab"


class VanillaNodeMachine(NodeMachine):
    """Without any patch."""

    switches = VANILLA


PROFILE = settings(max_examples=40, stateful_step_count=50)
TestNode = NodeMachine.TestCase
TestNode.settings = PROFILE
TestStrictNode = StrictNodeMachine.TestCase
TestStrictNode.settings = PROFILE
TestVanillaNode = VanillaNodeMachine.TestCase
TestVanillaNode.settings = PROFILE
TestSlabNode = SlabNodeMachine.TestCase
TestSlabNode.settings = PROFILE
