"""Two simulated TCP ends on a switch, and whoever wants to lose some of what passes between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from testbed.simulation.link import Frames, LinkSpeed, Port
from testbed.simulation.segments import Segments
from testbed.simulation.stream_socket import StreamSocket
from testbed.simulation.virtual_time import VirtualTimeLoop

MSS = 100
SPEED = LinkSpeed(bandwidth=1e6, delay=0.001, queue=100)
Loss = Callable[[], bool]
"""Is the next segment lost?"""


def no_loss() -> bool:
    return False


def losses(pattern: Iterator[bool]) -> Loss:
    """Lose segments as the pattern says, and none after its end."""
    return lambda: next(pattern, False)


class Pair:
    """`left` and `right` are connected; segments with data that go right are lost as `loss` says, whole or in part."""

    def __init__(
        self, loss: Loss = no_loss, *, ack_loss: Loss = no_loss, window: Callable[[], int] | None = None, train: int = 8
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.loss, self.ack_loss = loss, ack_loss
        self.left_port, self.right_port = Port(SPEED, self._to_left), Port(SPEED, self._to_right)
        self.left = StreamSocket(loop, self.left_port.up.send, self.right_port, 0, mss=MSS, train=train * MSS)
        self.right = StreamSocket(
            loop, self.right_port.up.send, self.left_port, 0, mss=MSS, train=train * MSS, window=window
        )

    def _to_left(self, group: Frames) -> None:
        assert isinstance(group, Segments)
        if not self.ack_loss():
            self.left.received(group, [(group.seq, group.data)] if group.data else [], group.frames)

    def _to_right(self, group: Frames) -> None:
        assert isinstance(group, Segments)
        if not group.data:
            self.right.received(group, [], group.frames)
            return
        kept = [not self.loss() for _ in range(group.frames)]
        if any(kept):
            self.right.received(group, group.runs(kept), sum(kept))


def read_all(socket: StreamSocket) -> bytes:
    """Everything that can be read now."""
    buffer = memoryview(bytearray(1 << 20))
    data = b""
    while socket.ready_to_read():
        count = socket.recvmsg_into([buffer[:37], buffer[37:]])[0]
        data += bytes(buffer[:count])
    return data
