"""A host that serves swap areas: our own NBD server, a thread for each area, in one process of its own."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from multiprocess.connection import Connection

from testbed.hosts.messages import ClearFault, Event, Finished, Ready, Sample, SetFault, Shutdown
from testbed.hosts.paced_export import PacedExport
from testbed.hosts.plan import ServerPlan, SwapArea
from testbed.lab.errors import LabError
from testbed.nbd.export import Export, FileExport, MemoryExport
from testbed.nbd.faults import make
from testbed.nbd.server import NbdServer

SAMPLE_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class NbdHostSpec:
    """The areas to serve."""

    plan: ServerPlan


def nbd_host_main(channel: Connection, spec: NbdHostSpec) -> None:
    """Serve until told to shut down. Raises LabError when an area cannot be opened or its port is taken."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_serving(area)) for area in spec.plan.areas]
        channel.send(Ready(spec.plan.name, {"ports": [area.port for area in spec.plan.areas]}))
        while not _told_to_stop(channel, spec.plan.name, servers):
            channel.send(Sample(spec.plan.name, time.monotonic(), _counters(servers), _faults(servers)))
    channel.send(Finished(spec.plan.name, {"counters": _counters(servers)}))


def _told_to_stop(channel: Connection, host: str, servers: list[NbdServer]) -> bool:
    """Obey what comes until it is time for a sample. Raises LabError for a fault that does not exist."""
    due = time.monotonic() + SAMPLE_INTERVAL
    while channel.poll(max(0.0, due - time.monotonic())):
        match channel.recv():
            case Shutdown():
                return True
            case SetFault(number, kind, arguments, seed):
                _set_fault(servers, number, kind, arguments, seed)
                channel.send(Event(host, time.monotonic(), "fault_set", {"number": number}))
            case ClearFault(number):
                did = _clear_fault(servers, number)
                channel.send(Event(host, time.monotonic(), "fault_cleared", {"number": number} | did))
    return False


def _set_fault(servers: list[NbdServer], number: int, kind: str, arguments: dict[str, Any], seed: int) -> None:
    """The same fault on every area, each with random numbers of its own."""
    try:
        for area, server in enumerate(servers):
            server.faults.set(number, make(kind, arguments, seed + area))
    except ValueError as error:
        raise LabError(str(error)) from error


def _clear_fault(servers: list[NbdServer], number: int) -> dict[str, int]:
    """End it on every area; what it did on all of them together."""
    did: Counter[str] = Counter()
    for server in servers:
        did.update(server.faults.clear(number))
    return dict(did)


def _faults(servers: list[NbdServer]) -> dict[int, dict[str, int]]:
    """What the faults that act have done so far on all areas together."""
    did: dict[int, Counter[str]] = {}
    for server in servers:
        for number, counts in server.faults.did().items():
            did.setdefault(number, Counter()).update(counts)
    return {number: dict(counts) for number, counts in did.items()}


@contextlib.contextmanager
def _serving(area: SwapArea):  # type: ignore[no-untyped-def]
    with _listen(area) as listener:
        server = NbdServer(listener, {area.export: _export(area)})
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()
            server.close()


def _listen(area: SwapArea) -> socket.socket:
    try:
        listener = socket.create_server((area.address, area.port), backlog=16)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return listener
    except OSError as error:
        raise LabError(f"cannot listen on {area.address} port {area.port}: {error.strerror}") from error


def _export(area: SwapArea) -> Export:
    export = _storage(area)
    return export if area.bandwidth is None else PacedExport(export, area.bandwidth)


def _storage(area: SwapArea) -> Export:
    if area.file is None:
        return MemoryExport(area.bytes)
    try:
        return FileExport(area.file)
    except OSError as error:
        raise LabError(f"cannot use {area.file}: {error.strerror or error}") from error


def _counters(servers: list[NbdServer]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for server in servers:
        statistics = server.statistics()
        for name in statistics.__slots__:
            totals[name] = totals.get(name, 0) + getattr(statistics, name)
        for name, count in server.faults.counts().items():
            totals[name] = totals.get(name, 0) + count
    return totals
