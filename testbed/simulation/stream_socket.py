"""One end of a simulated TCP connection, with the calls of a socket that never blocks.

Whoever owns the end hands it the segments that got through, and decides whether an acknowledgement can be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from testbed.simulation.link import Port
from testbed.simulation.segments import Connection, Segments
from testbed.simulation.tcp_receiver import TcpReceiver
from testbed.simulation.tcp_sender import TcpSender
from testbed.simulation.virtual_time import SimulatedFile, VirtualTimeLoop

WINDOW = 512 << 10
"""What a machine with plenty of memory buffers in each direction, bytes."""


class StreamSocket(SimulatedFile):
    """A connected socket.

    Args:
        send: puts segments on the wire, for the far port, where the connection is known by the same name.
        mss, train: bytes of data in a segment, and in as many as are sent together.
        first_window: what the peer lets be sent before it has said anything, bytes.
        window: how many more bytes there is room for, now.
        may_acknowledge: is there memory for so many acknowledgements?
        may_retransmit: is there memory to send so many segments again?
    """

    def __init__(
        self,
        loop: VirtualTimeLoop,
        send: Callable[[Segments], None],
        far: Port,
        connection: Connection,
        *,
        mss: int,
        train: int,
        first_window: int = WINDOW,
        window: Callable[[], int] | None = None,
        may_acknowledge: Callable[[int], bool] = bool,
        may_retransmit: Callable[[int], bool] = bool,
    ) -> None:
        super().__init__(loop)
        self.bytes_received = 0
        self._put_on_wire, self._far, self._connection, self._mss = send, far, connection, mss
        self._may_acknowledge = may_acknowledge
        self._may_retransmit = may_retransmit
        self._sent_to = 0
        self._closed = False
        self.sender = TcpSender(self._transmit, mss, train, first_window)
        self.receiver = TcpReceiver(window or self._room, self._acknowledge, lambda: self.sender.rto, mss)

    def _room(self) -> int:
        return WINDOW - len(self.receiver.readable)

    def _transmit(self, offset: int, data: bytes) -> None:
        """Put data on the wire; what is sent again needs memory, and without it is lost."""
        end = offset + len(data)
        if end <= self._sent_to and not self._may_retransmit(-(-len(data) // self._mss)):
            return
        self._sent_to = max(self._sent_to, end)
        self._send(offset, data, 1)
        self.receiver.acknowledged()

    def _acknowledge(self, copies: int) -> bool:
        if self._closed or not self._may_acknowledge(copies):
            return False
        self._send(self.sender.snd_nxt, b"", copies)
        return True

    def _send(self, offset: int, data: bytes, copies: int) -> None:
        receiver = self.receiver
        edge = receiver.advertise()
        group = Segments(
            *(self._far, self._connection, offset, data, self._mss),
            *(receiver.rcv_nxt, edge, receiver.sacks, copies),
        )
        self._put_on_wire(group)

    def received(self, group: Segments, runs: Sequence[tuple[int, bytes]], segments: int) -> None:
        """Take in a group of which `runs` of data got through, counted as `segments` for acknowledgements."""
        if self._closed:
            return
        pure = not group.data
        news = self.sender.acknowledged(group.ack, group.window_edge, group.sacks, copies=group.copies, pure=pure)
        if runs and self.receiver.received(runs, segments):
            news = 1
        if news:
            self.notify()

    def ready_to_read(self) -> bool:
        """Is there something to read?"""
        return bool(self.receiver.readable)

    def ready_to_write(self) -> bool:
        """Is there room to write?"""
        return self.unacknowledged < WINDOW

    @property
    def unacknowledged(self) -> int:
        """SIOCOUTQ: bytes written that the peer has not acknowledged."""
        return self.sender.unacknowledged

    def sendmsg(self, buffers: Iterable[bytes | memoryview]) -> int:
        """Write what there is room for. Raises BlockingIOError when there is none."""
        room = WINDOW - self.unacknowledged
        if room <= 0:
            raise BlockingIOError
        data = b"".join(buffers)[:room]
        self.sender.write(data)
        return len(data)

    def send(self, data: bytes | memoryview) -> int:
        """`sendmsg` of one buffer."""
        return self.sendmsg([data])

    def recvmsg_into(self, buffers: Sequence[memoryview]) -> tuple[int]:
        """Read into `buffers`; (bytes read,). Raises BlockingIOError when there is nothing."""
        count = self.receiver.read(buffers)
        if not count:
            raise BlockingIOError
        self.bytes_received += count
        if self.receiver.readable:
            self.notify()
        return (count,)

    def recv(self, size: int) -> bytes:
        """Read up to `size` bytes. Raises BlockingIOError when there is nothing."""
        buffer = memoryview(bytearray(min(size, len(self.receiver.readable))))
        return bytes(buffer[: self.recvmsg_into([buffer])[0]])

    def setsockopt(self, *_option: object) -> None:
        """There is nothing to be set: it has no linger, and its buffers are the model's."""

    def close(self) -> None:
        """Forget the connection at once, as SO_LINGER 0 does; the peer hears nothing more."""
        if not self._closed:
            self._closed = True
            self.sender.close()
            self.receiver.close()
            super().close()
