"""Unrelated sockets on the client: a real socket each, beside the model's socket that is charged for its queue.

What makes unrelated traffic dangerous is who reads it. A prompt reader empties its queue at once; a faulting one must
first bring its own pages back from swap, and so holds memory just when there is none; some sockets nobody reads. A
reader that owns its socket while it faults also keeps whatever arrives meanwhile in the backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial

from testbed.hosts.real_buffer import enlarge
from testbed.hosts.working_set import WorkingSet
from testbed.mm.memory import BusError, Killed
from testbed.net.dev import NetDevice
from testbed.net.sk_mem import Proto
from testbed.net.sock import Sock

REAL_BUFFER_FACTOR = 8
"""The real buffer is this many times the model's limit, so that only the model ever refuses a datagram."""
DATAGRAMS_AT_ONCE = 64


class Receiver:
    """A real socket that somebody may read, and the model's socket beside it."""

    def __init__(self, sk: Sock, real: socket.socket) -> None:
        self.sk = sk
        self.real = real
        self.received = 0
        self.reading = True
        self._on_readable: Callable[[], object] | None = None

    def _when_readable(self, callback: Callable[[], object]) -> None:
        """Call `callback` whenever something has arrived, except while nobody may read."""
        self._on_readable = callback
        if self.reading:
            asyncio.get_running_loop().add_reader(self.real.fileno(), callback)

    def _forget_reader(self) -> None:
        self._on_readable = None
        asyncio.get_running_loop().remove_reader(self.real.fileno())

    def stop_reading(self) -> None:
        """Let whoever reads from this socket do so no more."""
        self.reading = False
        asyncio.get_running_loop().remove_reader(self.real.fileno())

    def read_again(self) -> None:
        """Let the reader go on."""
        self.reading = True
        if self._on_readable is not None:
            self._when_readable(self._on_readable)
            self._on_readable()

    def read(self, device: NetDevice) -> int:
        """Read from the real socket without waiting, and free what that held in the model; how much was read."""
        raise NotImplementedError

    def read_promptly(self, device: NetDevice) -> None:
        """Read whenever something arrives."""
        self._when_readable(partial(self.read, device))

    async def read_after_faulting(self, device: NetDevice, working_set: WorkingSet, *, owned: bool) -> None:
        """Read as a task does that needs some of its own pages for every read, and may own the socket meanwhile.

        Raises KernelBug when that lets a reserve skb into the backlog of a kernel that does not expect it there.
        """
        readable = asyncio.Event()
        self._when_readable(readable.set)
        try:
            while True:
                readable.clear()
                await readable.wait()
                with self.sk.locked(working_set.owner) if owned else contextlib.nullcontext():
                    await working_set.touch()
                self.read(device)
        except (Killed, BusError):
            return
        finally:
            self._forget_reader()
            working_set.free()

    def drain(self, device: NetDevice) -> None:
        """At the end: count what the real socket still holds, and close it."""
        self._forget_reader()
        while self.read(device):
            pass
        self.real.close()
        if self.sk.backlog is not None:
            self.sk.backlog.drop(device.skb_memory.kfree_skb)


class UdpSocket(socket.socket):
    """A UDP socket of whose datagrams only the number matters."""

    def discard(self, most: int) -> int:
        """Read up to `most` datagrams without waiting; how many there were."""
        for count in range(most):
            try:
                self.recv(1)
            except BlockingIOError:
                return count
        return most


class Bystander(Receiver):
    """One UDP socket bound to `port`: the model's, limited to `rcvbuf` bytes, and the `real` one beside it."""

    real: UdpSocket

    def __init__(self, name: str, port: int, rcvbuf: int, real: UdpSocket, prot: Proto | None = None) -> None:
        super().__init__(Sock(name, rcvbuf, prot=prot), real)
        self.port = port

    def read(self, device: NetDevice) -> int:
        """As `Receiver.read`, up to `DATAGRAMS_AT_ONCE` datagrams."""
        count = self.real.discard(DATAGRAMS_AT_ONCE)
        self.received += count
        device.read_datagrams(self.sk, min(count, len(self.sk.receive_queue)))
        return count

    def drain(self, device: NetDevice) -> None:
        """As `Receiver.drain`, and free the rest of the model's queue."""
        super().drain(device)
        device.read_datagrams(self.sk, len(self.sk.receive_queue))


def udp_socket(address: str, port: int, rcvbuf: int) -> UdpSocket:
    """A real UDP socket in this namespace, that never blocks and has room to spare."""
    real = UdpSocket(socket.AF_INET, socket.SOCK_DGRAM)
    real.setblocking(False)
    enlarge(real, socket.SO_RCVBUF, REAL_BUFFER_FACTOR * rcvbuf)
    real.bind((address, port))
    return real
