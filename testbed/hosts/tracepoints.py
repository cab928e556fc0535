"""The kernel's tracepoints, attached to the models of one client while it is traced.

Each model function that the kernel traces is wrapped on the object, so that a client that is not traced pays nothing
and the models know nothing of it. Text goes to an `Ftrace`; what lasts, and what is counted, also to a `Timeline`.
Names and fields are those of 3.6 or of 6.1, as far as the model knows them; nbd's, which 3.6 had not got, are there
always. Page allocation and freeing are in the text only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from testbed.hosts.ftrace import Ftrace, show_gfp_flags
from testbed.hosts.hardware_queue import Request
from testbed.hosts.nbd_device import Channel, NbdDevice
from testbed.hosts.nbd_sock import NbdSock
from testbed.hosts.plan import TracePlan
from testbed.hosts.timeline import Timeline
from testbed.mm.node import Node
from testbed.mm.page import Page
from testbed.mm.scan_control import ScanControl
from testbed.mm.sched import Task
from testbed.mm.stall import Reason, ReclaimThrottle
from testbed.net.dev import NetDevice, Tally
from testbed.net.drop_reason import SITES, DropReason
from testbed.rules import Rules

COUNTERS = ("nr_free_pages", "nr_writeback", "nr_throttled", "pswpin", "pswpout", "rx_ring_filled", "PFMemallocDrop")
"""What the timeline shows as curves."""
SOFTIRQ = "ksoftirqd/0"
TEXT, TIMELINE = ".txt", ".perfetto-trace"
"""How the two files of a traced client end."""


class Tracepoints:
    """Writes the events of one client, with the names and fields that the kernel of `rules` has. `clock` gives seconds.
    """

    def __init__(self, ftrace: Ftrace, timeline: Timeline, clock: Callable[[], float], rules: Rules) -> None:
        self._ftrace = ftrace
        self._modern = rules.names == "6.1"
        self._timeline = timeline
        self._clock = clock
        self._handles: dict[int, int] = {}
        """nbd's handles of the requests under way, by their identities."""

    @classmethod
    @contextmanager
    def to_files(cls, plan: TracePlan, host: str, clock: Callable[[], float], rules: Rules) -> Iterator[Tracepoints]:
        """Tracepoints that write a text and a timeline of the client called `host`."""
        with Path(plan.prefix + TEXT).open("x") as text, Path(plan.prefix + TIMELINE).open("xb") as timeline:
            yield cls(Ftrace(text), Timeline(timeline, host, plan.number), clock, rules)

    def attach(self, node: Node, device: NbdDevice, netdev: NetDevice) -> None:
        """Trace these models from now on."""
        self._attach_page_alloc(node)
        self._attach_vmscan(node)
        self._attach_kswapd(node)
        self._attach_nbd(device)
        _wrap(netdev, "_tally", self._kfree_skb)

    def sample(self, counters: Mapping[str, int]) -> None:
        """Counters and gauges as they are now."""
        now = self._clock()
        for name in COUNTERS:
            self._timeline.counter(now, name, counters[name])

    def _say(self, task: Task | str, name: str, **fields: object) -> None:
        """A line of text. A value that is no number is shown as it is, numbers named pfn in hexadecimal."""
        softirq = isinstance(task, Task) and task.serving_softirq
        text = " ".join(f"{key}={_shown(key, value)}" for key, value in fields.items())
        self._ftrace.event(self._clock(), str(getattr(task, "name", task)), softirq, name, text)

    def _mark(self, task: Task | str, name: str, **fields: object) -> None:
        """A line of text, and a moment on the timeline."""
        self._say(task, name, **fields)
        self._timeline.instant(self._clock(), str(getattr(task, "name", task)), name, fields)

    # --- mm/page_alloc.c ---

    def _attach_page_alloc(self, node: Node) -> None:
        page_alloc = node.page_alloc
        for name in ("alloc_page_nowait", "alloc_page_above_low"):
            _wrap(page_alloc, name, self._alloc_page_nowait)
        _wrap(page_alloc, "alloc_pages_nowait", self._alloc_pages_nowait)
        _wrap(page_alloc, "alloc_order_nowait", self._alloc_order_nowait)
        _wrap(page_alloc, "alloc_page", self._alloc_page)
        _wrap(page_alloc, "alloc_order", self._alloc_order)
        _wrap(page_alloc, "free_page", self._free_page)
        _wrap(page_alloc, "free_order", self._free_order)
        for name in ("free_pages", "free_slab_pages"):
            _wrap(page_alloc, name, self._free_pages)

    def _mm_page_alloc(self, page: Page | None, order: int, gfp_mask: int, current: Task) -> None:
        if page is not None:
            flags = show_gfp_flags(gfp_mask)
            self._say(current, "mm_page_alloc", pfn=page.pfn, order=order, migratetype=0, gfp_flags=flags)

    def _alloc_page_nowait(self, call: Callable[[int, Task], Page | None]) -> Callable[[int, Task], Page | None]:
        def traced(gfp_mask: int, current: Task) -> Page | None:
            page = call(gfp_mask, current)
            self._mm_page_alloc(page, 0, gfp_mask, current)
            return page

        return traced

    def _alloc_pages_nowait(self, call: Callable[[int, int, Task], list[Page]]) -> Callable[..., list[Page]]:
        def traced(count: int, gfp_mask: int, current: Task) -> list[Page]:
            pages = call(count, gfp_mask, current)
            for page in pages:
                self._mm_page_alloc(page, 0, gfp_mask, current)
            return pages

        return traced

    def _alloc_order_nowait(
        self, call: Callable[[int, int, Task], list[Page] | None]
    ) -> Callable[[int, int, Task], list[Page] | None]:
        def traced(order: int, gfp_mask: int, current: Task) -> list[Page] | None:
            pages = call(order, gfp_mask, current)
            self._mm_page_alloc(pages[0] if pages else None, order, gfp_mask, current)
            return pages

        return traced

    def _alloc_page(self, call: Callable[[int, Task], Awaitable[Page | None]]) -> Callable[..., Any]:
        async def traced(gfp_mask: int, current: Task) -> Page | None:
            page = await call(gfp_mask, current)
            self._mm_page_alloc(page, 0, gfp_mask, current)
            return page

        return traced

    def _alloc_order(self, call: Callable[[int, int, Task], Awaitable[list[Page] | None]]) -> Callable[..., Any]:
        async def traced(order: int, gfp_mask: int, current: Task) -> list[Page] | None:
            pages = await call(order, gfp_mask, current)
            self._mm_page_alloc(pages[0] if pages else None, order, gfp_mask, current)
            return pages

        return traced

    def _free_order(self, call: Callable[[Sequence[Page]], None]) -> Callable[[Sequence[Page]], None]:
        """A block of one page goes on to `free_page`, which is traced by itself."""

        def traced(pages: Sequence[Page]) -> None:
            if len(pages) > 1:
                self._say("swapper", "mm_page_free", pfn=pages[0].pfn, order=len(pages).bit_length() - 1)
            call(pages)

        return traced

    def _free_page(self, call: Callable[[Page], None]) -> Callable[[Page], None]:
        def traced(page: Page) -> None:
            self._say("swapper", "mm_page_free", pfn=page.pfn, order=0)
            call(page)

        return traced

    def _free_pages(self, call: Callable[[list[Page]], None]) -> Callable[[Iterable[Page]], None]:
        def traced(pages: Iterable[Page]) -> None:
            freed = list(pages)
            for page in freed:
                self._say("swapper", "mm_page_free", pfn=page.pfn, order=0)
            call(freed)

        return traced

    # --- mm/vmscan.c ---

    def _attach_vmscan(self, node: Node) -> None:
        _wrap(node.vmscan, "_do_try_to_free_pages", self._do_try_to_free_pages)
        _wrap(node.vmscan, "_pageout", self._pageout)
        _wrap(node.vmscan.throttle, "_throttle", self._throttle)
        if isinstance(node.vmscan.stall, ReclaimThrottle):
            _wrap(node.vmscan.stall, "reclaim_throttle", self._reclaim_throttle)

    def _do_try_to_free_pages(self, call: Callable[[ScanControl], Awaitable[int]]) -> Callable[..., Any]:
        async def traced(sc: ScanControl) -> int:
            name, flags = sc.current.name, show_gfp_flags(sc.gfp_mask)
            writepage = {} if self._modern else {"may_writepage": 1}
            self._say(sc.current, "mm_vmscan_direct_reclaim_begin", order=sc.order, **writepage, gfp_flags=flags)
            self._timeline.begin(self._clock(), name, "direct reclaim", {"gfp_flags": flags})
            reclaimed = 0
            try:
                reclaimed = await call(sc)
            finally:
                self._say(sc.current, "mm_vmscan_direct_reclaim_end", nr_reclaimed=reclaimed)
                self._timeline.end(self._clock(), name, {"nr_reclaimed": reclaimed})
            return reclaimed

        return traced

    def _throttle(self, call: Callable[[int, Task], Awaitable[None]]) -> Callable[..., Any]:
        """The kernel has no tracepoint here: the timeline shows the wait, the text does not."""

        async def traced(gfp_mask: int, current: Task) -> None:
            flags = {"gfp_flags": show_gfp_flags(gfp_mask)}
            self._timeline.begin(self._clock(), current.name, "throttle_direct_reclaim", flags)
            try:
                await call(gfp_mask, current)
            finally:
                self._timeline.end(self._clock(), current.name, {})

        return traced

    def _reclaim_throttle(self, call: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
        """6.1; "usect_delayed" is the kernel's own spelling. Whoever is exempt has not waited."""

        async def traced(reason: Reason, current: Task, *, kswapd: bool = False) -> None:
            start = self._clock()
            await call(reason, current, kswapd=kswapd)
            if kswapd or not current.pf_kthread:
                fields = {"usec_timeout": _usecs(reason.value), "usect_delayed": _usecs(self._clock() - start)}
                self._mark(current, "mm_vmscan_throttled", nid=0, **fields, reason=f"VMSCAN_THROTTLE_{reason.name}")

        return traced

    def _pageout(self, call: Callable[[Page, ScanControl], None]) -> Callable[[Page, ScanControl], None]:
        name = "mm_vmscan_write_folio" if self._modern else "mm_vmscan_writepage"

        def traced(page: Page, sc: ScanControl) -> None:
            call(page, sc)
            self._say(sc.current, name, pfn=page.pfn, flags="RECLAIM_WB_ANON|RECLAIM_WB_ASYNC")

        return traced

    def _attach_kswapd(self, node: Node) -> None:
        kswapd = node.kswapd
        _wrap(kswapd, "balance_pgdat", self._balance_pgdat)
        _wrap(kswapd, "sleep", self._kswapd_sleep)
        _wrap(node.page_alloc, "wakeup_kswapd", lambda call: self._wakeup_kswapd(call, lambda: node.vmstat.kswapd_wake))

    def _balance_pgdat(self, call: Callable[[int], Awaitable[int]]) -> Callable[[int], Any]:
        async def traced(order: int) -> int:
            self._say("kswapd0", "mm_vmscan_kswapd_wake", nid=0, order=order)
            self._timeline.begin(self._clock(), "kswapd0", "balance_pgdat", {})
            try:
                return await call(order)
            finally:
                self._timeline.end(self._clock(), "kswapd0", {})

        return traced

    def _kswapd_sleep(self, call: Callable[[], Awaitable[None]]) -> Callable[[], Any]:
        async def traced() -> None:
            self._say("kswapd0", "mm_vmscan_kswapd_sleep", nid=0)
            await call()

        return traced

    def _wakeup_kswapd(self, call: Callable[[int], bool], wakes: Callable[[], int]) -> Callable[[int], bool]:
        def traced(order: int) -> bool:
            before = wakes()
            woken = call(order)
            if wakes() != before:
                zone = {} if self._modern else {"zid": 0}
                self._mark("kswapd0", "mm_vmscan_wakeup_kswapd", nid=0, **zone, order=order)
            return woken

        return traced

    # --- drivers/block/nbd.c, net/core/skbuff.c ---

    def _attach_nbd(self, device: NbdDevice) -> None:
        _wrap(device, "_sock_xmit", partial(self._sock_xmit, device))
        _wrap(device, "_complete", self._nbd_reply)

    def _nbd(self, task: str, name: str, handle: int) -> None:
        """A transport event (5.3): a request is known by its handle, which stands for its address, too."""
        text = f"nbd transport event: request {handle:016x}, handle 0x{handle:016x}"
        self._ftrace.event(self._clock(), task, False, name, text)

    def _sock_xmit(
        self, device: NbdDevice, call: Callable[[Channel, NbdSock], Awaitable[None]]
    ) -> Callable[[Channel, NbdSock], Any]:
        async def traced(channel: Channel, nsock: NbdSock) -> None:
            request = channel.hctx.requests[0]
            handle = self._handles[id(request)] = device.handle + 1
            self._ftrace.event(self._clock(), "nbd0", False, "nbd_send_request", f"nbd0: request {handle:016x}")
            self._timeline.begin(self._clock(), "nbd0", "sock_xmit", _described(request))
            try:
                await call(channel, nsock)
            finally:
                self._timeline.end(self._clock(), "nbd0", {})
            if not nsock.dead:
                self._nbd("nbd0", "nbd_header_sent", handle)
                self._nbd("nbd0", "nbd_payload_sent", handle)

        return traced

    def _nbd_reply(self, call: Callable[[Request, int], None]) -> Callable[[Request, int], None]:
        def traced(request: Request, error: int) -> None:
            handle = self._handles.pop(id(request))
            self._nbd("nbd-client", "nbd_header_received", handle)
            self._nbd("nbd-client", "nbd_payload_received", handle)
            self._timeline.instant(self._clock(), "nbd-client", "nbd_reply", _described(request) | {"error": error})
            call(request, error)

        return traced

    def _kfree_skb(self, call: Callable[[Tally], None]) -> Callable[[Tally], None]:
        def traced(counts: Tally) -> None:
            for (reason, socket, pfmemalloc), skbs in counts.items():
                drop = DropReason(reason)
                if drop != DropReason.DELIVERED:
                    fields = {"socket": socket, "pfmemalloc": int(pfmemalloc), "skbs": skbs}
                    self._mark(SOFTIRQ, "kfree_skb", location=SITES[drop], reason=drop.name, **fields)
            call(counts)

        return traced


def _wrap(owner: object, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Put a traced function in a method's place, on this one object."""
    setattr(owner, name, wrapper(getattr(owner, name)))


def _usecs(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _described(request: Request) -> dict[str, object]:
    return {"write": int(request.write), "entry": request.entry, "pages": len(request.pages)}


def _shown(key: str, value: object) -> str:
    return f"{value:#x}" if key == "pfn" and isinstance(value, int) else str(value)
