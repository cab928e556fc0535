"""Pages of which only the first bytes are kept, for simulations with more memory than the machine has.

The workload fills a page with one stamp over and over, so the page is its first bytes, repeated. The emulated RAM and
the swap areas keep those alone. On the wire pages are whole, and a page that comes back as anything but a repetition is
an error, so nothing is taken on trust.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.client_handshake import ExportInformation
from testbed.nbd.client_protocol import Reply
from testbed.nbd.errors import NbdError
from testbed.nbd.export import Export
from testbed.simulation.nbd_client import SimulatedNbdClient
from testbed.size import format_size


class ReducedNbdClient(SimulatedNbdClient):
    """An NBD connection for pages whose buffers hold only their first bytes."""

    def __init__(self, sock: socket.socket, export: ExportInformation) -> None:
        super().__init__(sock, export)
        self._write_whole, self._read_whole = self.write, self.read
        self.write, self.read = self._write, self._read
        self._landings: dict[int, tuple[memoryview, Sequence[memoryview]]] = {}

    def _write(self, handle: int, offset: int, buffers: Sequence[memoryview], *, fua: bool = False) -> None:
        whole = b"".join(bytes(buffer) * (PAGE_SIZE // len(buffer)) for buffer in buffers)
        self._write_whole(handle, offset, [memoryview(whole)], fua=fua)

    def _read(self, handle: int, offset: int, buffers: Sequence[memoryview]) -> None:
        landing = memoryview(bytearray(PAGE_SIZE * len(buffers)))
        self._landings[handle] = landing, buffers
        self._read_whole(handle, offset, [landing])

    def receive(self) -> list[Reply]:
        """As `NbdClient.receive`. Raises NbdError also for a page that is not a repetition of its first bytes."""
        replies = super().receive()
        for handle, error in replies:
            landing, buffers = self._landings.pop(handle, (memoryview(b""), ()))
            if not error:
                for number, buffer in enumerate(buffers):
                    _reduce(landing[number * PAGE_SIZE : (number + 1) * PAGE_SIZE], buffer)
        return replies


def _reduce(page: memoryview, buffer: memoryview) -> None:
    unit = bytes(page[: len(buffer)])
    if bytes(page) != unit * (PAGE_SIZE // len(unit)):
        raise NbdError("a page came back from swap that is not a repetition of its first bytes")
    buffer[:] = unit


class ReducedExport(Export):
    """A swap area that keeps `unit` bytes of each page that repeats them, and other pages whole; zero until written.

    Requests are for whole pages.
    """

    def __init__(self, size: int, unit: int) -> None:
        super().__init__(size, False, f"{format_size(size)} of memory")
        self._unit = unit
        self._units = bytearray(size // PAGE_SIZE * unit)
        self._whole: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self._page(number) for number in range(offset // PAGE_SIZE, (offset + length) // PAGE_SIZE))

    def _page(self, number: int) -> bytes:
        whole = self._whole.get(number)
        if whole is not None:
            return whole
        return bytes(self._units[number * self._unit : (number + 1) * self._unit]) * (PAGE_SIZE // self._unit)

    def landing(self, offset: int, length: int) -> memoryview:
        return memoryview(bytearray(length))

    def commit(self, offset: int, data: memoryview) -> None:
        for at in range(0, len(data), PAGE_SIZE):
            page = bytes(data[at : at + PAGE_SIZE])
            number = (offset + at) // PAGE_SIZE
            unit = page[: self._unit]
            self._whole.pop(number, None)
            if page == unit * (PAGE_SIZE // self._unit):
                self._units[number * self._unit : (number + 1) * self._unit] = unit
            else:
                self._whole[number] = page

    def flush(self) -> None:
        return

    def trim(self, offset: int, length: int) -> None:
        self.commit(offset, memoryview(bytes(length)))
