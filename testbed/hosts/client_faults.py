"""Faults of a swap client that happen inside it: a memory squeeze, and sockets that nobody reads any more.

Each is set and cleared by its number; those of a kind may overlap. What was set last decides min_free_kbytes, and the
plan's own value counts again when all are cleared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from testbed.hosts.bystander import Bystander
from testbed.hosts.messages import SetFault
from testbed.hosts.tcp_bystander import TcpBystander
from testbed.lab.errors import LabError
from testbed.mm.balloon import Balloon
from testbed.mm.node import Node
from testbed.mm.sched import Task
from testbed.mm.watermarks import PAGE_SIZE

Clear = Callable[[], dict[str, Any]]
"""Ends a fault; returns what is to be told of it."""


class ClientFaults:
    """The faults of one client. `event` is how the runner hears of them."""

    def __init__(
        self, node: Node, bystanders: Sequence[Bystander | TcpBystander], event: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._node = node
        self._bystanders = bystanders
        self._event = event
        self._kbytes = {0: node.min_free_kbytes.value}
        self._cleared_by: dict[int, Clear] = {}
        self._writes: set[asyncio.Task[None]] = set()

    def set(self, fault: SetFault) -> None:
        """Let a fault act from now on. Raises LabError for one that a client cannot have."""
        begin = _KINDS.get(fault.kind)
        if begin is None:
            raise LabError(f"a swap client cannot have the fault {fault.kind}")
        self._cleared_by[fault.number] = begin(self, fault)
        self._event("fault_set", {"number": fault.number})

    def clear(self, number: int) -> None:
        """End a fault."""
        clear = self._cleared_by.pop(number, None)
        self._event("fault_cleared", {"number": number} | ({} if clear is None else clear()))

    def close(self) -> None:
        """End all of them, silently, and give their memory back."""
        while self._cleared_by:
            self._cleared_by.popitem()[1]()

    def _memory_taken(self, fault: SetFault) -> Clear:
        balloon = Balloon(self._node.page_alloc, fault.arguments["bytes"] // PAGE_SIZE)
        return lambda: {"pages": balloon.leak_balloon()}

    def _min_free_kbytes(self, fault: SetFault) -> Clear:
        self._kbytes[fault.number] = fault.arguments["kbytes"]
        self._write_min_free_kbytes()

        def clear() -> dict[str, Any]:
            del self._kbytes[fault.number]
            self._write_min_free_kbytes()
            return {}

        return clear

    def _write_min_free_kbytes(self) -> None:
        value = self._kbytes[max(self._kbytes)]
        write = asyncio.create_task(self._node.min_free_kbytes.write(value, Task("sysctl")))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    def _stop_reading(self, fault: SetFault) -> Clear:
        port = fault.arguments.get("port")
        chosen = [bystander for bystander in self._bystanders if port in (None, bystander.port)]
        for bystander in chosen:
            bystander.stop_reading()

        def clear() -> dict[str, Any]:
            for bystander in chosen:
                bystander.read_again()
            return {"sockets": len(chosen)}

        return clear


_KINDS: dict[str, Callable[[ClientFaults, SetFault], Clear]] = {
    "memory_taken": ClientFaults._memory_taken,
    "min_free_kbytes": ClientFaults._min_free_kbytes,
    "stop_reading": ClientFaults._stop_reading,
}
