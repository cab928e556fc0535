"""A transmission whose requests suffer what the faults that act want them to suffer."""

from collections.abc import Iterator

from testbed.nbd.faults.active import ActiveFault, ActiveFaults, HangUp
from testbed.nbd.server_protocol import Request, Write
from testbed.nbd.transmission import Transmission


class FaultyTransmission:
    """One client's: replies that are to go out late are held here meanwhile."""

    def __init__(self, transmission: Transmission, faults: ActiveFaults) -> None:
        self._transmission = transmission
        self._faults = faults
        self._held: list[bytes] = []

    def answers(self, request: Request) -> Iterator[bytes]:
        """What is sent once the request has come, in order. Raises HangUp when a fault breaks the connection off."""
        picked = self._faults.picked(request)
        for fault in picked:
            self._faults.wait(fault)
        reply = self._carry_out(request, picked)
        for fault in picked:
            cut = fault.fault.cut(reply)
            if cut is not None:
                raise HangUp(b"".join(self.late()) + reply[:cut])
        if any(fault.fault.late for fault in picked):
            self._held.append(reply)
            return
        replies = [reply]
        for fault in picked:
            replies = [instead for each in replies for instead in fault.fault.replies(each, fault.chance)]
        yield from replies
        yield from self.late()

    def late(self) -> list[bytes]:
        """The replies held back, which now have to go out."""
        held, self._held = self._held, []
        return held

    def _carry_out(self, request: Request, picked: list[ActiveFault]) -> bytes:
        if isinstance(request, Write):
            kept = min((fault.fault.kept(len(request.data)) for fault in picked), default=len(request.data))
            request = request._replace(data=request.data[:kept])
        error = next((number for fault in picked if (number := fault.fault.error())), 0)
        if not error:
            return b"".join(self._transmission.answer(request))
        if isinstance(request, Write) and request.data:
            self._transmission.export.write(request.offset, request.data)
        return b"".join(self._transmission.fail(request.handle, OSError(error, "a fault")))
