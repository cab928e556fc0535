"""What the fuzzer feeds: each target takes any bytes, and raises if the code under it does anything but its duty.

The duty: no exception but the protocol's own, no end to the input without progress, nothing kept beyond a stated bound,
and no event outside the export. The first byte of the input says in what portions the rest arrives.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from testbed.nbd.block_size import BlockSize
from testbed.nbd.client_handshake import ClientHandshake, TlsBegins
from testbed.nbd.client_protocol import ClientProtocol
from testbed.nbd.client_structured import StructuredClientProtocol
from testbed.nbd.constants import Option
from testbed.nbd.errors import NbdError
from testbed.nbd.server_handshake import MAX_OPTION_LENGTH, MAX_OPTIONS, TlsMode
from testbed.nbd.server_protocol import (
    STAGING,
    BlockStatus,
    Cache,
    Read,
    ServerProtocol,
    StartTls,
    Trim,
    Violation,
    Write,
    WriteZeroes,
)

SIZE = 1 << 20  # bytes of the export
LONGEST = 64 << 10  # bytes of a payload
MAX_SAID = MAX_OPTIONS * 2 * MAX_OPTION_LENGTH  # bytes of option replies in one handshake
REQUEST = 28  # bytes of the shortest request: no more events than that can come of so many bytes


class Receiver(Protocol):
    def next_buffers(self) -> Sequence[memoryview]: ...
    def received(self, count: int) -> Sequence[object]: ...


class Disk:
    """An export that checks what it is asked for. All share their memory, since nobody looks at the data."""

    size = SIZE
    read_only = False
    description = "a disk"
    block_size = BlockSize(1, 4096, LONGEST)

    memory = memoryview(bytearray(SIZE))

    def landing(self, offset: int, length: int) -> memoryview:
        assert length <= LONGEST
        assert offset + length <= SIZE
        return self.memory[offset : offset + length]


def server_handshake(data: bytes) -> None:
    """Any bytes after the greeting, to a server with TLS; what follows the choice of an export are requests."""
    mode = list(TlsMode)[data[0] % 3] if data else TlsMode.NOTLS
    protocol = ServerProtocol({"swap": Disk(), "other": Disk()}, mode)
    protocol.data_to_send()
    said = 0
    for portion in _portions(data):
        for event in _feed(protocol, portion):
            _check(event)
        said += len(protocol.data_to_send())
    assert said <= MAX_SAID, f"a handshake made the server say {said} bytes"


def server_transmission(data: bytes) -> None:
    """Any bytes as requests, once structured replies and base:allocation have been negotiated."""
    protocol = ServerProtocol({"": Disk()})
    list(_feed(protocol, NEGOTIATION))
    assert protocol.structured
    events = [event for portion in _portions(data) for event in _feed(protocol, portion)]
    assert len(events) <= len(data) // REQUEST + 1
    for event in events:
        assert not isinstance(event, StartTls)
        _check(event)


def client_handshake(data: bytes) -> None:
    """Any bytes as a server's greeting and option replies; the first says also what the client wants."""
    goals = (Option.NBD_OPT_GO, Option.NBD_OPT_LIST, Option.NBD_OPT_INFO)
    tls, structured, goal = _choices(data[0] if data else 0, 2, 2, 3)
    handshake = ClientHandshake("swap", goals[goal], tls=bool(tls), ask_structured_replies=bool(structured))
    for portion in _portions(data):
        try:
            events = handshake.received(portion)
        except NbdError:
            return
        assert len(events) <= len(portion) + len(data)
        if any(isinstance(event, TlsBegins) for event in events):
            handshake.tls_started()
        assert len(handshake.data_to_send()) <= len(portion) + STAGING
        if handshake.finished:
            return


def client_replies(data: bytes) -> None:
    """Any bytes as simple replies."""
    protocol = ClientProtocol()
    answered = _answered(protocol, data)
    assert answered is None or 5 <= answered + protocol.in_flight <= 6  # the reply under way is neither


def client_structured_replies(data: bytes) -> None:
    """Any bytes as simple and structured replies, where chunks of several replies may alternate."""
    protocol = StructuredClientProtocol()
    answered = _answered(protocol, data)
    assert answered is None or answered + protocol.in_flight == 6


def _answered(protocol: ClientProtocol, data: bytes) -> int | None:
    """How many of six requests in flight the bytes answer; None if they break the protocol."""
    pages = [memoryview(bytearray(512)) for _ in range(4)]
    for handle, page in enumerate(pages):
        protocol.read(handle, handle * 512, [page])
    protocol.flush(4)
    protocol.write(5, 0, [memoryview(bytes(512))])
    try:
        return sum(len(_feed(protocol, portion)) for portion in _portions(data))
    except NbdError:
        return None


TARGETS: dict[str, Callable[[bytes], None]] = {
    "server-handshake": server_handshake,
    "server-transmission": server_transmission,
    "client-handshake": client_handshake,
    "client-replies": client_replies,
    "client-structured-replies": client_structured_replies,
}

_CONTEXT = bytes(4) + (1).to_bytes(4, "big") + (15).to_bytes(4, "big") + b"base:allocation"
NEGOTIATION = (
    (1).to_bytes(4, "big")
    + b"IHAVEOPT" + (8).to_bytes(4, "big") + bytes(4)
    + b"IHAVEOPT" + (10).to_bytes(4, "big") + len(_CONTEXT).to_bytes(4, "big") + _CONTEXT
    + b"IHAVEOPT" + (7).to_bytes(4, "big") + (8).to_bytes(4, "big") + bytes(4) + b"\0\1\0\3"
)  # fmt: skip


def _choices(byte: int, *counts: int) -> list[int]:
    """One of so many for each of `counts`, in turn."""
    chosen = []
    for count in counts:
        byte, choice = divmod(byte, count)
        chosen.append(choice)
    return chosen


def _portions(data: bytes) -> list[bytes]:
    if not data:
        return []
    step = data[0] * 4 + 1
    return [data[at : at + step] for at in range(1, len(data), step)]


def _feed(receiver: Receiver, data: bytes) -> list[object]:
    """As a socket would."""
    events: list[object] = []
    while data:
        taken = 0
        for buffer in receiver.next_buffers():
            part = data[taken : taken + len(buffer)]
            buffer[: len(part)] = part
            taken += len(part)
        assert taken, "the protocol offered no room"
        data = data[taken:]
        events += receiver.received(taken)
    return events


def _check(event: object) -> None:
    if isinstance(event, Read | Trim | WriteZeroes | Cache | BlockStatus):
        assert event.offset + event.length <= SIZE
    if isinstance(event, Read):
        assert event.length <= LONGEST
    if isinstance(event, Write):
        assert len(event.data) <= LONGEST
    if isinstance(event, Violation):
        assert "\n" not in event.reason
