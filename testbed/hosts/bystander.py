"""Unrelated UDP sockets on the client: a real socket each, beside the model's socket that is charged for its queue.

What makes unrelated traffic dangerous is who reads it. A prompt reader empties its queue at once; a faulting one must
first bring its own pages back from swap, and so holds memory just when there is none; some sockets nobody reads.
"""

from __future__ import annotations

import asyncio
import socket

from testbed.hosts.real_buffer import enlarge
from testbed.mm.memory import BusError, Killed, Memory, Vma
from testbed.mm.sched import Task
from testbed.net.dev import NetDevice
from testbed.net.sock import Sock

REAL_BUFFER_FACTOR = 8
"""The real buffer is this many times the model's limit, so that only the model ever refuses a datagram."""
DATAGRAMS_AT_ONCE = 64
WORKING_SET_PAGES = 64
PAGES_PER_READ = 4


class Bystander:
    """One UDP socket bound to `port`: the model's, limited to `rcvbuf` bytes, and the `real` one beside it."""

    def __init__(self, name: str, port: int, rcvbuf: int, real: socket.socket) -> None:
        self.sk = Sock(name, rcvbuf)
        self.port = port
        self.received = 0
        self.real = real

    def read(self, device: NetDevice, most: int = DATAGRAMS_AT_ONCE) -> int:
        """Read up to `most` datagrams from the real socket, and free their skbs in the model."""
        count = 0
        while count < most:
            try:
                self.real.recv(1)
            except BlockingIOError:
                break
            count += 1
        self.received += count
        device.read_datagrams(self.sk, min(count, len(self.sk.receive_queue)))
        return count

    def read_promptly(self, device: NetDevice) -> None:
        """Read whenever something arrives."""
        asyncio.get_running_loop().add_reader(self.real.fileno(), self.read, device)

    async def read_after_faulting(self, device: NetDevice, memory: Memory, vma: Vma) -> None:
        """Read as a task does that needs some of its own pages for every read."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.real.fileno(), readable.set)
        position = 0
        try:
            while True:
                readable.clear()
                await readable.wait()
                for _ in range(PAGES_PER_READ):
                    position = (position + 1) % len(vma.ptes)
                    page = await memory.handle_mm_fault(vma.owner, vma, position, write=True)
                    if page is not None:
                        page.buffer[:1] = b"r"
                self.read(device)
        except (Killed, BusError):
            return
        finally:
            loop.remove_reader(self.real.fileno())
            memory.exit_mmap(vma)

    def drain(self, device: NetDevice) -> None:
        """At the end: count what the real socket still holds, and free the rest of the model's queue."""
        asyncio.get_running_loop().remove_reader(self.real.fileno())
        while self.read(device):
            pass
        device.read_datagrams(self.sk, len(self.sk.receive_queue))
        self.real.close()


def udp_socket(address: str, port: int, rcvbuf: int) -> socket.socket:
    """A real UDP socket in this namespace, that never blocks and has room to spare."""
    real = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    real.setblocking(False)
    enlarge(real, socket.SO_RCVBUF, REAL_BUFFER_FACTOR * rcvbuf)
    real.bind((address, port))
    return real


def working_set(owner: Task) -> Vma:
    """The pages that a faulting reader goes through."""
    return Vma(owner, WORKING_SET_PAGES)
