"""A host that serves swap areas: our own NBD server, a thread for each area, in one process of its own."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass

from multiprocess.connection import Connection

from testbed.hosts.messages import Finished, Ready, Sample, Shutdown
from testbed.hosts.paced_export import PacedExport
from testbed.hosts.plan import ServerPlan, SwapArea
from testbed.lab.errors import LabError
from testbed.nbd.export import Export, FileExport, MemoryExport
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
        while not _told_to_stop(channel):
            channel.send(Sample(spec.plan.name, time.monotonic(), _counters(servers)))
    channel.send(Finished(spec.plan.name, {"counters": _counters(servers)}))


def _told_to_stop(channel: Connection) -> bool:
    return bool(channel.poll(SAMPLE_INTERVAL)) and isinstance(channel.recv(), Shutdown)


@contextlib.contextmanager
def _serving(area: SwapArea):  # type: ignore[no-untyped-def]
    listener = _listen(area)
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
    return totals
